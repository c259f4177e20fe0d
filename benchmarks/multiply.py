"""What `multiply` costs and what helps it: `python benchmarks/multiply.py costs|latents|tried`.

`costs` measures, in CPU time and interleaved, what the recipe promises: side by side against each
alone, data against a step, evaluation against steps; it writes benchmarks/results/multiply.md.

`latents` trains the simple transformer and the latent one with 1, 2, 4, 8 and 16 latents, all
equally large, each for the same CPU time, with several seeds; it writes results/multiply_latents.md.
`tried` trains the simple transformer in other ways, one thing changed at a time; it writes
results/multiply_tried.md.

Every finished training is a line in `--results`, so that it can be stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import heading

from surefoot import api
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.engine import TrainState, World, steps
from surefoot.engine.plan import prepare
from surefoot.recipes import find

HERE = Path(__file__).resolve().parent
CPU = World(torch.device("cpu"))
RECIPE = find("multiply")
LATENTS = (0, 1, 2, 4, 8, 16)  # 0: the simple transformer
ROUNDS = 5


def configured(preset: str, **settings: Any) -> Any:
    """Return the configuration of a preset with some settings, checked."""
    given, problems = flags.arguments(settings, RECIPE.config)
    return api.settle(RECIPE, preset, (), given, problems).config


class Training:
    """A job in training, without folder, record or checkpoints."""

    def __init__(self, config: Any) -> None:
        self.config, self.job = config, RECIPE.build(config, CPU)
        prepare(self.job, config, {})
        self.data = Data(self.job.source, config.train.seed, config.train.batch_size)
        state = TrainState(self.job.learners)
        self.reports: Iterator[Any] = steps(state, self.data, config.train.seed, CPU)

    def run(self, count: int) -> float:
        """Take `count` steps and return their CPU time in seconds."""
        begun = time.process_time()
        for _ in range(count):
            next(self.reports)
        return time.process_time() - begun

    def exam(self, name: str) -> dict[str, float]:
        """Return what the test set says of one learner."""
        with self.job.learners[name].evaluating() as model:
            return dict(self.job.exams["test"](model))

    def parameters(self, name: str) -> int:
        """Return how many parameters a learner trains."""
        return sum(p.numel() for p in self.job.learners[name].parameters)


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU time of `work` in seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


# ---------------------------------------------------------------------------------------- costs


def costs() -> str:
    """Measure and return the page."""
    sizes = {"max_steps": 10**6, "val_problems": 10_000}
    alone = [Training(configured("full", active=(n,), **sizes)) for n in ("simple", "latent")]
    both = Training(configured("full", **sizes))
    for training in (*alone, both):
        training.run(5)
    rounds = [[t.run(20) for t in (*alone, both)] for _ in range(ROUNDS)]
    ratio = statistics.median(two / (a + b) for a, b, two in rounds)
    simple, latent, together = (statistics.median(times) / 20 for times in zip(*rounds))

    batches = statistics.median(
        cpu(lambda r=r: [both.data.batch(1000 * r + k) for k in range(200)]) / 200
        for r in range(ROUNDS)
    )
    exam: Any = getattr(both.job.evals["held out"], "__self__")  # noqa: B009
    exams = {}
    for name, learner in both.job.learners.items():
        with learner.evaluating() as model:
            exams[name] = statistics.median(cpu(lambda m=model: exam._sit(m)) for _ in range(3))
    asked = len(exam.pairs)
    source: Any = both.job.source
    index = np.arange(10_000)
    drawn = 10_000 / min(cpu(lambda: source.pairs(index)) for _ in range(20))
    none = np.zeros_like(index)
    written = 10_000 / min(cpu(lambda: source.batch(index, none, 0)) for _ in range(20))
    rows = [
        ("side by side / sum of each alone", f"{ratio:.3f}", "at most 1.05"),
        ("a step of simple, of latent, of both", f"{simple * 1e3:.1f}, {latent * 1e3:.1f}, "
         f"{together * 1e3:.1f} ms", ""),
        ("making a batch / a step of both", f"{batches / together:.2%}", "at most 2 %"),
        *(
            (f"{name}: {asked:,} problems free-running, in training steps of it",
             f"{exams[name] / step:.0f}", "at most 200")
            for name, step in (("simple", simple), ("latent", latent))
        ),
        ("problems drawn a second", f"{drawn / 1e6:.1f} M", "at least 1 M"),
        ("problems drawn and written as tokens a second", f"{written / 1e6:.1f} M", ""),
    ]  # fmt: skip
    lines = [
        *heading("What `multiply` costs", "benchmarks/multiply.py"),
        f"One thread, preset full, batch {both.config.train.batch_size}; processor time, medians of "
        "interleaved rounds.",
        "",
        "| what | measured | wanted |",
        "|---|---:|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


# -------------------------------------------------------------------------------------- latents


def train(latents: int, seed: int, seconds: float, work: bool) -> dict[str, Any]:
    """Train one learner for `seconds` of CPU time and return what came of it."""
    name = "latent" if latents else "simple"
    settings: dict[str, Any] = {
        "active": (name,), "match_params": True, "num_latent": latents or 4, "seed": seed,
        "data.work": work,
    }  # fmt: skip
    probe = Training(configured("laptop", max_steps=1000, **settings))
    probe.run(5)
    step = min(probe.run(10) / 10 for _ in range(3))
    count = max(120, round(seconds / step))
    training = Training(configured("laptop", max_steps=count, **settings))
    spent = training.run(count)
    scores = training.exam(name)
    return {
        "latents": latents, "seed": seed, "seconds": seconds, "work": work, "steps": count,
        "spent": round(spent, 1), "parameters": training.parameters(name), **scores,
    }  # fmt: skip


def latents(path: Path, seeds: int, budgets: dict[bool, list[float]]) -> str:
    """Train what is not in `path` yet, and return the page."""
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["latents"], r["seed"], r["seconds"], r["work"]) for r in known}
    wanted = [
        (count, seed, seconds, work)
        for work, several in budgets.items()
        for seconds in several
        for seed in range(1, seeds + 1)
        for count in LATENTS
    ]
    for one in wanted:
        if one not in done:
            known.append(train(*one))
            with path.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
            print(known[-1], flush=True)
    return _page(known, budgets)


def _page(known: list[dict[str, Any]], budgets: dict[bool, list[float]]) -> str:
    lines = [
        *heading("Simple against latent", "benchmarks/multiply.py"),
        "One thread; 2-digit problems of the test set that were answered exactly, free-running, in "
        "percent: the mean of the seeds, and each of them. All models have the same number of "
        "parameters (within 0.5 %) and the same processor time; each has a schedule planned for "
        "its own number of steps.",
        "",
    ]
    for work, several in budgets.items():
        for seconds in several:
            how = "partial products first" if work else "the answer alone"
            lines += [f"## {how}, {seconds:g} s of processor time", "",
                      "| model | parameters | steps | exact | seeds |", "|---|---:|---:|---:|---|"]  # fmt: skip
            for count in LATENTS:
                rows = [r for r in known if (r["latents"], r["seconds"], r["work"])
                        == (count, seconds, work)]  # fmt: skip
                if rows:
                    lines.append(_row(count, rows))
            lines.append("")
    return "\n".join(lines)


def _row(count: int, rows: list[dict[str, Any]]) -> str:
    name = f"latent, {count} latent{'s' * (count > 1)}" if count else "simple"
    exact = [100 * r["exact"] for r in rows]
    steps_ = statistics.mean(r["steps"] for r in rows)
    each = ", ".join(f"{value:.1f}" for value in exact)
    return (
        f"| {name} | {rows[0]['parameters']:,} | {steps_:,.0f} | "
        f"**{statistics.mean(exact):.1f}** | {each} |"
    )


# ---------------------------------------------------------------------------------------- tried

TRIED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "most significant digit first": {"reversed": False},
    "zeros in front": {"padding": True},
    "the smaller number first": {"operand_order": "ascending"},
    "AdamW instead of Muon": {"optim.kind": "adamw"},
    "dropout 0.1": {"dropout": 0.1},
    "sequence term, weight 1": {"sequence_weight": 1.0},
    "own tokens, linear to half": {"forcing": "linear", "fall_steps": 200, "last_share": 0.5},
    "numbers of 1 and 2 digits": {"min_digits": 1},
    "the answer alone": {"work": False},
    "the answer alone, 10 x the steps": {"work": False, "max_steps": 4000},
    "the answer alone, 10 x the steps, dropout 0.1, weight decay 1": {
        "work": False, "max_steps": 4000, "dropout": 0.1, "weight_decay": 1.0,
    },
}  # fmt: skip


def tried(path: Path) -> str:
    """Train what is not in `path` yet, and return the page."""
    known = (
        {r["what"]: r for r in map(json.loads, path.read_text().splitlines())}
        if (path.exists())
        else {}
    )
    for what, settings in TRIED.items():
        if what in known:
            continue
        config = configured("laptop", **{"active": ("simple",), "max_steps": 400, **settings})
        training = Training(config)
        spent = training.run(config.train.max_steps)
        scores = training.exam("simple")
        known[what] = {"what": what, "steps": config.train.max_steps, "spent": spent, **scores}
        with path.open("a") as file:
            file.write(json.dumps(known[what]) + "\n")
        print(known[what], flush=True)
    lines = [
        *heading("What was tried", "benchmarks/multiply.py"),
        "The simple transformer of preset laptop, seed 1, one thread; exact answers to the 2-digit "
        "problems of the test set, free-running, with the interval of 95 %.",
        "",
        "| what | steps | s of processor time | exact | interval | loss of the right answer |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for r in known.values():
        lines.append(
            f"| {r['what']} | {r['steps']:,} | {r['spent']:.0f} | **{r['exact']:.1%}** | "
            f"{r['exact_low']:.1%} to {r['exact_high']:.1%} | {r['val_loss']:.4f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Do what was asked for, and write the page."""
    own = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    own.add_argument("what", choices=["costs", "latents", "tried"])
    own.add_argument("--seeds", type=int, default=3)
    own.add_argument("--work", type=float, nargs="*", default=[20.0], help="seconds each")
    own.add_argument("--no-work", type=float, nargs="*", default=[15.0], help="seconds each")
    own.add_argument("--results", type=Path)
    options = own.parse_args()
    torch.set_num_threads(1)
    if options.what == "costs":
        page, file = costs(), "multiply.md"
    elif options.what == "tried":
        page, file = tried(options.results or Path("tried.jsonl")), "multiply_tried.md"
    else:
        budgets = {True: options.work, False: options.no_work}
        results = options.results or Path("latents.jsonl")
        page, file = latents(results, options.seeds, budgets), "multiply_latents.md"
    (HERE / "results" / file).write_text(page)
    print(page)


if __name__ == "__main__":
    main()
