"""What is asked, what is counted, and what is drawn of it, with models whose mistakes are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from surefoot.config.model import EncoderDecoderConfig
from surefoot.data.arithmetic import Pairs, Split
from surefoot.data.notation import ALPHABET, Form
from surefoot.engine import Request
from surefoot.errors import DataError
from surefoot.nn.latent import DecoderOnly, LatentTransformer, SimpleTransformer
from surefoot.recipes.multiply.answers import Calculator, Exam
from surefoot.recipes.multiply.pictures import carries, pictures

FORM = Form(2)
HELD = Pairs(Split(2, 2, 0.1, 0.1, 1), FORM, 1, 100)


class Parrot(torch.nn.Module):
    """Knows every product, but says 7 for the tens digit of an answer to numbers that begin with 9."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.asked = 0

    def _tokens(self, question: torch.Tensor) -> torch.Tensor:
        digits = torch.where(question > 9, 0, question)
        a, b = digits[:, 0] + 10 * digits[:, 1], digits[:, 3] + 10 * digits[:, 4]
        said = torch.from_numpy(FORM.answer(a.numpy(), b.numpy()))
        said[digits[:, 1] == 9, 1] = 7
        return torch.where(said < 0, 12, said)

    def forward(self, question: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        self.asked += len(question)
        return 20.0 * torch.nn.functional.one_hot(self._tokens(question), len(ALPHABET)).float()

    def begin(self, question: torch.Tensor) -> list[torch.Tensor]:
        return list(self(question, question).unbind(1))

    def follow(self, token: torch.Tensor, answering: list[torch.Tensor]) -> torch.Tensor:
        return answering.pop(0)


@pytest.fixture
def exam() -> Exam:
    return Exam(HELD, 30, lambda batch: type(batch)(
        {key: torch.from_numpy(value) for key, value in batch.fields.items()}, batch.weight
    ))  # fmt: skip


def wrong() -> np.ndarray:
    a, b = HELD.numbers
    return (a // 10 == 9) & (a * b // 10 % 10 != 7)


def test_mistakes_are_counted_and_the_sheet_is_kept(exam: Exam) -> None:
    model, share = Parrot(), 1 - wrong().mean()
    assert 0 < share < 1, "the examples must hold both"
    assert exam.scores(model)["exact"] == pytest.approx(share)
    tested = exam.scores_with_interval(model)
    assert tested["asked"] == 100
    assert tested["exact_low"] < share < tested["exact_high"]
    assert model.asked == 200, "once for the loss and once to answer; then remembered"
    with torch.no_grad():
        model.weight.add_(1.0)
    exam.scores(model)
    assert model.asked == 400, "another model by now"


def test_pictures_show_where_the_mistakes_are(exam: Exam) -> None:
    drawn: dict[str, Any] = {name: draw(Parrot()) for name, draw in pictures(exam).items()}
    a, b = HELD.numbers
    grid = drawn["errors by leading digits"]
    assert grid.rows == [str(digit) for digit in range(1, 10)]
    assert all(cell in (0.0, None) for row in grid.values[:8] for cell in row)
    assert max(cell or 0 for cell in grid.values[8]) > 0
    by_place = drawn["errors by answer digit"]
    assert by_place.values == [0, pytest.approx(100 * wrong().mean()), 0, 0]
    by_carries = drawn["errors by carries"]
    counts = [int(label.split("(")[1].split()[0]) for label in by_carries.labels]
    assert sum(counts) == 100
    total = sum(n * v for n, v in zip(counts, by_carries.values, strict=True) if v is not None)
    assert total == pytest.approx(100 * wrong().sum())
    worst = drawn["worst mistakes"]
    assert len(worst.rows) == min(20, wrong().sum())
    off = [row[3] for row in worst.rows]
    assert off == sorted(off, reverse=True) and off[-1] > 0
    assert worst.rows[0][0] in {f"{x} x {y}" for x, y in zip(a[wrong()], b[wrong()], strict=True)}
    assert drawn["attention"] is drawn["similarity of latents"] is None, "it has neither"


@pytest.mark.parametrize("kind", [SimpleTransformer, LatentTransformer, DecoderOnly])
def test_each_model_shows_what_it_has(exam: Exam, kind: type) -> None:
    sizes = EncoderDecoderConfig(d_model=8, num_layers=1, num_heads=2, num_latent=3)
    model = kind(sizes, len(ALPHABET), FORM.question_length, FORM.answer_length).eval()
    with torch.no_grad():
        drawn: dict[str, Any] = {name: draw(model) for name, draw in pictures(exam).items()}
    looks, alike = drawn["attention"], drawn["similarity of latents"]
    assert (looks is None) == (kind is DecoderOnly)
    assert (alike is None) == (kind is not LatentTransformer)
    if looks is not None:
        assert len(looks.values) == FORM.answer_length
        assert all(sum(row) == pytest.approx(100) for row in looks.values)
    if alike is not None:
        assert looks.columns == ["latent 1", "latent 2", "latent 3"]
        assert "Dead latents" in looks.note
        assert np.diag(alike.values) == pytest.approx(1.0)


def test_carries_by_hand() -> None:
    a, b = np.array([11, 12, 34, 99, 0]), np.array([11, 5, 82, 99, 7])
    # 11 x 11: columns 1, 2, 1. 12 x 5: 10 carries, 6. 34 x 82: 8, 38 carries, 24 + 3 carries, 2.
    # 99 x 99: 81, 162 + 8, 81 + 17 carry.
    assert carries(a, b).tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("text", ["34 x 82", "34*82", " 34×82 = ", "34 X 82="])
def test_questions_that_can_be_read(text: str) -> None:
    assert Calculator({}, FORM).read(text) == (34, 82)


@pytest.mark.parametrize("text", ["", "34", "34 + 82", "-3 x 4", "3.5 x 4", "100 x 3", "a x b"])
def test_questions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(DataError) as error:
        Calculator({}, FORM).read(text)
    assert '--ask "99 x 99"' in str(error.value.fix)


@pytest.mark.parametrize(
    ("prompt", "written"),
    [("3 x 4", " = 12"), ("3 x 4 =", " 12"), (None, "99 x 99 = 12")],
)
def test_an_answer_goes_on_after_its_question(
    monkeypatch: pytest.MonkeyPatch, prompt: str | None, written: str
) -> None:
    monkeypatch.setattr(Calculator, "ask", lambda *_: {"text": "12"})
    assert "".join(Calculator({}, FORM).reply("simple", Request(prompt))) == written
