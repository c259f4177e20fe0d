"""LoRA, LoRA+ and QLoRA at equal time, each with its rate tuned, on several seeds.

    python benchmarks/code_methods.py --repo /tmp/pyd/pydantic_ai
    python benchmarks/code_methods.py --repo DIR --base DIR --device cuda --seconds 15 --context 1024

Every method trains for the same time (of the processor, so that others on it do not count, or on
a card of the clock). How many steps that is, is measured once, the methods taking turns. The rate
is tuned on seed 1 by the files that validate: two guesses, and further by factors of three until
the best one has a worse one on either side. Other seeds then train with it and are judged by the
test files, which nothing was chosen by. Looking at the models is not counted.
What was done stays in the file of `--out`, and the same command goes on. Writes a page beside it:
perplexity, that of an outside text, and the compile rate, beside the base's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch

from surefoot import recipes
from surefoot.config.fields import changed
from surefoot.data.batch import Data
from surefoot.data.packed import pack
from surefoot.engine import Learner
from surefoot.engine.auto.fit import Pins
from surefoot.engine.place import apply
from surefoot.engine.random import rekey
from surefoot.engine.world import open_world
from surefoot.recipes.code import base_of, gather, loss, packed
from surefoot.recipes.code.looks import looks
from surefoot.recipes.code.model import make, optimiser_of, precision_of
from surefoot.schedule import OneCycle

CODE = recipes.find("code")
RATES = {  # the first guesses; that of lora+ is of the slower factor, the other learns 16 times as fast
    "lora": (2e-3, 6e-3),
    "lora+": (5e-4, 1.5e-3),
    "qlora": (2e-3, 6e-3),
}
FACTOR, FURTHER = 3.0, 3  # from one rate to the next, and how many more are tried at most
TUNING = 1  # the seed
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
                "evaluation.prompts": options.prompts,
                "evaluation.new_tokens": options.new_tokens,
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

    def _wall(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def learner(self, method: str, rate: float, seed: int) -> tuple[Learner, Data]:
        """Return what is trained, and the rows in the order of the seed."""
        changes = {"adapter.method": method, "optim.lr": rate, "train.seed": seed}
        config: Any = changed(self.config, changes)
        precision = precision_of(config, self.world)
        model, digest = make(config, self.base, self.world, precision)
        learner = Learner(model, loss, optimiser_of(config, model), clip=config.optim.clip)
        pins = Pins(str(self.world.device), precision=precision, ops={"cross_entropy": "chunked"})
        apply(learner, pins)
        source = packed(config, self.tokens, self.base.tokenizer, digest)
        return learner, Data(source, seed, config.train.batch_size)

    def paces(self) -> dict[str, float]:
        """Return the seconds of a step of each method: medians of five rounds, one to warm up."""
        made = {method: self.learner(method, rates[0], 1) for method, rates in RATES.items()}
        taken: dict[str, list[float]] = {method: [] for method in RATES}
        for _ in range(6):
            for method, (learner, data) in made.items():
                begun = self.clock()
                self._step(learner, data, 0)
                taken[method].append(self.clock() - begun)
        return {method: statistics.median(times[1:]) for method, times in taken.items()}

    def run(self, method: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        """Train once, look, and return the figures: the loss that validates for the seed of tuning,

        else all those of the test files.
        """
        names = ("held out",) if seed == TUNING else ("test", "outside", "test completions")
        every = self.judges[method.startswith("q")]
        judges = [every[name] for name in names if name in every]
        learner, data = self.learner(method, rate, seed)
        with learner.evaluating() as lent:
            for judge in judges:  # the base once, which the first model still is
                if not judge.knows_the_base:
                    judge.remember(lent)
        learner.schedule = OneCycle(steps)
        begun = self.clock()
        for step in range(steps):
            self._step(learner, data, step)
        spent = self.clock() - begun
        found: dict[str, Any] = {}
        with learner.evaluating() as lent:
            for judge in judges:
                found |= judge(lent)
        key = {"method": method, "rate": rate, "seed": seed}
        return {**key, "steps": steps, "seconds": round(spent, 1), **found}

    def _step(self, learner: Learner, data: Data, step: int) -> None:
        size, micro = self.options.batch, self.options.micro
        parts = [data.batch(step, at, min(micro, size - at)) for at in range(0, size, micro)]
        total = sum(part.weight for part in parts)
        for at, part in enumerate(parts):
            rekey(step * size + at, self.world.device)
            learner.accumulate(self.world.to(part), total)
        learner.gradient_norm()
        learner.update()
        learner.step += 1
        learner.zero()


def best_rate(rows: list[dict[str, Any]], method: str) -> float:
    """Return the rate that did best on the seed of tuning."""
    tried = [r for r in rows if r["method"] == method and r["seed"] == TUNING]
    return float(min(tried, key=lambda r: r["val_ppl"])["rate"])


def next_rate(rows: list[dict[str, Any]], method: str) -> float | None:
    """Return the rate to try next, None where the best has a worse one on either side."""
    tried = sorted(r["rate"] for r in rows if r["method"] == method and r["seed"] == TUNING)
    for guess in RATES[method]:
        if guess not in tried:
            return guess
    best = best_rate(rows, method)
    if len(tried) == len(RATES[method]) + FURTHER or tried[0] < best < tried[-1]:
        return None
    return float(f"{best * FACTOR if best == tried[-1] else best / FACTOR:.2g}")


def spread(values: list[float], form: str) -> str:
    """Return the mean, and from where to where the values go."""
    ends = f"{min(values):{form}} to {max(values):{form}}"
    return (
        f"{statistics.fmean(values):{form}} ({ends})" if len(values) > 1 else f"{values[0]:{form}}"
    )


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Return the page of results."""
    judged = [r for r in rows if r["seed"] != TUNING]
    title = "LoRA, LoRA+ and QLoRA at equal time"
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "the processor"
    return [
        *machine.heading(title, "benchmarks/code_methods.py", __doc__ or ""),
        f"Trained on {device}; base {options.base}, rank {options.rank}. Rates are those at the peak of one-cycle, of "
        "LoRA+ that of the slower factor. Means over the seeds, with the lowest and the highest; the smaller a "
        "perplexity, the better.", "",
        "| method | rate | seeds | steps | perplexity | base's | change | outside text | compiles | base's | change |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_line(method, [r for r in judged if r["method"] == method]) for method in RATES), "",
        *(_duel(a, b, judged) for a, b in itertools.combinations(RATES, 2)), "",
        "The outside text is Python's help texts: the change of its perplexity is what was forgotten. Compiles: the "
        f"share of at most {options.prompts} functions in {options.new_tokens} tokens, cut as in `surefoot train code`, "
        "and its change seed by seed.",
        "", "All trials:", "",
        "| method | rate | seed | steps | seconds | perplexity | of |", "|---|---:|---:|---:|---:|---:|---|",
        *map(_trial, rows),
    ]  # fmt: skip


