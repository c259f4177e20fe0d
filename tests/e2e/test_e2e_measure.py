"""`surefoot profile`, `surefoot bench`: what a person measures before and after."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

import surefoot as package
from surefoot.cli import main

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
TINY = ["--preset", "tiny", "--path", TEXT]


def test_a_recipe_is_taken_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["profile", "charlm", *TINY, "--json", "--out", str(tmp_path / "found")]) == 0
    found = json.loads(capsys.readouterr().out)
    parts = found["parts_ms"]
    assert list(parts)[:4] == ["data", "to the device", "forward", "backward"]
    inside = sum(spent for name, spent in parts.items() if name not in ("record", "save"))
    assert inside == pytest.approx(found["step_ms"], rel=1e-6)
    assert min(parts["forward"], parts["backward"], parts["optimiser"], parts["save"]) > 0
    assert found["operations"][0]["ms"] >= found["operations"][1]["ms"] > 0
    assert found["peak_bytes"] == sum(found["memory"].values()) > 100_000
    assert found["largest"][0]["bytes"] >= found["largest"][-1]["bytes"]
    assert found["data"]["examples_per_s"] > 0 and found["save_s"] > 0
    with gzip.open(tmp_path / "found" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"forward", "optimiser"} <= names
    assert (tmp_path / "found" / "step.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_taken_apart_and_stays_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = package.train(
        "charlm", preset="tiny", path=TEXT, runs=tmp_path, quiet=True, max_steps=10,
        **{"track.report": False, "track.tensorboard": False},
    ).folder  # fmt: skip
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["profile", "last", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert f"{run.name} at step 10" in told and "largest tensors then" in told
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["profile", "last", "--lr", "0.1", "--runs", str(tmp_path)]) == 2
    assert main(["profile"]) == 2


def test_slow_data_is_named_with_advice() -> None:
    from surefoot.cli.profile import _data
    from surefoot.lab.anatomy import Anatomy, Rows

    rows = Rows(order=0.0, make=0.05, move=0.001, nbytes=1000, examples=10)
    found = Anatomy(100.0, {"data": 51.0}, [], rows, 0.0, 10, None)
    assert "--prefetch-threads 2" in list(_data(found))[-1]
    quick = Anatomy(100.0, {"data": 1.0}, [], rows, 0.0, 10, None)
    assert "prefetch" not in " ".join(_data(quick))


def test_speeds_in_one_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.lab.bench.lagging", lambda _: iter([("norm", 0.5)]))
    words = ["bench", "charlm", "--preset", "tiny", "--seconds", "0.05"]
    monkeypatch.setenv("SUREFOOT_OFFLINE", "1")
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    charlm = found["recipes"][0]
    assert charlm.get("why_not") or charlm["units"] > charlm["examples"] > 0
    assert found["torch"] == torch.__version__ and found["date"] and found["operations"]


def test_a_way_that_is_slower_than_its_reference_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surefoot.lab.bench.lagging", lambda _: iter([("norm", 1.4)]))
    words = ["bench", "multiply", "--preset", "tiny", "--seconds", "0.05"]
    assert main(words) == 5
    told = capsys.readouterr()
    assert "norm takes 1.40 of its reference" in told.err and "multiply tiny" in told.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "nan"], "expected more than 0"),
        (["--seconds", "inf"], "expected more than 0"),
        (["charlm", "--preset", "nosuch"], "unknown preset nosuch"),
        (["nosuch"], "unknown recipe"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    told = capsys.readouterr()
    assert said in told.err and not told.out


def test_what_seems_slow_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.lab import bench
    from surefoot.ops.check import Speed

    answers = iter([1.3, 1.2, 0.9] + [1.0] * 99)
    monkeypatch.setattr(bench, "measure", lambda op, *_: {op.standard: Speed(1.0, next(answers))})
    found = list(bench.lagging(torch.device("cpu")))
    assert found[0][1] == 0.9 and all(ratio <= 1.0 for _, ratio in found)


def test_peers_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.cli import peers

    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    monkeypatch.delenv("NANOGPT", raising=False)
    assert "not installed" in peers._ask("litgpt", "cpu", 0.1)["why_not"]
    assert "NANOGPT" in peers._ask("nanogpt", "cpu", 0.1)["why_not"]
    assert main(["bench", "--against", "lightening"]) == 2


def test_a_peer_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.cli import peers

    monkeypatch.setattr(peers, "_PATIENCE", 0.0)
    assert "had not ended after" in peers._ask("torch", "cpu", 1e-4)["why_not"]


def test_a_loop_by_hand_is_timed() -> None:
    from surefoot.cli.peers import _ask

    found = _ask("torch", "cpu", 0.05)
    assert found["step"] > 0 and found["tokens"] == pytest.approx(768 / found["step"])
