"""A device that does not answer any more: what a run says then, and how it goes on.

Every later call of the same process fails on such a device, so nothing is tried again here. What lies
on the disk is whole: the checkpoints, and the journal of the steps after the newest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from surefoot.engine import faults
from surefoot.engine.saver import Saver
from surefoot.engine.state import TrainState
from surefoot.engine.store import Store
from surefoot.errors import DeviceLost

__all__ = ["answering", "anywhere", "lost"]

_LOOK = "nvidia-smi and the kernel's log (dmesg, Xid) say what is wrong with it"


def lost(error: Exception, where: str | None, back: str) -> DeviceLost:
    """Return the error for a device that does not answer; `back` says how to go on when it does again."""
    said = str(error).partition("\n")[0]
    fix = f"{back} when it is back; {_LOOK}"
    return DeviceLost(f"the device does not answer any more: {said}", where=where, fix=fix)


def anywhere(error: Exception) -> DeviceLost | None:
    """Return the same for a command that neither trains nor begins; None where no device is lost."""
    return lost(error, None, "try it again") if faults.device_lost(error) else None


@contextmanager
def answering(
    device: torch.device, state: TrainState, saver: Saver, store: Store
) -> Iterator[None]:
    """Raise DeviceLost for whatever a lost device makes training raise, after the save in flight.

    `store` is looked at by this process alone: the others of a group may be waiting for it.
    """
    try:
        yield
    except Exception as error:
        if not faults.device_lost(error):
            raise
        saver.wait()
        raise lost(error, f"{device}, after step {state.step}", _back(state.step, store)) from error


def _back(step: int, store: Store) -> str:
    run = store.folder.parent.name
    found = [each.step for each in store.checkpoints() if each.resumable]
    if not found:
        return f"surefoot resume {run} begins again"
    again = step - max(found)
    steps = f"{again} steps" if again > 1 else "step"
    proof = f" and compares the {steps} after it" if again > 0 else ""
    return f"surefoot resume {run} goes on from the checkpoint of step {max(found)}{proof}"
