"""Optuna, where it is installed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["load", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out its warnings: it calls experimental what has been there for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load() -> Any:
    """Return the library, silent. Raises ImportError where it is not installed."""
    with quiet():
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
