"""What is in the report, and who writes it when."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.track import report as room
from surefoot.track.folder import RunFolder
from surefoot.track.picture import Bars, Grid, Points
from surefoot.track.record import Record
from surefoot.track.report import ReportSink, refresh
from surefoot.track.settings import read_settings, value_of

CONFIG = """\
# The configuration of this run.
surefoot:
  format: 1
train:
  seed: 1                         # flag --seed
  batch_size: 64
model:
  name: "a # b: c"                # run.yaml:3:5
  nested:
    deep: [1, 2]
optim:
  clip: 0.5
resolved:  # what each auto became
  device: cpu
"""


CHARS = "abcdefghijklmnopqrstuvwx"


def make(tmp_path: Path, steps: int = 100, every: int = 1, **meta: Any) -> RunFolder:
    run = RunFolder.create(tmp_path, "charlm", None, {"config.yaml": CONFIG}, meta)
    with Record(run.path) as record:
        for step in range(every, steps + 1, every):
            values = {"loss": 3 + 1 / step, "lr": 1e-3 / step, "grad_norm": 1.23456 / step}
            record.row("train", step, **values, tokens_per_s=123456.7 + step, part=1 / step)
            if step % max(1, steps // 80) == 0:
                record.row("eval", step, val_loss=3 + 2 / step, top1=0.5, top5=0.75)
            if step % max(1, steps // 60) == 0:
                record.sample(step, "main", "ROMEO:", f"step {step} " + "words of a play " * 40)
                grid = Grid(
                    "Map", list(CHARS), list(CHARS), [[1 / step + i for i in range(24)]] * 24
                )
                record.picture(step, "main", "map", grid)
                spent = {"compute_s": step / 7, "data_s": 0.5, "memory_bytes": 1e8 + step}
                record.row("system", step, steps=10, **spent)
    run.update(status="done", step=steps)
    return run


def data(page: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_settings_are_read_with_their_sources() -> None:
    found = read_settings(CONFIG)
    assert [(s.field, s.value, s.source, s.quiet) for s in found] == [
        ("train.seed", "1", "flag --seed", False),
        ("train.batch_size", "64", "", True),
        ("model.name", '"a # b: c"', "run.yaml:3:5", False),
        ("model.nested.deep", "[1, 2]", "", True),
        ("optim.clip", "0.5", "", True),
    ]
    assert value_of(found, "optim.clip") == "0.5" and value_of(found, "optim.lr") is None


def test_twenty_thousand_steps_fit_into_300_kilobytes(tmp_path: Path) -> None:
    page = refresh(make(tmp_path, 20_000).path, pictures=False)
    assert page.stat().st_size <= 300_000
    loss = data(page)["figures"][0]["curves"][0]
    assert 1000 < len(loss["steps"]) <= 2000
    assert loss["steps"][0] == 1 and loss["steps"][-1] == 20_000


def test_two_learners_with_all_there_is_fit_as_well(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "multiply", None, {"config.yaml": CONFIG}, {})
    with Record(run.path) as record:
        for step in range(10, 20_001, 10):
            for who in ("simple", "latent"):
                values = {"loss": 3 / step + step % 7, "lr": 1 / step, "grad_norm": step % 11}
                record.row(
                    "train", step, who, **values, tokens_per_s=1e5 + step % 97, part=step % 13
                )
                if step % 250 == 0:
                    record.row("eval", step, who, val_loss=3 / step, top1=0.5, top5=0.6)
                    record.sample(step, who, "x", "words " * 300)
                    values = [[i * j / 7 + step for i in range(40)] for j in range(40)]
                    record.picture(step, who, "m", Grid("m", ["r"] * 40, ["c"] * 40, values))
            record.note("said " * 100)
    assert refresh(run.path, pictures=False).stat().st_size <= 300_000


def test_values_that_are_not_finite_are_no_obstacle(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "charlm", None, {}, {})
    bad, names = [math.nan, math.inf], ["a", "b"]
    with Record(run.path) as record:
        for step in (10, 20):
            record.row("train", step, loss=math.nan, lr=math.inf, grad_norm=-math.inf)
            record.row("system", step, compute_s=math.nan, memory_bytes=math.inf)
            record.row("eval", step, val_loss=math.nan, top1=math.inf)
            record.picture(step, "main", "bars", Bars("t", names, bad))
            record.picture(step, "main", "no bars", Bars("t", [], []))
            record.picture(step, "main", "grid", Grid("t", names, names, [bad, bad]))
            record.picture(step, "main", "no grid", Grid("t", [], [], []))
            record.picture(step, "main", "points", Points("t", bad, bad))
    with (run.path / "pictures.jsonl").open("a") as file:
        file.write('{"kind": "bars", "name": "odd", "labels": [[]], "values": [{}]}\n')
    found = data(refresh(run.path))
    assert found["figures"][0]["curves"][0]["values"] == [None, None]
    assert (run.path / "plots" / "picture-no-grid.png").exists()
    assert not (run.path / "plots" / "picture-odd.png").exists()


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    text = refresh(make(tmp_path).path).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:|//)""", text)
    assert not re.search(r"url\(\s*[\"']?\s*(?:https?:|//)|@import|fetch\(|XMLHttpRequest", text)
    assert "Copyright (c) 2022 Leon Sorokin" in text  # uPlot's licence asks for that
    assert text.count("<script") == 3


