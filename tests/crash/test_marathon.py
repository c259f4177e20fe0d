"""Two thousand steps through two hundred deaths, damage and full disks."""

from __future__ import annotations

import errno
import json
import random
from pathlib import Path
from typing import Any

import pytest
from harness import KILL, Zygote, traces
from trials import CONDITIONS, DONE, differences, go_on

DEATHS = 200
SETTINGS = {
    "train.max_steps": 2000, "cadence.log_every": 10, "cadence.validate_every": 100,
    "cadence.sample_every": 250, "cadence.save_every": 20, "keep.milestones": 500,
}  # fmt: skip
TOY = CONDITIONS["plain"]


def spoil(run: Path, draw: random.Random) -> None:
    """Flip one byte of the newest checkpoint, where there is one to fall back to."""
    found = sorted((run / "checkpoints").glob("step-*"))
    files = sorted(found[-1].iterdir()) if len(found) > 1 else []
    if files:
        path = draw.choice(files)
        data = bytearray(path.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)


def done(run: Path) -> bool:
    meta = run / "run.json"
    return meta.exists() and json.loads(meta.read_text())["status"] == "done"


def disturb(zygote: Zygote, runs: Path, draw: random.Random) -> bool:
    """Play one process that does not get far; return whether it was killed."""
    fault = draw.choice([KILL, KILL, KILL, KILL, -errno.ENOSPC, errno.EIO])
    arm = (runs, draw.randint(1, 110), fault)
    late = {"die_after": draw.uniform(0.01, 0.12)} if draw.random() < 0.3 or fault != KILL else {}
    outcome = TOY.play(zygote, runs, settings=SETTINGS, arm=arm, wait_for_saves=False, **late)
    assert outcome.code in (None, DONE, 2, 4), outcome.error
    return outcome.killed


@pytest.mark.slow
def test_a_marathon(stage: Any, tally: Any) -> None:
    draw = random.Random(14)
    with stage.zygote() as zygote, stage.folder() as calm, stage.folder() as runs:
        assert TOY.play(zygote, calm, settings=SETTINGS).code == DONE
        expected = traces(calm / "trial")
        deaths, starts = 0, 0
        while deaths < DEATHS and not done(runs / "trial"):
            deaths += disturb(zygote, runs, draw)
            starts += 1
            if draw.random() < 0.1 and not done(runs / "trial"):
                spoil(runs / "trial", draw)
        wrong = go_on(lambda runs: TOY.play(zygote, runs, settings=SETTINGS), runs)
        wrong = wrong or differences(expected, runs / "trial", "steps kept")
        real = [w for w in (wrong or "").split(", ") if w and "damaged" not in w]
        tally.check([(f"{deaths} deaths in {starts} starts", ", ".join(real) or None)])
        assert deaths == DEATHS
