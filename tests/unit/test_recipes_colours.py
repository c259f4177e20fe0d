"""What is counted and drawn of a list of colours, with models whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.data.colours import load, symbols
from surefoot.recipes.colours import recipe
from surefoot.recipes.colours.answers import Exam
from surefoot.recipes.colours.models import Seen
from surefoot.recipes.colours.pictures import pictures
from surefoot.recipes.colours.tables import Tables, name_nats

COLOURS = load("wikipedia", 0.1)


class Echo(torch.nn.Module):
    """Gives everything back, but a tenth too much red, and `x` for every `z`; writes past the end."""

    colours, names = True, True

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.tables, self.asked = tables, 0

    def encode_rgb(self, rgb: torch.Tensor) -> torch.Tensor:
        return rgb

    def forward(self, rgb: torch.Tensor, grams: torch.Tensor) -> Seen:
        self.asked += len(rgb)
        row = (self.tables.grams[:, None] == grams).all(-1).int().argmax(0)  # type: ignore[index]
        said = self.tables.symbols[row]
        x, z = symbols(["xz"])[0, :2].tolist()
        said = torch.where(said == z, x, said)
        ended = (said == 0).int().cumsum(1)
        logits = torch.nn.functional.one_hot(torch.where(ended > 1, 5, said), 51).float()
        back = rgb + torch.tensor([0.1, 0, 0]) + self.weight
        return Seen(back, logits, back, logits)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As the engine looks at models."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def exam() -> Exam:
    config = recipe.config()
    tables = Tables.of(COLOURS, config.model, torch.device("cpu"))
    return Exam(COLOURS, tables, config)


def test_errors_and_characters_are_counted(exam: Exam) -> None:
    model = Echo(exam.tables)
    scores = exam.scores(model)
    assert scores["rgb_error"] == scores["name_error"] == pytest.approx(0.1 / 3, rel=1e-4)
    assert scores["val_loss"] == pytest.approx(300 * 0.01, rel=1e-4)
    trained = [COLOURS.folded[i] for i in COLOURS.rows(held_out=False)]
    text = "".join(trained)
    assert scores["characters"] == pytest.approx(1 - text.count("z") / len(text))
    assert scores["held"] == scores["named"] == np.mean(["z" not in name for name in trained])
    assert model.asked == 878
    exam.scores(model)
    assert model.asked == 878, "remembered"
    for parameter in model.parameters():
        parameter.data.fill_(0.1)  # as a fused optimiser does, without telling autograd
    assert exam.scores(model)["rgb_error"] > 0.1


def test_pictures_mark_what_is_wrong(exam: Exam) -> None:
    drawn: dict[str, Any] = {k: draw(Echo(exam.tables)) for k, draw in pictures(exam).items()}
    wrong = drawn["wrong characters"]
    assert all("[x" in row[2] for row in wrong.rows)
    assert {row[0] for row in wrong.rows} == {"trained", "held out"}
    bars = drawn["names held by length"]
    assert max(v for v in bars.values if v is not None) == 100
    swatches = drawn["before and after"]
    assert all((row[3] > 0) == (row[1][1:3] != "ff") for row in swatches.rows), "more red"
    assert len(drawn["map of the bottleneck"].x) == 878


@pytest.mark.parametrize("bottleneck", [1, 2, 5])
@pytest.mark.parametrize("reads", ["rgb", "names", "both", "vectors"])
def test_every_model_draws_its_map(reads: str, bottleneck: int) -> None:
    from surefoot.engine import open_world

    sizes = {**recipe.presets["tiny"]["model"], "reads": reads, "bottleneck": bottleneck}
    job = recipe.build(recipe.config(model=sizes), open_world("cpu"))
    drawn: Any = job.pictures["map of the bottleneck"](job.learners["main"].model)
    assert len(drawn.x) == len(drawn.colors) == 878 and len(drawn.labels) == 878
    assert np.std(drawn.x) > 0 and np.std(drawn.y) > 0
    assert job.tell(job.source.batch(np.array([0]), np.array([0]), 1)).startswith("Absolute Zero #")


def test_the_end_of_a_name_counts_as_one_symbol() -> None:
    wanted = torch.tensor([[3, 4, 0, 0], [3, 0, 0, 0]])
    logits = torch.zeros(2, 4, 10)
    logits[:, 2:, 0] = 50.0  # sure of the end
    nats = name_nats(logits, wanted)
    assert nats.tolist() == pytest.approx([np.log(10) * 2 / 3, np.log(10)])


def test_a_model_is_a_function_of_its_seed() -> None:
    from surefoot.recipes.colours import make

    one, same, other = (make(recipe.config(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["waves.weight"], other["waves.weight"])
