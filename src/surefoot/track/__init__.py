"""The record of a run: its folder, its rows and samples, and everything that reads them.

The files are the truth (`metrics.jsonl`, `samples.jsonl`, `run.json`); console, TensorBoard,
plots and report only show them. This room knows no torch, trains nothing, and never lets a full
disk or a broken display end a training run.
"""

from __future__ import annotations

from surefoot.track.folder import RunFolder, find, list_runs, runs_dir
from surefoot.track.record import Record, Sink

__all__ = ["Record", "RunFolder", "Sink", "find", "list_runs", "runs_dir"]
