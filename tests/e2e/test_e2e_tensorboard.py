"""A real TensorBoard server, with both of its loaders, on a run that was killed twice."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from surefoot.track.folder import RunFolder

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

PATIENCE = 600.0  # seconds until a test gives up

PROCESS = """
import os, sys
from pathlib import Path
from surefoot.track.folder import RunFolder
from surefoot.track.record import Record
from surefoot.track.tensorboard import TensorBoard
path, segment, first, last = Path(sys.argv[1]), *map(int, sys.argv[2:5])
learners = {name: first for name in sys.argv[5:]}
run = RunFolder.open(path)
sink = TensorBoard(path / "tb", segment, first)
record = Record(path, segment, first, [sink], learners)
after = run.meta["status"] if segment else "running"
run.update(segments=[*run.meta["segments"], {"step": first, "after": after}], status="running")
for step in range(first + 1, last + 1):
    for name in learners:
        record.row("train", step, name, loss=1 + 1 / step + segment / 1000, lr=1e-3)
        if step % 10 == 0:
            record.row("eval", step, name, val_loss=2 + 1 / step)
            record.sample(step, name, "ROMEO:", f"step {step}")
record.sync()
if last < 90:
    os.kill(os.getpid(), 9)
record.close()
"""


def live(run: RunFolder, *learners: str) -> None:
    """Train in three processes: to 50, from 30 to 70, from 60 to 90; two of them are killed."""
    for segment, (first, last) in enumerate(((0, 50), (30, 70), (60, 90))):
        words = [str(run.path), str(segment), str(first), str(last), *learners]
        done = subprocess.run([sys.executable, "-c", PROCESS, *words], check=False)
        assert done.returncode == (0 if last == 90 else -signal.SIGKILL)


def hear_interrupts() -> None:
    """Undo what a shell does to programs in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def server(runs: Path, fast: bool) -> Iterator[str]:
    """Start `surefoot tb` on all runs; give the address that it prints."""
    words = ["-m", "surefoot", "tb", "--runs", str(runs), "--port", "0", "--"]
    words.append(f"--load_fast={str(fast).lower()}")
    child = subprocess.Popen(
        [sys.executable, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "no_proxy": "*"}, preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert child.stderr is not None
    try:
        said = b""
        while not (found := re.search(rb"(http://\S+:\d+/)", said)):
            ready, _, _ = select.select([child.stderr], [], [], PATIENCE)
            block = os.read(child.stderr.fileno(), 1 << 16) if ready else b""
            assert block, said.decode()
            said += block
        yield re.sub(r"//[^:]+:", "//127.0.0.1:", found[1].decode())
    finally:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(PATIENCE)
        child.stderr.close()


def ask(address: str, path: str, **query: str) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"{address}data/{path}?{urllib.parse.urlencode(query)}"
    with opener.open(url, timeout=PATIENCE) as answer:
        return json.load(answer)


def eventually(check: Callable[[], None]) -> None:
    """Wait until `check` holds: a loader reads piece by piece, and asks nobody whether it is looked at."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(AssertionError, LookupError, ValueError, OSError):
            check()
            return
        time.sleep(0.1)
    check()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tb") / "runs"
    config = "model:\n  d_model: 32\noptim:\n  lr: 0.003\n  kind: muon\n"
    for name, learners in (("alone", ["main"]), ("pair", ["old", "new"])):
        run = RunFolder.create(place, "charlm", name, {"config.yaml": config})
        live(run, *learners)
    pruned = place / ".trash" / "20260101T000000" / "gone" / "tb"
    shutil.copytree(place / "alone" / "tb", pruned)
    (place / "alone" / "plots").mkdir()
    from surefoot.track.figures import Curve, Figure
    from surefoot.track.plots import write_plots
    from surefoot.track.tensorboard import rebuild

    write_plots(
        place / "alone" / "plots",
        [Figure("loss", "Loss", [Curve("train", "main", "train", [1, 2], [2.0, 1.0])])],
        [],
    )
    shutil.copytree(place / "alone", place / "again")
    assert rebuild(RunFolder.open(place / "again")) == 90 + 9
    return place


@pytest.mark.parametrize("fast", [False, True], ids=["python loader", "data server"])
def test_both_loaders_show_one_curve(runs: Path, fast: bool) -> None:
    if fast and not list(Path(sys.prefix).rglob("tensorboard_data_server/bin/server")):
        pytest.skip("no data server for this machine")
    with server(runs, fast) as address:
        eventually(lambda: shown(address))


def shown(address: str) -> None:
    """Check what a server shows of all runs."""
    tags = ask(address, "plugin/scalars/tags")
    assert set(tags) == {"alone", "again", "pair/old", "pair/new"}  # and none from the trash
    for run in tags:
        points = ask(address, "plugin/scalars/scalars", run=run, tag="loss/train")
        assert [step for _, step, _ in points] == list(range(1, 91)), run
        values = [1 + 1 / s + (0 if s <= 30 else 1 if s <= 60 else 2) / 1000 for s in range(1, 91)]
        assert [value for _, _, value in points] == pytest.approx(values, abs=1e-6)
        points = ask(address, "plugin/scalars/scalars", run=run, tag="loss/val")
        assert [step for _, step, _ in points] == list(range(10, 91, 10)), run
        for process, step in ((2, 30), (3, 60)):
            tag = f"resumes/process {process}"
            ends = ask(address, "plugin/scalars/scalars", run=run, tag=tag)
            assert [end[1] for end in ends] == [step, step + 1]
            said = tags[run][tag]["description"]
            assert f"went on after step {step}: the process before ended without" in said
        samples = ask(address, "plugin/text/text", run=run, tag="samples/text_summary")
        assert [sample["step"] for sample in samples] == list(range(10, 91, 10))
    (image,) = ask(address, "plugin/images/images", run="again", tag="plots/loss", sample="0")
    assert image["step"] == 90
    found = ask(address, "plugin/hparams/experiment", request="{}")
    assert {"optim.kind", "model.d_model"} <= {entry["name"] for entry in found["hparamInfos"]}
    assert "Loss" in json.dumps(ask(address, "plugin/custom_scalars/layout"))
