"""Other trainers on the same work: a model of GPT-2's shape, its batch, one device.

Each runs in a process of its own (`python -m surefoot.cli.peers SIDE DEVICE SECONDS`), as its own
documentation shows it. The medians of a step's time on the wall count.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from surefoot.config.suggest import nearest
from surefoot.errors import ConfigError

__all__ = ["PEERS", "check_peers", "race"]

# layers, heads, width, context, batch: of the work on a processor, and on a GPU
_SMALL, _LARGE = (4, 4, 128, 64, 12), (12, 12, 768, 1024, 8)
_WORDS, _WARM = 65, 4
_PATIENCE = 600.0  # seconds to begin and to compile
PEERS = {  # name: what it is, the package that it needs
    "torch": ("torch, a loop by hand", ""),
    "hf": ("transformers Trainer", "transformers"),
    "lightning": ("Lightning", "lightning"),
    "litgpt": ("LitGPT's model, a loop by hand", "litgpt"),
    "nanogpt": ("nanoGPT's model, a loop by hand", ""),
}


def check_peers(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is no peer."""
    for name in names:
        if name not in PEERS:
            near = nearest(name, PEERS)
            fix = f"did you mean {near}?" if near else f"there are {', '.join(PEERS)}"
            raise ConfigError(f"--against {name}: no such peer is known", fix=fix)


def race(names: Sequence[str], device: Any, seconds: float) -> list[dict[str, Any]]:
    """Return what each side takes, ours first; one that cannot run here says why."""
    layers, heads, width, context, batch = _size(str(device))
    what = f"GPT-2 shape: {layers} layers, {heads} heads, {width} wide, {batch} x {context} tokens"
    return [
        {"side": PEERS[name][0] if name in PEERS else "surefoot", "what": what, **found}
        for name in ("surefoot", *names)
        for found in [_ask(name, str(device), seconds)]
    ]


def _size(device: str) -> tuple[int, int, int, int, int]:
    return _LARGE if device.startswith("cuda") else _SMALL


def _ask(name: str, device: str, seconds: float) -> dict[str, Any]:
    needs = PEERS[name][1] if name in PEERS else ""
    if needs and find_spec(needs) is None:
        return {"why_not": f"{needs} is not installed"}
    if name == "nanogpt" and not (Path(os.environ.get("NANOGPT", "-")) / "model.py").is_file():
        return {"why_not": "$NANOGPT names no checkout of it"}
    command = [sys.executable, "-m", "surefoot.cli.peers", name, device, str(seconds)]
    limit = _PATIENCE + 20 * seconds
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"why_not": f"it had not ended after {limit:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, Any] = json.loads(line[7:])
            return found
    return {"why_not": (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]}


def _batches(device: str) -> Iterator[tuple[Any, Any]]:
    """Yield random tokens i64[B, T] and what follows each, made as a loop by hand makes them."""
    import numpy as np
    import torch

    _, _, _, context, batch = _size(device)
    tokens = np.random.default_rng(0).integers(0, _WORDS, 1_000_000, "uint8")
    rng = np.random.default_rng(1)
    while True:
        at = rng.integers(0, len(tokens) - context - 1, batch)[:, None] + np.arange(context)
        x, y = (torch.from_numpy(tokens[at + k].astype(np.int64)).to(device) for k in (0, 1))
        yield x, y


def _by_hand(model: Any, loss: Callable[[Any, Any], Any], device: str) -> Iterator[None]:
    """Train in a loop as one writes it by hand: bf16, fused AdamW, clipping."""
    import torch

    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for x, y in _batches(device):
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            found = loss(x, y)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        float(found.detach())  # a loop that reports its loss waits for the device
        yield


def _torch(device: str) -> Iterator[None]:
    from surefoot.config.model import GPTConfig
    from surefoot.nn.gpt import GPT

    layers, heads, width, context, _ = _size(device)
    shape = {"num_layers": layers, "num_heads": heads, "d_model": width, "context": context}
    model = GPT(GPTConfig.model_validate({"layout": "gpt2", **shape}), _WORDS)
    yield from _by_hand(model, lambda x, y: model(x, y) / y.numel(), device)


def _nanogpt(device: str) -> Iterator[None]:
    sys.path.insert(0, os.environ["NANOGPT"])
    theirs = importlib.import_module("model")
    layers, heads, width, context, _ = _size(device)
    model = theirs.GPT(
        theirs.GPTConfig(
            block_size=context, vocab_size=_WORDS, n_layer=layers, n_head=heads, n_embd=width,
            dropout=0.0, bias=True,
        )
    )  # fmt: skip
    yield from _by_hand(model, lambda x, y: model(x, y)[1], device)


