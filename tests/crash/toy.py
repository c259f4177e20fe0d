"""A recipe of milliseconds with everything in it that is hard to resume.

Dropout, augmentation, draws from the global generators, micro-batches, an average of the weights,
evaluation, samples, one learner or two of different lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from surefoot.config.schema import RunConfig, Section, Train, knob
from surefoot.recipes import Recipe


class ToyModel(Section):
    """What is learned."""

    width: int = knob(8, "Hidden numbers.", ge=1)
    dropout: float = knob(0.2, "Share of hidden numbers dropped.", ge=0, lt=1)
    learners: int = knob(1, "1, or 2: the second is wider and stops earlier.", ge=1, le=2)
    second_limit: int = knob(7, "Steps of the second learner.", ge=1)


class ToyConfig(RunConfig):
    """Settings of the toy."""

    toy: ToyModel = ToyModel()
    train: Train = Train(batch_size=8, max_steps=12)


@dataclass(frozen=True)
class Points:
    """Eight-dimensional regression: pure, with noise that depends on example and epoch."""

    examples: int = 30
    fingerprint = "points/1"

    def __len__(self) -> int:
        return self.examples

    def batch(self, index: Any, epoch: Any, key: int) -> Any:
        import numpy as np

        from surefoot.data.batch import Batch

        # A cheap keyed hash in place of a generator for each example.
        i = index.astype(np.uint64)[:, None] * np.uint64(1_000_003)
        e = epoch.astype(np.uint64)[:, None] * np.uint64(7_368_787)
        lane = np.arange(8, dtype=np.uint64)[None, :]
        with np.errstate(over="ignore"):
            base = _mix(i + lane)
            noise = _mix(i + e + lane + np.uint64(key % 2**32) * np.uint64(2_654_435_761))
        x = (base + 0.1 * noise).astype("float32")
        return Batch({"x": x, "y": np.sin(x).sum(1, keepdims=True)}, weight=len(index))


def _mix(z: Any) -> Any:
    import numpy as np

    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype(np.float64) / 2**63 - 1.0


def build(config: ToyConfig, world: Any) -> Any:
    from surefoot.engine import Job

    learners = {"main": _learner(config, config.toy.width, None)}
    if config.toy.learners == 2:
        learners = {
            "small": _learner(config, config.toy.width, None),
            "wide": _learner(config, 2 * config.toy.width, config.toy.second_limit),
        }
    return Job(
        source=Points(), learners=learners, evals={"held out": held_out}, samplers={"?": write},
        data={"name": "points"}, notes=["data   points"],
    )  # fmt: skip


def _learner(config: ToyConfig, width: int, limit: int | None) -> Any:
    import torch
    from torch import nn

    from surefoot.engine import Learner
    from surefoot.nn.dropout import Dropout
    from surefoot.nn.optim import build_optimisers

    model = nn.Sequential(
        nn.Linear(8, width), nn.Tanh(), Dropout(config.toy.dropout), nn.Linear(width, 1)
    )
    generator = torch.Generator().manual_seed(width)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Learner(model, loss, build_optimisers(model, config.optim), limit=limit)


def loss(model: Any, batch: Any) -> Any:
    """Squared error, disturbed by a draw from every global generator."""
    import random

    import numpy as np
    import torch

    from surefoot.engine import Loss

    noise = 0.01 * (random.random() + float(np.random.rand()) + float(torch.rand(())))
    found = ((model(batch.fields["x"]) - batch.fields["y"]) ** 2).sum()
    return Loss(found * (1 + noise), {"error": found.detach()})


def held_out(model: Any) -> dict[str, float]:
    """Loss on other points, and a number that only the random key of the look decides."""
    import numpy as np
    import torch

    batch = Points().batch(np.arange(100, 116), np.zeros(16, dtype=np.int64), 0)
    error = model(torch.from_numpy(batch.fields["x"])) - torch.from_numpy(batch.fields["y"])
    return {"val_loss": float((error**2).mean()), "draw": float(torch.rand(()))}


def write(model: Any, seed: int) -> str:
    import torch

    generator = torch.Generator().manual_seed(seed)
    answer = float(model(torch.rand((1, 8), generator=generator)))
    return f"{answer:.9g} after {float(torch.rand(())):.6f}"


recipe = Recipe(
    name="toy",
    summary="points",
    config=ToyConfig,
    build=build,
    default_preset="tiny",
    presets={
        "tiny": {
            "machine": {
                "device": "cpu", "precision": "fp32", "compile": "off", "threads": 1,
                "matmul": "default", "micro_batch_size": 4, "prefetch_threads": 0,
            },
            "ops": {"keyed_dropout": "table"},
            "optim": {"kind": "adamw", "lr": 0.02, "eps": 1e-8},
            "schedule": {"warmup_steps": 2},
            "cadence": {"log_every": 1, "validate_every": 3, "sample_every": 4, "save_every": 2},
            "track": {"tensorboard": False, "report": False},
        },
    },
)  # fmt: skip
