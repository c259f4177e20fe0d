"""Times from ceilings: honest at sizes where starting operations takes longest."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import api, recipes
from surefoot.config import flags
from surefoot.data.batch import Data
from surefoot.engine.auto.ceilings import Ceilings, measured, of_card, products
from surefoot.engine.auto.fit import Pins
from surefoot.engine.auto.ledger import Work
from surefoot.engine.foresee.duration import seconds
from surefoot.engine.foresee.predict import Need, predict
from surefoot.engine.loop import steps
from surefoot.engine.place import apply
from surefoot.engine.plan import compared, prepare
from surefoot.engine.state import TrainState
from surefoot.engine.world import open_world

TEXT = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ceilings(tmp_path_factory: pytest.TempPathFactory) -> Ceilings:
    cache = tmp_path_factory.mktemp("cache") / "ceilings.json"
    rates = products(cache, CPU)
    found = measured(cache)
    assert found == measured(cache), "it is kept"
    assert products(cache, CPU) == (found.fp32, found.half) and min(rates) > 1e8
    return found


def test_what_was_measured_can_be(ceilings: Ceilings) -> None:
    assert 1e-6 < ceilings.start < 1e-3
    assert 1e8 < ceilings.fresh < ceilings.usual * 10
    assert ceilings.bandwidth > 1e8 and not ceilings.ahead


@pytest.mark.parametrize(
    ("recipe", "given"), [("charlm", {"path": TEXT}), ("multiply", {}), ("colours", {})]
)
def test_tiny_steps_are_foreseen_to_a_factor_of_two(
    recipe: str, given: dict[str, Any], ceilings: Ceilings
) -> None:
    """In processor seconds, for other programs must not decide; the machine's clock may differ."""
    found = recipes.find(recipe)
    values, _ = flags.arguments(given, found.config)
    config = api.settle(found, "tiny", [], values).config
    foreseen = seconds(predict(found, config, Pins("cpu")), ceilings)
    world = open_world("cpu")
    job = found.build(config, world)
    prepare(job, config, {})
    for learner in job.learners.values():
        apply(learner, Pins("cpu"))
    data = Data(job.source, config.train.seed, config.train.batch_size)
    going = steps(TrainState(job.learners), data, 1, world)
    list(islice(going, 3))
    taken = []
    for _ in range(50):  # the fastest, as of the ceilings: whoever shares a core makes them slower
        begun = time.process_time()
        next(going)
        taken.append(time.process_time() - begun)
    assert 0.4 < foreseen / min(taken) < 2.5


def need(passes: list[Work], updates: list[Work]) -> Need:
    return Need(0, {}, 0, 0, {}, None, "", 8, 2, passes, updates, [])


def test_a_step_is_the_sum_of_what_binds_each_operation() -> None:
    here = Ceilings(100.0, 1000.0, 10.0, 10.0, 2.0, 0.5)
    product, stream = Work(200, 1, "fp32"), Work(0, 30, "fp32")
    assert seconds(need([product], []), here) == 4 * (0.5 + 2)
    assert seconds(need([stream], [product]), here) == 4 * (0.5 + 3) + 0.5 + 2
    large = Work(0, 2**30, "half")
    assert seconds(need([], [large]), here) == 0.5 + 2**29


def test_a_card_starts_operations_while_others_work() -> None:
    card = of_card(10, 20, 100)
    many = [Work(0, 1, "half")] * 1000
    assert seconds(need([], many), card) == pytest.approx(1000 * card.start)
    heavy = Work(10**12, 1, "half")
    assert seconds(need([], [heavy, heavy]), card) == pytest.approx(2 * 1e12 / card.half)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.00448, "4.48 ms"), (0.0256, "25.6 ms"), (15.57, "15,600 ms")]
)
def test_many_milliseconds_have_no_exponent(seconds, shown):
    taken = {"steps": 1000, "step_seconds": seconds, "bytes": 1e9}
    (line,) = compared({"step_seconds": seconds}, taken)
    assert f"{shown} a step foreseen, {shown} taken" in line