def _litgpt(device: str) -> Iterator[None]:
    import torch

    theirs = importlib.import_module("litgpt")
    layers, heads, width, context, _ = _size(device)
    model = theirs.GPT(
        theirs.Config(
            block_size=context, n_layer=layers, n_head=heads, n_embd=width, vocab_size=_WORDS,
            padded_vocab_size=_WORDS, bias=True,
        )
    )  # fmt: skip

    def loss(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    yield from _by_hand(model, loss, device)


def _surefoot(device: str, seconds: float) -> float:
    """Return how many seconds a step of Surefoot takes, everything on auto."""
    from surefoot import api, recipes
    from surefoot.config import flags
    from surefoot.data.fetch import cache_dir
    from surefoot.engine import open_world
    from surefoot.lab.bench import speed_of

    layers, heads, width, context, batch = _size(device)
    recipe = recipes.find("charlm")
    given, _ = flags.arguments(
        {
            "num_layers": layers, "num_heads": heads, "d_model": width, "context": context,
            "batch_size": batch, "dropout": 0.0,
        },
        recipe.config,
    )  # fmt: skip
    config = api.settle(recipe, "classic", [], given).config
    cache = cache_dir() / "fit.json"
    return speed_of(recipe, config, open_world(device), seconds, cache).step


def _timed(going: Iterator[None], seconds: float) -> float:
    for _ in range(_WARM):
        next(going)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 5 or time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        next(going)
        taken.append(time.perf_counter() - before)
    return median(taken)


def _stamped(train: Callable[[int, Callable[..., None]], None], seconds: float) -> float:
    """Return the seconds of a step of a trainer that has its own loop and calls after each update."""
    stamps: list[float] = []
    train(_WARM + 5, lambda *_: stamps.append(time.perf_counter()))
    gaps = [b - a for a, b in zip(stamps[_WARM:], stamps[_WARM + 1 :])]
    count = _WARM + max(5, min(2000, int(seconds / median(gaps))))
    stamps.clear()
    train(count, lambda *_: stamps.append(time.perf_counter()))
    return median(b - a for a, b in zip(stamps[_WARM:], stamps[_WARM + 1 :]))


def _hf(device: str) -> Callable[[int, Callable[..., None]], None]:
    import torch
    import transformers
    from torch.utils.data import Dataset

    layers, heads, width, context, batch = _size(device)
    rows = torch.randint(0, _WORDS, (batch, context))

    class Rows(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, i: int) -> dict[str, Any]:
            row = rows[i % len(rows)]
            return {"input_ids": row, "labels": row}

    class Told(transformers.TrainerCallback):
        def __init__(self, stamp: Callable[..., None]) -> None:
            self.stamp = stamp

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.stamp()

    def train(count: int, stamp: Callable[..., None]) -> None:
        config = transformers.GPT2Config(
            vocab_size=_WORDS, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, per_device_train_batch_size=batch, max_steps=count, bf16=True,
                use_cpu=device == "cpu", report_to=[], save_strategy="no", logging_steps=10,
                optim="adamw_torch_fused", disable_tqdm=True,
            )  # fmt: skip
            model = transformers.GPT2LMHeadModel(config)
            transformers.Trainer(
                model, arguments, train_dataset=Rows(), callbacks=[Told(stamp)]
            ).train()

    return train


def _lightning(device: str) -> Callable[[int, Callable[..., None]], None]:
    import torch

    package = importlib.import_module("lightning")
    from surefoot.config.model import GPTConfig
    from surefoot.nn.gpt import GPT

    layers, heads, width, context, _ = _size(device)
    shape = {"num_layers": layers, "num_heads": heads, "d_model": width, "context": context}

    class Module(package.LightningModule):  # type: ignore[name-defined]
        def __init__(self, stamp: Callable[..., None]) -> None:
            super().__init__()
            self.net, self.stamp = (
                GPT(GPTConfig.model_validate({"layout": "gpt2", **shape}), _WORDS),
                stamp,
            )

        def training_step(self, batch: Any, _: int) -> Any:
            x, y = batch
            return self.net(x, y) / y.numel()

        def on_train_batch_end(self, *_: Any) -> None:
            self.stamp()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-3, fused=True)

    def train(count: int, stamp: Callable[..., None]) -> None:
        rows = (pair for _, pair in zip(range(count), _batches(device)))
        package.Trainer(
            max_steps=count, accelerator="cpu" if device == "cpu" else "gpu", devices=1,
            precision="bf16-mixed", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(Module(stamp), rows)  # fmt: skip

    return train


_LOOPS = {"torch": _torch, "nanogpt": _nanogpt, "litgpt": _litgpt}
_TRAINERS = {"hf": _hf, "lightning": _lightning}


def main(side: str, device: str, seconds: float) -> None:
    """Run one side and print what it took."""
    if side in _LOOPS:
        step = _timed(_LOOPS[side](device), seconds)
    elif side in _TRAINERS:
        step = _stamped(_TRAINERS[side](device), seconds)
    else:
        step = _surefoot(device, seconds)
    _, _, _, context, batch = _size(device)
    print("RESULT " + json.dumps({"step": step, "tokens": batch * context / step}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
