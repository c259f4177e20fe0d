"""Your own numbers and your own PyTorch model: a recipe in one file, for a table in CSV.

    surefoot train examples/table.py --csv houses.csv --target price

Columns are numbers; `target` is what the others shall tell (the last column, if you do not say).
Without `--csv` a small table is made up, so that the file can be tried as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from surefoot import Batch, Recipe, RunConfig, Section, circumstance, derive, knob
from surefoot.errors import DataError


class Table(Section):
    """Which numbers are read."""

    csv: str = knob("", "File with a line of names and lines of numbers; empty: made up.")
    target: str = knob("", "Name of the column to predict; empty: the last one.")
    val_ratio: float = circumstance(0.1, "Share of the rows that is held out.", gt=0, lt=1)


class Net(Section):
    """A network of two layers."""

    width: int = knob(64, "Units between the layers.", ge=1)


class TableConfig(RunConfig):
    """Settings of every run, and two sections of our own."""

    model: Net = Net()
    data: Table = Table()


class Rows:
    """Rows by number: x f32[N, C] and y f32[N, 1]."""

    def __init__(self, x: Any, y: Any) -> None:
        from xxhash import xxh3_128_hexdigest

        self.x, self.y = x, y
        self.fingerprint = xxh3_128_hexdigest(np.concatenate([x, y], 1).tobytes())

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Any, epoch: Any, key: int) -> Batch:
        return Batch({"x": self.x[index], "y": self.y[index]}, weight=len(index))


def read(config: TableConfig) -> tuple[Rows, Rows]:
    """Return rows to train on and held-out ones; every column has mean 0 and deviation 1."""
    if not config.data.csv:
        noise = np.random.default_rng(derive(1, "houses"))
        size, age = noise.uniform(30, 200, 2000), noise.uniform(0, 90, 2000)
        names, values = ["size", "age", "price"], [size, age, size * (3 - age / 90)]
        table = np.stack(values, 1)
    else:
        path = Path(config.data.csv)
        try:
            names = path.read_text(encoding="utf-8").split("\n", 1)[0].strip().split(",")
            table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        except (OSError, ValueError) as error:
            raise DataError(str(error), where=str(path), fix="--csv FILE") from error
    target = config.data.target or names[-1]
    if target not in names:
        raise DataError(f"no column {target}", fix=f"--target is one of {', '.join(names)}")
    rows = np.random.default_rng(derive(config.train.seed, "rows")).permutation(len(table))
    table = table[rows]
    cut = max(1, round(len(table) * (1 - config.data.val_ratio)))
    table = (table - table[:cut].mean(0)) / (table[:cut].std(0) + 1e-9)
    table, column = table.astype("float32"), names.index(target)
    x, y = np.delete(table, column, 1), table[:, [column]]
    return Rows(x[:cut], y[:cut]), Rows(x[cut:], y[cut:])


def build(config: TableConfig, world: Any) -> Any:
    """Make the rows, a network and its optimiser; called again for every resume."""
    import torch
    from torch import nn

    from surefoot import Job, Learner, Loss

    trained, held = read(config)
    torch.manual_seed(derive(config.train.seed, "init") % 2**31)
    width = config.model.width
    model = nn.Sequential(nn.Linear(trained.x.shape[1], width), nn.ReLU(), nn.Linear(width, 1))
    model.to(world.device)

    def loss(model: nn.Module, batch: Batch) -> Loss:
        return Loss((model(batch.fields["x"]) - batch.fields["y"]).square().sum())

    def score(model: nn.Module) -> dict[str, float]:
        every = np.arange(len(held))
        batch = world.to(held.batch(every, every, 0))
        error = float(loss(model, batch).sum) / batch.weight
        return {"val_loss": error, "explained": 1 - error / float(held.y.var())}

    optimiser = torch.optim.AdamW(model.parameters(), config.optim.lr)
    return Job(
        source=trained,
        learners={"main": Learner(model, loss, [optimiser])},
        evals={"held out": score},
        notes=[f"data   {len(trained)} rows, {len(held)} held out"],
    )


recipe = Recipe(
    name="table",
    summary="predict a column of a table",
    config=TableConfig,
    build=build,
    presets={
        "laptop": {
            "train": {"max_steps": 500},
            "optim": {"kind": "adamw"},  # what `build` makes
            "cadence": {"validate_every": 50},
        }
    },
    default_preset="laptop",
)
