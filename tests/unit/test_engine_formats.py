"""Files of every released format are read for ever; the fixtures here are never written anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from surefoot.engine.journal import Event, Kind
from surefoot.engine.store import Store
from surefoot.engine.tape import Tape

FIXTURES = Path(__file__).parents[1] / "fixtures"
RUN = "2f9ab0842b3041318be26636d35e3641"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of what a release with format 1 left: a checkpoint of step 4, a journal to step 6."""
    return Path(shutil.copytree(FIXTURES / "format1", tmp_path / "run"))


def test_a_checkpoint_of_format_1(old: Path) -> None:
    checkpoint, payload, aside = Store(old / "checkpoints", RUN).newest()
    assert checkpoint is not None and payload is not None and aside == []
    assert (checkpoint.step, checkpoint.metric, checkpoint.resumable) == (4, None, True)
    assert payload.small["learners"]["main"] == {
        "step": 4, "updates": 3, "micro": 4, "lr_factor": 1.0, "loss_scale": 1.0,
        "memory": {"bad_steps": 1},
    }  # fmt: skip
    names = {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert set(payload.tensors["main.model.safetensors"]) == names
    assert set(payload.tensors["main.ema.safetensors"]) == names
    moments = payload.tensors["main.optim.safetensors"]
    assert set(moments) == {f"{n}/{m}" for n in names for m in ("exp_avg", "exp_avg_sq", "step")}
    assert moments["0.bias/step"].item() == 3.0
    weight = payload.tensors["main.model.safetensors"]["3.bias"]
    assert weight.numpy().tobytes().hex() == "0cf7afbe"


def test_a_journal_of_format_1(old: Path) -> None:
    checkpoint = Store(old / "checkpoints", RUN).checkpoints()[0]
    tape = Tape(old / "journal", RUN, ["main"], checkpoint.manifest["places"])
    assert tape.notes == [] and tape.ahead == 2
    tape.rewind({})
    assert tape.ahead == 6
    records = [record for _, record in tape.journal.records() if record is not None]
    assert [r.kind for r in records[:3]] == [Kind.SEGMENT, Kind.STEP, Kind.STEP]
    skip = records[4]
    assert (skip.code, skip.step, skip.value) == (Event.SKIP, 4, 1.5210744142532349)
    step = records[7]
    assert (step.step, step.micro, step.digest) == (6, 4, 9227633659991327993)
    assert (step.seed, step.value) == (8098587242059769717, 37396642122.0)
    assert (step.loss, step.norm) == (2.0094287395477295, 2.073946475982666)
    tape.close()