def test_it_says_what_the_files_say(tmp_path: Path) -> None:
    run = make(
        tmp_path, max_steps=100, seed=7, git={"commit": "a91c2ef00dbeef", "dirty": True},
        data={"name": "shakespeare9", "licence": "public domain", "train": [0, 1000]},
        machine={"cpu": "Some CPU", "memory": 16e9}, versions={"surefoot": "9.9", "torch": "2.13"},
    )  # fmt: skip
    page = refresh(run.path)
    text = page.read_text(encoding="utf-8")
    for part in ("shakespeare9", "public domain", "0 to 1,000", "Some CPU", "16 GB", "9.9",
                 "a91c2ef00dbe with uncommitted changes", "flag --seed", "run.yaml:3:5",
                 "also the 3 defaults", "plots/loss.png"):  # fmt: skip
        assert part in text, part
    found = data(page)
    assert found["live"] is False and found["run"]["place"] == "100/100"
    assert ["3.020", "best validation loss, step 100"] in found["tiles"]
    assert found["tiles"][0] == ["100", "of 100 steps"]
    assert found["figures"][0]["best"]["step"] == 100
    assert (run.path / "plots" / "loss.png").exists()
    script = (run.path / "plots" / "data.js").read_text(encoding="utf-8")
    assert json.loads(script.strip()[len("surefoot(") : -1]) == found


def test_samples_are_few_even_and_bounded(tmp_path: Path) -> None:
    run = make(tmp_path, 600)
    (group,) = data(refresh(run.path, pictures=False))["samples"]
    steps = [item["step"] for item in group["items"]]
    assert len(steps) == 40 and steps[0] == 10 and steps[-1] == 600 and steps == sorted(steps)
    assert max(len(item["text"]) for item in group["items"]) <= 1500
    with Record(run.path, 1, 600) as record:
        for who in range(30):
            record.sample(600, f"learner{who}", "", "x" * 5000)
    groups = data(refresh(run.path, pictures=False))["samples"]
    assert sum(len(item["text"]) for g in groups for item in g["items"]) <= 60_000
    assert groups[1]["title"] == "learner0: (start of a line)"


def test_text_of_a_model_stays_text(tmp_path: Path) -> None:
    run = make(tmp_path)
    evil = "</script><script>alert(1)</script>\u2028<!--<script>&amp;\x1b[2J\ud800"
    with Record(run.path, 1, 100) as record:
        record.sample(101, "main", evil, evil)
        record.row("event", 101, event=evil, why=evil)
    run.update(errors=[{"step": 1, "error": evil}, "text"], tags=[evil], data={evil: evil})
    page = refresh(run.path, pictures=False)
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 3 and text.count("</script>") == 3 and "alert(1)" in text
    assert "\x1b" not in text and "\u2028" not in text
    groups = data(page)["samples"]
    assert groups[1]["items"][0]["text"].startswith("</script><script>alert(1)</script>")


