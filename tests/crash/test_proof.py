"""A resume proves itself: what was recorded is compared bit for bit with what is computed again."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from harness import Zygote
from trials import CONDITIONS, DONE

from surefoot.engine.codec import digest
from surefoot.engine.store import seal

DIFFERS = 5
RARELY = {"cadence.save_every": 6, "cadence.validate_every": 0, "keep.best": 0}
TOY = CONDITIONS["plain"]
MODEL, OPTIM = "main.model.safetensors", "main.optim.safetensors"


def halted(zygote: Zygote, runs: Path) -> Path:
    """A run killed at step 10, with its newest checkpoint at step 6; return the run's folder."""
    assert TOY.play(zygote, runs, kill_at=10, settings=RARELY).killed
    return runs / "trial"


def nudged(run: Path, file: str, place: float) -> None:
    """Change one number of a checkpoint by one unit in the last place, and seal it again."""
    path = run / "checkpoints" / "step-000000006"
    data = bytearray((path / file).read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    at = start + int(place * ((len(data) - start) // 4 - 1)) * 4
    old = np.frombuffer(data[at : at + 4], "float32")
    data[at : at + 4] = np.nextafter(old, np.float32(np.inf)).tobytes()
    (path / file).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    size, hashed = digest(path / file)
    manifest["files"][file] = {"size": size, "xxh3_128": hashed}
    (path / "manifest.json").write_bytes(seal(manifest))


def test_an_honest_resume_says_what_it_proved(stage: Any) -> None:
    with stage.zygote() as zygote, stage.folder() as runs:
        halted(zygote, runs)
        outcome = TOY.play(zygote, runs, settings=RARELY)
        assert outcome.code == DONE and outcome.answer["proven"] == 4, outcome.error
        assert "resume proven over 4 steps" in (runs / "trial" / "log.txt").read_text()


def test_one_unit_in_the_last_place_is_found_at_the_first_step(stage: Any, tally: Any) -> None:
    """Of any weight or moment, though loss and norm may round it away for many steps."""

    def trial(zygote: Zygote, runs: Path, case: tuple[str, float]) -> tuple[Any, str | None]:
        run = halted(zygote, runs)
        nudged(run, *case)
        outcome = TOY.play(zygote, runs, settings=RARELY)
        found = re.search(r"state checksum of step 7 was (\d+), is now (\d+)", outcome.error)
        if outcome.code != DIFFERS or not found:
            return case, f"exit code {outcome.code}\n{outcome.error[-800:]}"
        meta = json.loads((run / "run.json").read_text())
        said = meta["status"] == "failed" and "is not exact" in meta["errors"][-1]["error"]
        return case, None if said else "run.json does not say so"

    places = [(file, i / 5) for file in (MODEL, OPTIM) for i in range(6)]
    tally.check(stage.each(trial, places))


RECORD = struct.Struct("<BBHIQQQffd")


def rewritten(run: Path, step: int, **changes: Any) -> None:
    """Change the record of a step in the journal, with a checksum that holds."""
    names = ("kind", "learner", "code", "micro", "step", "digest", "seed", "loss", "norm", "value")
    data = bytearray((run / "journal").read_bytes())
    for number in range(1, len(data) // 56):
        body = data[56 * number : 56 * number + 48]
        values = dict(zip(names, RECORD.unpack(body)))
        if values["kind"] == 1 and values["step"] == step:
            body = RECORD.pack(*(values | changes).values())
            checksum = xxhash.xxh3_64_intdigest(body, seed=number)
            data[56 * number : 56 * number + 56] = body + struct.pack("<Q", checksum)
    (run / "journal").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": 1.5}, "loss of step 9"),
        ({"norm": 1.5}, "gradient norm of step 9"),
        ({"digest": 7}, "which examples of step 9"),
        ({"seed": 7}, "seed of step 9"),
        ({"micro": 8}, "examples a pass of step 9"),
        ({"value": 1.0}, "state checksum of step 9"),
        ({"kind": 2, "code": 1}, "an event of step 9"),
    ],
)
def test_a_record_that_says_otherwise_stops_the_resume(
    stage: Any, change: dict[str, Any], words: str
) -> None:
    with stage.zygote() as zygote, stage.folder() as runs:
        rewritten(halted(zygote, runs), 9, **change)
        outcome = TOY.play(zygote, runs, settings=RARELY)
        assert outcome.code == DIFFERS and words in outcome.error, outcome.error
        assert "versions, machine and threads are as they were" in outcome.error
