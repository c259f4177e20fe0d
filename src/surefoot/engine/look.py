"""Look at a model without leaving a trace: its own random key, and a second try."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from surefoot.engine import faults
from surefoot.engine.learner import Learner
from surefoot.engine.random import rekey
from surefoot.errors import OutOfResources

__all__ = ["look_at"]

T = TypeVar("T")


def look_at(learner: Learner, key: int, look: Callable[[nn.Module], T]) -> T:
    """Return what `look` finds in the learner's model, in eval mode, with randomness from `key`.

    When memory runs out it is released and `look` begins anew, once, from the same key. Raises
    OutOfResources when that does not fit either.
    """
    for trial in (1, 2):
        rekey(key, learner.device)
        try:
            with learner.evaluating() as model:
                return look(model)
        except Exception as error:
            if not faults.out_of_memory(error):
                raise
            faults.release(error)
            why = str(error).partition("\n")[0]
            if trial == 2:
                raise OutOfResources(
                    f"out of memory while looking at the model: {why}",
                    where=f"step {learner.step}",
                    fix="a smaller batch to evaluate (data.val_batch), then: surefoot resume",
                ) from None
    raise AssertionError("unreachable")