def test_running_lost_and_damaged_runs_say_so(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.update(status="running")
    with run.lock():
        assert data(refresh(run.path, pictures=False))["live"] is True
    found = data(refresh(run.path, pictures=False))
    assert found["live"] is False and found["run"]["status"] == "lost"
    assert f"surefoot resume {run.name}" in found["alert"]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("rubbish\n")
    assert "1 damaged line (" in data(refresh(run.path, pictures=False))["alert"]


def test_runs_without_anything_in_them(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "charlm")
    found = data(refresh(run.path))
    assert found["figures"] == [] and found["samples"] == [] and found["tiles"][0][0] == "0"
    with pytest.raises(RunError):
        refresh(tmp_path / "nothing")


def test_rubbish_in_run_json_does_not_stop_it(tmp_path: Path) -> None:
    run = make(
        tmp_path, segments=["x", None, 3], errors=["x", 3], machine={"a": [1]}, data=None,
        tags=None, pinned={"why": ["a", {"b": [1, 2]}], "on": True}, created="x",
        best={"main": "x"}, versions={"x": None}, ended=5, seed=[],
    )  # fmt: skip
    assert "yes" in refresh(run.path, pictures=False).read_text(encoding="utf-8")


def test_the_command_writes_it_without_torch(tmp_path: Path) -> None:
    run = make(tmp_path)
    code = (
        "import sys; from surefoot.track.report import refresh; from pathlib import Path\n"
        "refresh(Path(sys.argv[1]), pictures=False)\n"
        "sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert done.returncode == 0 and (run.path / "report.html").exists()


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Child:
    """A child process that takes as long as the test says."""

    made: list[Child]

    def __init__(self, command: list[str], **options: Any) -> None:
        assert options["start_new_session"]
        assert command[1:4] == ["-P", "-m", "surefoot.track.report"]
        self.nice = "--nice" in command
        self.pictures, self.code = "--pictures" in command, 0
        self.alive, self.waited, self.killed = True, False, False
        Child.made.append(self)

    def poll(self) -> int | None:
        return None if self.alive else self.code

    def wait(self, timeout: float | None = None) -> int:
        self.waited = True
        return self.code

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    made = Clock()
    Child.made = []
    monkeypatch.setattr(room, "time", made)
    monkeypatch.setattr(room.subprocess, "Popen", Child)
    return made


def test_one_child_at_a_time_at_evaluations(tmp_path: Path, clock: Clock) -> None:
    sink = ReportSink(tmp_path)
    sink.row({"kind": "eval"})
    assert Child.made == []  # a run of a few seconds needs only the last one
    clock.now = 6
    sink.row({"kind": "train"})  # the first comes without waiting for an evaluation
    assert len(Child.made) == 1
    clock.now = 20
    sink.row({"kind": "eval"})
    assert len(Child.made) == 1  # still at work
    Child.made[0].alive = False
    sink.row({"kind": "train"})
    assert len(Child.made) == 1
    sink.row({"kind": "eval"})
    assert len(Child.made) == 2 and not Child.made[1].pictures
    Child.made[1].alive = False
    clock.now = 70
    sink.row({"kind": "eval"})
    assert Child.made[2].pictures
    sink.close()
    assert Child.made[2].waited and Child.made[3].waited and Child.made[3].pictures
    assert [child.nice for child in Child.made] == [True, True, True, False], (
        "the last is waited for"
    )


def test_a_report_that_cannot_be_written_is_told(tmp_path: Path, clock: Clock) -> None:
    with Record(tmp_path, 0, 0, [ReportSink(tmp_path)]) as record:
        clock.now = 6
        record.row("train", 1)
        Child.made[0].code = 1
        Child.made[0].alive = False

        def failing(command: list[str], **options: Any) -> Child:
            child = Child(command, **options)
            child.code = 1
            return child

        room.subprocess.Popen = failing  # type: ignore[misc, assignment]
    assert "the report is switched off: OSError: could not be" in (tmp_path / "log.txt").read_text()


def test_a_child_that_hangs_is_ended(tmp_path: Path, clock: Clock, monkeypatch: Any) -> None:
    def hang(self: Child, timeout: float | None = None) -> int:
        if timeout is not None:
            raise subprocess.TimeoutExpired("report", timeout)
        return -9

    monkeypatch.setattr(Child, "wait", hang)
    sink = ReportSink(tmp_path)
    with pytest.raises(OSError, match="could not be written"):
        sink.close()
    assert Child.made[0].killed


def test_a_real_child_writes_it_at_the_end(tmp_path: Path) -> None:
    run = make(tmp_path)
    sink = ReportSink(run.path)
    sink.close()
    assert (run.path / "report.html").exists() and (run.path / "plots" / "loss.png").exists()
