"""`surefoot runs` and `surefoot show`, through the door."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setenv("SUREFOOT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(runs: Path, name: str | None = None, **meta: Any) -> RunFolder:
    values = {"max_steps": 200, "preset": "tiny", "tags": ["try"], **meta}
    run = RunFolder.create(runs, "charlm", name, {}, values)
    with Record(run.path) as record:
        for step in range(10, 201, 10):
            record.row("train", step, loss=1 + 10 / step, lr=1e-3, tokens_per_s=2e5)
            if step % 50 == 0:
                record.row("eval", step, val_loss=1.2 + 10 / step, top1=0.5)
        record.sample(200, "main", "ROMEO:", " hark\x1b[2J\n</script>")
    run.update(status="done", step=200, best={"main": [200, 1.25]})
    return run


def test_an_empty_place_says_how_to_begin(runs: Path, capsys: Any) -> None:
    assert main(["runs"]) == 0
    assert "surefoot train charlm" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert not runs.exists()


def test_the_list(runs: Path, capsys: Any) -> None:
    make(runs)
    make(runs, "bard").update(status="running")
    (runs / "0009-gpt").mkdir()
    (runs / "0009-gpt" / "run.json").write_text("{")
    assert main(["runs"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "recipe", "status", "step", "best", "begun"]
    assert lines[1][:6] == ["0001-charlm", "charlm", "tiny", "done", "200/200", "1.250"]
    assert lines[2][0] == "bard" and lines[2][3] == "lost" and "test," in lines[2]
    assert lines[3][:2] == ["0009-gpt", "damaged"] and "run.json:" in lines[3]


def test_a_run_of_a_later_version_is_listed_as_that(runs: Path, capsys: Any) -> None:
    make(runs, "later").update(format=99, status="running")
    assert main(["runs"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:2] == ["later", "newer"]
    assert row.endswith("run.json: format 99, newer than this Surefoot reads (1)")
    assert main(["runs", "--state", "newer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "later"
    assert main(["show", "later"]) == 2
    assert "run.json has format 99" in capsys.readouterr().err


def test_show_says_how_many_more_events_there_are(runs: Path, capsys: Any) -> None:
    begun = [
        {"first_step": step, "started": "2026-11-21T00:00:00+00:00"} for step in range(0, 80, 10)
    ]
    make(runs, "often", segments=begun)
    assert main(["show"]) == 0
    said = capsys.readouterr().out
    assert said.count("resumed") == 5 and "2 more before: surefoot show often --json" in said


def test_the_list_as_json(runs: Path, capsys: Any) -> None:
    run = make(runs)
    run.update(status="running", step=0)
    assert main(["runs", "--json", "--runs", str(runs)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "0001-charlm" and entry["status"] == "lost"
    assert entry["step"] == 200  # the record knows better than run.json
    assert entry["tags"] == ["try"] and entry["test"] is True


def test_show_fits_one_screen(runs: Path, capsys: Any) -> None:
    segments = [{"step": 0}, {"step": 100, "after": "running"}]
    run = make(runs, segments=segments, data={"name": "nine plays", "licence": "public domain"})
    (run.path / "report.html").touch()
    assert main(["show", "1"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("0001-charlm   done   charlm, preset tiny · begun ")
    assert len(lines) < 24 and "\x1b" not in text
    for part in ("200/200", "over 2 processes", "val loss 1.250, top-1 50.0 %, at step 200",
                 "200k tok/s", "nine plays; public domain", "2.000 to 1.050", "█", "resumed",
                 "without a word", "| ROMEO: hark␛[2J", str(run.path / "report.html"),
                 "surefoot sample 0001-charlm"):  # fmt: skip
        assert part in text, part


def test_show_as_json(runs: Path, capsys: Any) -> None:
    make(runs)
    assert main(["show", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == {"step": 200, "value": 1.25, "learner": "main"}
    assert found["last"]["main"]["step"] == 200 and found["sample"]["prompt"] == "ROMEO:"
    assert found["disk_bytes"] > 1000 and found["meta"]["preset"] == "tiny"


def test_show_says_how_to_go_on(runs: Path, capsys: Any) -> None:
    make(runs, "bard").update(status="failed", errors=[{"step": 7, "error": "loss is nan"}])
    assert main(["show", "bard"]) == 0
    text = capsys.readouterr().out
    assert "loss is nan" in text and "surefoot resume bard" in text


def test_show_an_empty_run(runs: Path, capsys: Any) -> None:
    RunFolder.create(runs, "charlm")
    assert main(["show"]) == 0
    assert "steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "0001-charml"], "did you mean 0001-charlm?"),
        (["show", "no/such"], "does not exist"),
        (["show", "b"], "2 runs match 'b'"),
    ],
)
def test_mistakes_are_explained(runs: Path, capsys: Any, words: list[str], said: str) -> None:
    make(runs)
    make(runs, "bard")
    make(runs, "bob")
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_run_deleted_meanwhile_is_no_traceback(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    import shutil

    from surefoot.cli import runs as room

    run = make(runs)
    read = room.read_history

    def late(path: Path) -> Any:
        shutil.rmtree(run.path)
        return read(path)

    monkeypatch.setattr(room, "read_history", late)
    assert main(["show", "1"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_several_learners(runs: Path, capsys: Any) -> None:
    run = RunFolder.create(runs, "multiply")
    with Record(run.path) as record:
        for step in range(1, 9):
            for who in ("simple", "latent"):
                record.row("train", step, who, loss=1.0 / step)
                record.row("eval", step, who, val_loss=(1.0 if who == "latent" else 2.0) / step)
    assert main(["show"]) == 0
    text = capsys.readouterr().out
    assert "at step 8 (latent)" in text and "val loss simple" in text


def test_five_hundred_runs_are_listed_fast_and_without_heavy_imports(runs: Path) -> None:
    run = make(runs)
    text = (run.path / "run.json").read_text()
    for number in range(2, 501):
        place = runs / f"{number:04d}-charlm"
        place.mkdir()
        status = "running" if number % 10 == 0 else "done"
        meta = {**json.loads(text), "number": number, "status": status}
        (place / "run.json").write_text(json.dumps(meta))
    code = (
        "import sys; from surefoot.cli import main\n"
        "calls = [0]\n"
        "def count(frame, event, what): calls[0] += event.endswith('call')\n"
        "sys.setprofile(count); main(['runs']); sys.setprofile(None)\n"
        "print(calls[0], file=sys.stderr)\n"
        "sys.exit(bool({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 501
    # Calls, for seconds are those of the machine. A guard against something quadratic; benchmarks measure it.
    assert int(done.stderr) < 500 * 700, "340 each when this was written"
