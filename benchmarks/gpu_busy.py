"""How full a GPU is with everything on auto: busy share, tokens/s, FLOP/s, memory foreseen and taken.

    python benchmarks/gpu_busy.py [--preset full] [--seconds 30] [--recipe gpt]

Trains on the text of the tests, repeated, so nothing is downloaded; the model, the batch and every
`auto` are those of `surefoot train`. Steps are counted after the first ones, which compile. Prints one table.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.engine.foresee.cards import find_place
from surefoot.engine.foresee.outlook import playable
from surefoot.engine.foresee.predict import predict
from surefoot.engine.loop import steps as loop_of
from surefoot.track.text import bytes_text, count

TEXT = Path(__file__).parents[1] / "tests" / "fixtures" / "shakespeare.txt"
WARM = 8  # steps that are not counted


def kernels_busy(run: Any, steps: int) -> float:
    """Return the share of the time in which the GPU works on something, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        list(islice(run, steps))
        torch.cuda.synchronize()
        wall = time.perf_counter() - begun
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == torch.profiler.DeviceType.CUDA
    )
    busy, reached = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6 / wall


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="gpt")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--settings", default="{}", help="more settings, as JSON")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA device")
    place, recipe = find_place("this", None), recipes.find(asked.recipe)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(TEXT.read_text() * 60)
        wanted = {"path": str(text), "max_steps": 20_000, **json.loads(asked.settings)}
        given, problems = flags.arguments(wanted, recipe.config)
        assert not problems, problems
        config = api.settle(recipe, asked.preset, [], given).config
        row = measured(recipe, config, asked.seconds, place, Path(folder))
    for name, value in row.items():
        print(f"{name:<16} {value}")


def measured(recipe: Any, config: Any, seconds: float, place: Any, folder: Path) -> dict[str, str]:
    """Return what there is to print."""
    from surefoot.config.fields import changed
    from surefoot.data.batch import Data
    from surefoot.data.prefetch import Prefetch
    from surefoot.engine import open_world
    from surefoot.engine.auto.fit import choose
    from surefoot.engine.carry import Carried
    from surefoot.engine.place import compile_in_place
    from surefoot.engine.plan import prepare, work
    from surefoot.engine.state import TrainState

    world = open_world("auto")
    begun = time.perf_counter()
    job = recipe.build(config, world)
    prepare(job, config, {})
    limit = config.limit(len(job.source))
    pins, plan = choose(changed(config, job.settings), job, world, limit, folder / "fit.json")
    chosen = time.perf_counter() - begun
    for learner in job.learners.values():
        learner.micro = pins.micro_batch_size
        if pins.compile:
            compile_in_place(learner)
    data = Data(job.source, config.train.seed, config.train.batch_size)
    with Prefetch(Carried(data, world.device), max(1, pins.prefetch_threads)) as ahead:
        going = loop_of(TrainState(job.learners), ahead, config.train.seed, world)
        begun = time.perf_counter()
        list(islice(going, WARM))
        first = time.perf_counter() - begun
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        begun, count_, weight = time.perf_counter(), 0, 0
        while time.perf_counter() - begun < seconds:
            weight += next(going).weight
            count_ += 1
        torch.cuda.synchronize()
        taken = time.perf_counter() - begun
        most, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        busy = kernels_busy(going, 10)
    need = predict(
        recipe, config, playable(pins), micro=pins.micro_batch_size, block=place.block,
        processors=place.processors,
    )  # fmt: skip
    step, flops = taken / count_, sum(work(job, config.train.batch_size).values())
    share = f"{flops / step / plan.ceiling:.0%}" if flops and plan.ceiling else "-"
    return {
        "device": torch.cuda.get_device_name(),
        "with": f"torch {torch.__version__}, {pins.precision}, compile {'on' if pins.compile else 'off'}",
        "batch": f"{config.train.batch_size} in pieces of {pins.micro_batch_size}",
        "busy": f"{busy:.1%}   (goal: at least 80 %)",
        "a step": f"{step * 1e3:.2f} ms, foreseen {plan.step_seconds * 1e3:.2f} ms",
        "tokens/s": count(weight / taken),
        "FLOP/s": f"{flops / step / 1e12:.1f} T, {share} of measured products",
        "memory": f"{bytes_text(most)} taken, {bytes_text(need.peak)} foreseen ({need.peak / most - 1:+.1%}; not compiled)",
        "reserved": f"{bytes_text(held)}, {held / most - 1:.1%} beyond tensors",
        "start": f"{chosen:.1f} s to choose, {first:.1f} s for {WARM} steps",
        "why": "; ".join(f"{k}: {v}" for k, v in pins.why.items()),
    }


if __name__ == "__main__":
    main()
