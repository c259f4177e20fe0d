"""LoRA, LoRA+ and QLoRA at equal time, each with its rate tuned, on several seeds.

    python benchmarks/code_methods.py --repo /tmp/pyd/pydantic_ai
    python benchmarks/code_methods.py --repo DIR --base DIR --device cuda --seconds 15 --context 1024

Every method trains for the same time (of the processor, or on a card of the clock), with as many
steps as it manages; its rate is tuned on the first seed, and the others repeat the best. Looking
at the models is not counted. What was done stays in FILE.jsonl, and the same command goes on.
Written: perplexity on held-out files, of an outside text, and the compile rate, beside the base's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from surefoot import recipes
from surefoot.config.fields import changed
from surefoot.data.batch import Data
from surefoot.data.packed import pack
from surefoot.engine import Learner
from surefoot.engine.fit import Pins
from surefoot.engine.place import apply
from surefoot.engine.random import rekey
from surefoot.engine.world import open_world
from surefoot.recipes.code import base_of, gather, loss, packed
from surefoot.recipes.code.looks import looks
from surefoot.recipes.code.model import make, optimiser_of, precision_of
from surefoot.schedule import OneCycle
from surefoot.track.machine import describe_machine

CODE = recipes.find("code")
RATES = {
    "lora": (5e-4, 2e-3),
    "lora+": (1.5e-4, 5e-4),
    "qlora": (5e-4, 2e-3),
}
OUT = Path(__file__).parent / "results" / "code_methods.jsonl"


class Trials:
    """Runs of several methods on one repository; what they have in common is made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.world = open_world(options.device)
        cpu = self.world.device.type == "cpu"
        self.clock: Callable[[], float] = time.process_time if cpu else self._wall
        self.config: Any = changed(
            CODE.config(),
            {
                "model.base": options.base, "model.context": options.context,
                "data.repo": options.repo, "train.batch_size": options.batch,
                "memory.checkpointing": False, "evaluation.val_tokens": options.val_tokens,
                "evaluation.outside_tokens": options.val_tokens // 2,
                "evaluation.prompts": options.prompts, "evaluation.new_tokens": 48,
                "adapter.rank": options.rank, "adapter.alpha": 2.0 * options.rank,
            },
        )  # fmt: skip
        self.code = gather(self.config)
        self.base = base_of(self.config, self.code)
        self.tokens = pack([f.text for f in self.code.sides["train"]], self.base.tokenizer)
        self.judges = {
            four: looks(self.config, self.code, self.base.tokenizer, self.world)
            for four in (False, True)
        }
        self.paces: dict[str, float] = {}

    def _wall(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def run(self, method: str, rate: float, seed: int) -> dict[str, Any]:
        """Train once, look, and return the figures."""
        changes = {"adapter.method": method, "optim.lr": rate, "train.seed": seed}
        config: Any = changed(self.config, changes)
        precision = precision_of(config, self.world)
        model, digest = make(config, self.base, self.world, precision)
        learner = Learner(model, loss, optimiser_of(config, model), clip=config.optim.clip)
        apply(
            learner,
            Pins(str(self.world.device), precision=precision, ops={"cross_entropy": "chunked"}),
        )
        source = packed(config, self.tokens, self.base.tokenizer, digest)
        data = Data(source, seed, config.train.batch_size)
        judges = self.judges[config.four_bit]
        with learner.evaluating() as lent:
            for judge in judges.values():  # the base once, which the first model still is
                if not judge._base:
                    judge.remember(lent)
        if method not in self.paces:
            self.paces[method] = self._pace(learner, data)
        steps = max(4, round(self.options.seconds / self.paces[method]))
        learner.schedule = OneCycle(steps)
        begun = self.clock()
        for step in range(steps):
            self._step(learner, data, step, True)
        spent = self.clock() - begun
        found: dict[str, Any] = {}
        with learner.evaluating() as lent:
            for name, judge in judges.items():
                if not name.startswith("test"):
                    found |= judge(lent)
        key = {"method": method, "rate": rate, "seed": seed}
        return {**key, "steps": steps, "seconds": round(spent, 1), **found}

    def _pace(self, learner: Learner, data: Data) -> float:
        """Return the seconds of a step: the median of three, whose gradients are dropped."""
        taken = []
        for _ in range(4):
            begun = self.clock()
            self._step(learner, data, 0, False)
            taken.append(self.clock() - begun)
        return statistics.median(taken[1:])

    def _step(self, learner: Learner, data: Data, step: int, apply_it: bool) -> None:
        size, micro = self.options.batch, self.options.micro
        parts = [data.batch(step, at, min(micro, size - at)) for at in range(0, size, micro)]
        total = sum(part.weight for part in parts)
        for at, part in enumerate(parts):
            rekey(step * size + at, self.world.device)
            learner.accumulate(self.world.to(part), total)
        learner.gradient_norm()
        if apply_it:
            learner.update()
            learner.step += 1
        learner.zero()


def mean(rows: list[dict[str, Any]], name: str) -> str:
    """Return the mean over seeds, and the half width of what they span."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.3g} ± {half:.2g}" if len(values) > 1 else f"{values[0]:.3g}"


def table(rows: list[dict[str, Any]], options: argparse.Namespace, device: str) -> str:
    """Return the page of results."""
    cuda = device.startswith("cuda")
    machine = torch.cuda.get_device_name() if cuda else describe_machine()["cpu"]
    unit = "seconds" if cuda else "processor seconds"
    lines = [
        "# LoRA, LoRA+ and QLoRA at equal time", "",
        f"`python benchmarks/code_methods.py`, {time.strftime('%Y-%m-%d')}, {machine}, torch "
        f"{torch.__version__}; base {options.base}, rank {options.rank}, batches of {options.batch} rows of "
        f"{options.context} tokens, {options.seconds:g} {unit} of training each. Rates are those at the peak of "
        "one-cycle, tuned on seed 1; means over seeds, ± half of what they span.", "",
        "| method | rate | seeds | steps | perplexity | of the base | less | outside | of the base | compiles | of the base |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for method in RATES:
        best = best_rate(rows, method)
        mine = [r for r in rows if (r["method"], r["rate"]) == (method, best)]
        if not mine:
            continue
        fall = 1 - statistics.fmean(r["val_ppl"] / r["base_val_ppl"] for r in mine)
        lines.append(
            f"| {method} | {best:g} | {len(mine)} | {mine[0]['steps']} | {mean(mine, 'val_ppl')} | "
            f"{mine[0]['base_val_ppl']:.3g} | {fall:.1%} | {mean(mine, 'outside_ppl')} | "
            f"{mine[0]['base_outside_ppl']:.3g} | {rates(mine)} | {mine[0].get('base_compile_cut', math.nan):.0%} |"
        )
    lines += ["", "All trials:", "", "| method | rate | seed | steps | seconds | perplexity |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {r['method']} | {r['rate']:g} | {r['seed']} | {r['steps']} | {r['seconds']:.0f} | {r['val_ppl']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def rates(rows: list[dict[str, Any]]) -> str:
    """Return the compile rate over all seeds with its 95 % interval."""
    if "compile_cut" not in rows[0]:
        return "-"
    low, high = rows[0]["compile_cut_low"], rows[0]["compile_cut_high"]
    share = statistics.fmean(r["compile_cut"] for r in rows)
    return f"{share:.0%} (seed {rows[0]['seed']}: {low:.0%} to {high:.0%})"


def best_rate(rows: list[dict[str, Any]], method: str) -> float:
    """Return the rate that did best on the first seed."""
    first = [r for r in rows if r["method"] == method and r["seed"] == 1]
    return float(min(first, key=lambda r: r["val_ppl"])["rate"]) if first else math.nan


def main() -> None:
    """Do what is not done yet, and write the page."""
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("--repo", required=True)
    own.add_argument("--base", default="smollm2")
    own.add_argument("--device", default="auto")
    own.add_argument("--seconds", type=float, default=60.0, help="of training, each")
    own.add_argument("--context", type=int, default=256)
    own.add_argument("--batch", type=int, default=4)
    own.add_argument("--micro", type=int, default=1)
    own.add_argument("--rank", type=int, default=16)
    own.add_argument("--seeds", type=int, default=3)
    own.add_argument("--val-tokens", type=int, default=6000)
    own.add_argument("--prompts", type=int, default=16)
    own.add_argument("--scale", type=float, default=1.0, help="multiplies the rates tried")
    own.add_argument("--out", type=Path, default=OUT)
    options = own.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(x) for x in options.out.read_text().splitlines()]
        if options.out.exists()
        else []
    )
    done = {(r["method"], r["rate"], r["seed"]) for r in rows}
    trials = Trials(options)

    def do(method: str, rate: float, seed: int) -> None:
        if (method, rate, seed) in done:
            return
        row = trials.run(method, rate, seed)
        rows.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{method:6} rate {rate:<8g} seed {seed}  {row['steps']} steps in {row['seconds']:.0f} s  perplexity "
            f"{row['val_ppl']:.2f} (base {row['base_val_ppl']:.2f})  compiles {row.get('compile_cut', math.nan):.0%} "
            f"(base {row.get('base_compile_cut', math.nan):.0%})  outside {row['outside_ppl']:.2f} "
            f"(base {row['base_outside_ppl']:.2f})", flush=True,
        )  # fmt: skip

    for method, tried in RATES.items():
        for rate in tried:
            do(method, rate * options.scale, 1)
    for seed in range(2, options.seeds + 1):
        for method in RATES:
            do(method, best_rate(rows, method), seed)
    page = table(rows, options, str(trials.world.device))
    options.out.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
