"""What the record costs: `python benchmarks/record.py` writes benchmarks/results/record.md.

CPU time of this process, so that other programs matter little; kinds are interleaved and the
median of the rounds counts. Logging is measured with every sink of a run that is written to a
pipe; the report of two million rows runs in a process of its own, whose CPU time and peak of
memory count.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from machine import goal, heading

from surefoot.config.model import GPTConfig
from surefoot.config.schema import Optim
from surefoot.data.batch import Data
from surefoot.data.text import TextSource, load_text
from surefoot.engine import Learner, Loss, TrainState, World, steps
from surefoot.engine.watch.meter import Meter
from surefoot.nn.gpt import GPT
from surefoot.nn.optim import build_optimisers
from surefoot.track.console import open_console
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record
from surefoot.track.tensorboard import TensorBoard

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "tests" / "fixtures" / "shakespeare.txt"
ROUNDS, ROWS, STEPS = 7, 2000, 20
MILLION = 1_000_000
REPORT = "from surefoot.track.report import refresh; refresh(Path(sys.argv[1]), pictures=False)"
SHOW = "from surefoot.cli import main; main(['show', sys.argv[1]])"
COMPARE = "from surefoot.cli import main; main(['compare', *sys.argv[1:], '--runs', '{runs}'])"
LIST = "from surefoot.cli import main; main(['runs', '--runs', '{runs}'])"
MOST, ROOM, QUICK = 5.0, 200.0, 0.15  # seconds, MB, seconds for a list
CHILD = """
import os, sys
from pathlib import Path
{work}
peak = next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]
print(sum(os.times()[:4]), peak, file=sys.stderr)  # seconds, also of children, and KiB
"""


def cpu(work: Callable[[], object]) -> float:
    """Return the seconds of CPU time that `work` takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def log(kind: str) -> None:
    """Write `ROWS` train rows to a new record: files alone, or with every sink."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        sinks = [TensorBoard(path / "tb"), open_console(ROWS, stream=io.StringIO())]
        with Record(path, 0, 0, sinks if kind == "all" else ()) as record:
            meter = Meter()
            for step in range(1, ROWS + 1):
                record.row(
                    "train", step, loss=2.345678901, lr=1e-3 / step, grad_norm=0.8123,
                    tokens_per_s=18234.5,
                )  # fmt: skip
                if kind == "all" and step % 10 == 0:
                    record.row("system", step, **meter.system(torch.device("cpu")))


def laptop() -> Iterator[object]:
    """Return the steps of the laptop preset's model, on one thread in fp32."""
    config = GPTConfig(d_model=128, num_layers=4, num_heads=4, context=64)
    text = load_text(TEXT, None, val_ratio=0.1, vocabulary="char")
    source = text.source(64)
    assert isinstance(source, TextSource)
    model = GPT(config, text.tokenizer.vocab_size, seed=1)
    learner = Learner(
        model,
        lambda m, batch: Loss(m(batch.fields["x"], batch.fields["y"])),
        build_optimisers(model, Optim()),
    )
    state = TrainState({"main": learner})
    return steps(state, Data(source, 1, 12), 1, World(torch.device("cpu")))


def logging() -> list[str]:
    """Return the lines about what a row costs, beside a step."""
    torch.set_num_threads(1)
    reports = laptop()
    list(islice(reports, 5))
    seconds: dict[str, list[float]] = {"files": [], "all": [], "step": []}
    log("all")  # imports
    for _ in range(ROUNDS):
        for kind in ("files", "all"):
            seconds[kind].append(cpu(lambda kind=kind: log(kind)) / ROWS)  # type: ignore[misc]
        seconds["step"].append(cpu(lambda: list(islice(reports, STEPS))) / STEPS)
    step = statistics.median(seconds["step"])
    lines = [f"A step of the laptop preset (fp32, 1 thread) takes {1e3 * step:.1f} ms.", ""]
    lines += ["| logging every step | µs a step | of a step |", "|---|---:|---:|"]
    names = {"files": "metrics.jsonl", "all": "and system.jsonl, TensorBoard, console in a pipe"}
    for kind, name in names.items():
        value = statistics.median(seconds[kind])
        lines.append(f"| {name} | {1e6 * value:.1f} | {value / step:.2%} |")
    return lines


def long_run(runs: Path, name: str, rows: int) -> RunFolder:
    """Make a run of many rows."""
    run = RunFolder.create(runs, "charlm", name, {}, {"max_steps": rows})
    with (run.path / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, rows + 1):
            head = {"kind": "train", "step": step, "learner": "main", "segment": 0, "time": step}
            values = {"loss": 3 + 1 / step, "lr": 1e-3, "grad_norm": 0.8, "tokens_per_s": 18234.5}
            file.write(json.dumps({**head, **values}) + "\n")
    run.update(status="done", step=rows)
    return run


def ask(work: str, *arguments: str) -> tuple[float, float]:
    """Return the CPU seconds and the peak of memory, in MB, of a process that does `work`."""
    command = [sys.executable, "-c", CHILD.format(work=work), *arguments]
    spent, peak = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stderr.split()[-2:]
    return float(spent), int(peak) / 1e3


def reading() -> list[str]:
    """Return the lines about reading two million rows, and about listing many runs."""
    lines, goals = ["| | CPU seconds | peak memory |", "|---|---:|---:|"], []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        whole, half, other = (
            str(long_run(runs, name, rows).path)
            for name, rows in (("whole", 2 * MILLION), ("half", MILLION), ("other", MILLION))
        )
        works = {
            "report.html": (REPORT, whole), "surefoot show": (SHOW, whole),
            "surefoot compare, with its page, of two runs that share them":
                (COMPARE.format(runs=runs), half, other),
        }  # fmt: skip
        for name, work in works.items():
            spent, peak = ask(*work)
            lines.append(f"| two million rows: {name} | {spent:.1f} | {peak:.0f} MB |")
            goals.append(goal(f"two million rows, {name}", spent, MOST, least=False, unit="s"))
            goals.append(goal(f"its memory, {name}", peak, ROOM, least=False, unit="MB"))
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(500):
            RunFolder.create(Path(folder), "charlm", None, {}, {"max_steps": 100})
        work = LIST.format(runs=folder)
        found = [ask(work) for _ in range(ROUNDS)]
        spent, peak = (statistics.median(side) for side in zip(*found, strict=True))
        lines.append(f"| surefoot runs, 500 of them | {spent:.2f} | {peak:.0f} MB |")
        goals.append(goal("listing 500 runs", spent, QUICK, least=False, unit="s"))
    return [*lines, "", *goals]


def main() -> None:
    """Measure, print, and write the page."""
    head = heading("What the record costs", "benchmarks/record.py")
    head += [
        "Processor time: medians of interleaved rounds for rows, whole processes for reading.", "",
    ]  # fmt: skip
    text = "\n".join([*head, *logging(), "", *reading()]) + "\n"
    print(text)
    (HERE / "results" / "record.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
