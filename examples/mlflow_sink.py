"""Show a run in MLflow, without a server and without MLflow: files in the layout that it reads.

    surefoot train charlm --track.sinks examples/mlflow_sink.py
    MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns    # MLflow 3; it is optional

A sink is told everything that goes into a run's record, after it is in the record's own files.
It may fail: then it is switched off with a note, and training goes on. `rewind` is what makes a
resume seamless: the steps after it will come again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surefoot.track import Sink
from surefoot.track.settings import read_settings

STORE = Path("mlruns")  # in the working directory, where MLflow looks by default
EXPERIMENT = "1"
RUNNING, FINISHED = 1, 3  # states as MLflow numbers them
PLACE = ("kind", "step", "learner", "segment", "time")


class MLflowFiles(Sink):
    """Appends to one file a metric: `milliseconds value step`."""

    name = "the MLflow files"

    def __init__(self, run: Path) -> None:
        self.run = json.loads((run / "run.json").read_text(encoding="utf-8"))
        self.folder = STORE / EXPERIMENT / self.run["id"]
        for part in ("metrics", "params", "tags", "artifacts"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        config = (run / "config.yaml").read_text(encoding="utf-8")
        for setting in read_settings(config):
            (self.folder / "params" / setting.field).write_text(setting.value, encoding="utf-8")
        (self.folder / "tags" / "mlflow.runName").write_text(self.run["name"], encoding="utf-8")
        self.describe(RUNNING)

    def row(self, row: Mapping[str, Any]) -> None:
        """Append the numbers of a row."""
        for key, value in row.items():
            if key not in PLACE and isinstance(value, int | float):
                name = key if row["learner"] == "main" else f"{row['learner']}.{key}"
                with (self.folder / "metrics" / name).open("a", encoding="utf-8") as file:
                    file.write(f"{row['time'] * 1000:.0f} {value} {row['step']}\n")

    def rewind(self, step: int, learners: Mapping[str, int]) -> None:
        """Take back what was appended of later steps."""
        for path in (self.folder / "metrics").iterdir():
            last = learners.get(path.name.rpartition(".")[0] or "main", step)
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if int(line.split()[2]) <= last]
            path.write_text("".join(kept), encoding="utf-8")

    def close(self) -> None:
        """Say that nobody writes any more."""
        self.describe(FINISHED)

    def describe(self, status: int) -> None:
        """Write the two descriptions that MLflow looks for."""
        now = int(time.time() * 1000)
        place = (STORE / EXPERIMENT).resolve().as_uri()
        experiment = {
            "experiment_id": EXPERIMENT, "name": "surefoot", "artifact_location": place,
            "lifecycle_stage": "active", "creation_time": now, "last_update_time": now,
        }  # fmt: skip
        run = {
            "run_id": self.run["id"], "run_uuid": self.run["id"], "run_name": self.run["name"],
            "experiment_id": EXPERIMENT, "artifact_uri": f"{place}/{self.run['id']}/artifacts",
            "lifecycle_stage": "active", "status": status, "start_time": now,
            "end_time": now if status == FINISHED else None, "user_id": "", "source_type": 4,
            "source_name": "", "source_version": "", "entry_point_name": "", "tags": [],
        }  # fmt: skip
        for path, values in ((STORE / EXPERIMENT, experiment), (self.folder, run)):
            lines = [f"{key}: {json.dumps(value)}\n" for key, value in values.items()]
            (path / "meta.yaml").write_text("".join(lines), encoding="utf-8")


def open_sink(run: Path, segment: int, first_step: int) -> Sink:
    """Return the sink of a run. `segment` counts its processes, `first_step` is where it goes on."""
    return MLflowFiles(run)