def _line(method: str, mine: list[dict[str, Any]]) -> str:
    def of(name: str) -> list[float]:
        return [r[name] for r in mine]

    compiles = [
        f"{statistics.fmean(of('compile_cut')):.0%}", f"{mine[0]['base_compile_cut']:.0%}",
        ", ".join(f"{x:+.0%}" for x in of("compile_cut_change")),
    ] if "compile_cut" in mine[0] else ["-"] * 3  # fmt: skip
    cells = [
        method, f"{mine[0]['rate']:g}", str(len(mine)), str(mine[0]["steps"]), spread(of("test_ppl"), ".2f"),
        f"{mine[0]['base_test_ppl']:.2f}", spread(of("test_ppl_change"), "+.1%"),
        spread(of("outside_ppl_change"), "+.1%"), *compiles,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _duel(a: str, b: str, rows: list[dict[str, Any]]) -> str:
    """Say how the perplexities of two methods differ, seed by seed."""
    found = {m: {r["seed"]: r["test_ppl"] for r in rows if r["method"] == m} for m in (a, b)}
    ratios = [found[a][seed] / found[b][seed] - 1 for seed in sorted(found[a].keys() & found[b])]
    same = all(r < 0 for r in ratios) or all(r > 0 for r in ratios)
    verdict = "on every seed the same sign" if same else "a tie: the sign differs by seed"
    told = ", ".join(f"{r:+.1%}" for r in ratios)
    return f"- {a} against {b}, perplexity by seed: {told}; {verdict}."


def _trial(row: dict[str, Any]) -> str:
    kind = "val" if row["seed"] == TUNING else "test"
    return (
        f"| {row['method']} | {row['rate']:g} | {row['seed']} | {row['steps']} | {row['seconds']:.0f} | "
        f"{row[f'{kind}_ppl']:.2f} | {'validation' if kind == 'val' else 'test'} |"
    )


class Ledger:
    """What was done, line by line in a file: first the paces, then the trials."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        told = path.read_text("utf-8").splitlines() if path.exists() else []
        self.paces: dict[str, float] = json.loads(told[0])["paces"] if told else {}
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in told[1:]]

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def do(self, trials: Trials, method: str, rate: float, seed: int) -> None:
        """Do a trial that is not done yet, with as many steps as the time allows."""
        if (method, rate, seed) in {(r["method"], r["rate"], r["seed"]) for r in self.rows}:
            return
        steps = max(4, round(trials.options.seconds / self.paces[method]))
        row = trials.run(method, rate, seed, steps)
        self.rows.append(row)
        self.add(row)
        print(_trial(row), flush=True)


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
    own.add_argument("--seeds", type=int, default=3, help="beside the one of tuning")
    own.add_argument("--val-tokens", type=int, default=6000)
    own.add_argument("--prompts", type=int, default=16)
    usual = getattr(CODE.config(), "evaluation").new_tokens  # noqa: B009
    own.add_argument("--new-tokens", type=int, default=usual, help=f"of a completion ({usual})")
    own.add_argument("--out", type=Path, default=OUT)
    options = own.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ledger, trials = Ledger(options.out), Trials(options)
    if not ledger.paces:
        ledger.paces = trials.paces()
        ledger.add({"paces": ledger.paces})
        print({method: f"{pace:.2f} s a step" for method, pace in ledger.paces.items()}, flush=True)
    for method in RATES:
        while (rate := next_rate(ledger.rows, method)) is not None:
            ledger.do(trials, method, rate, TUNING)
    for seed in range(TUNING + 1, TUNING + 1 + options.seeds):
        for method in RATES:
            ledger.do(trials, method, best_rate(ledger.rows, method), seed)
    page = "\n".join(table(ledger.rows, options)) + "\n"
    options.out.with_suffix(".md").write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
