"""Ask models: held-out problems for a score, one problem for an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.data.arithmetic import Pairs
from surefoot.data.batch import Batch
from surefoot.data.notation import END, START, Form
from surefoot.engine import Request, free_running, wilson
from surefoot.engine.checksum import weights_sum
from surefoot.errors import DataError
from surefoot.nn.sequence_loss import SequenceAccuracyLoss

__all__ = ["Calculator", "Exam", "Sheet", "answer", "say"]

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Sheet:
    """What a model said to n problems: tokens i64[n, T], their targets, numbers (-1: none).

    `sure` is the probability of each answer; `nats` and `tokens` are sums over the right answers.
    """

    said: Int
    targets: Int
    numbers: Int
    sure: NDArray[np.float64]
    nats: float
    tokens: int


@dataclass
class Exam:
    """Held-out problems, asked `size` at a time; each model's last answers are remembered."""

    pairs: Pairs
    size: int
    to: Callable[[Batch], Batch]
    _last: tuple[Any, Sheet] | None = field(default=None, repr=False)

    def sit(self, model: Any) -> Sheet:
        """Let the model answer every problem by itself, each token from its own before.

        Asked again without a change to the model, the same sheet comes back.
        """
        mark = (id(model), weights_sum(model))
        if self._last is None or self._last[0] != mark:
            self._last = mark, self._sit(model)
        return self._last[1]

    def _sit(self, model: Any) -> Sheet:
        criterion, form = SequenceAccuracyLoss(), self.pairs.form
        said, targets, sure, nats, tokens = [], [], [], 0.0, 0
        for batch in map(self.to, self.pairs.batches(self.size)):
            question, wanted = batch.fields["question"], batch.fields["targets"]
            nats += float(criterion(model(question, batch.fields["inputs"]), wanted).loss)
            tokens += batch.weight
            answers, chance = _answers(model, question, form)
            said.append(answers.cpu().numpy())
            targets.append(wanted.cpu().numpy())
            sure.append(chance.cpu().numpy())
        everything = np.concatenate(said)
        return Sheet(
            everything, np.concatenate(targets), form.read(everything), np.concatenate(sure),
            nats, tokens,
        )  # fmt: skip

    def right(self, sheet: Sheet) -> NDArray[np.bool_]:
        """Return which answers are right [n]."""
        a, b = self.pairs.numbers
        found: NDArray[np.bool_] = sheet.numbers == a * b
        return found

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Return `val_loss` (of the right answers, nats a token) and what is right by itself.

        `token_accuracy` is the share of right tokens, `exact` that of right answers.
        """
        sheet = self.sit(model)
        hits = (sheet.said == sheet.targets).sum()  # a target that does not count equals nothing
        return {
            "val_loss": sheet.nats / sheet.tokens,
            "token_accuracy": float(hits / sheet.tokens),
            "exact": float(self.right(sheet).mean()),
        }

    def scores_with_interval(self, model: nn.Module) -> dict[str, float]:
        """Return also the 95 % interval of `exact`, and how many problems were asked."""
        found, asked = self.scores(model), len(self.pairs)
        low, high = wilson(round(found["exact"] * asked), asked)
        return {**found, "exact_low": low, "exact_high": high, "asked": float(asked)}


def _answers(model: Any, question: torch.Tensor, form: Form) -> tuple[torch.Tensor, torch.Tensor]:
    return free_running(model, question, form.answer_length, start=START, end=END)


@torch.no_grad()
def answer(model: Any, a: int, b: int, form: Form) -> dict[str, Any]:
    """Return what a model says that a x b is: `answer`, None where it wrote no number.

    `wrote` is what it wrote for it, `confidence` the probability that it gave to all of that.
    """
    question = form.question(np.array([a]), np.array([b]))
    device = next(model.parameters()).device
    said, sure = _answers(model, torch.from_numpy(question).to(device), form)
    number = int(form.read(said.cpu().numpy())[0])
    wrote = form.text(said[0].tolist())
    return {"answer": None if number < 0 else number, "wrote": wrote, "confidence": float(sure[0])}


def say(model: nn.Module, seed: int, *, a: int, b: int, form: Form) -> str:
    """Return the answer to one problem as a person reads it."""
    found = answer(model, a, b, form)
    number = found["wrote"] if found["answer"] is None else found["answer"]
    verdict = "right" if found["answer"] == a * b else f"wrong, it is {a * b}"
    return f"{number} ({verdict}; {found['confidence']:.1%} sure)"


_PROBLEM = re.compile(r"\s*(\d{1,12})\s*[xX*×·]\s*(\d{1,12})\s*=?\s*")


@dataclass(frozen=True)
class Calculator:
    """Models by name, asked with `--ask "12 x 34"`."""

    models: Mapping[str, nn.Module]
    form: Form

    @property
    def questions(self) -> Mapping[str, Callable[[str, str], dict[str, Any]]]:
        """Return how each kind of question is answered."""
        return {"ask": self.ask}

    def ask(self, learner: str, question: str) -> dict[str, Any]:
        """Return the answer of one learner, with `text` for a person.

        Raises DataError where the question is no product of two numbers that can be written.
        """
        a, b = self.read(question)
        model = self.models[learner].eval()
        found = answer(model, a, b, self.form)
        return {"text": say(model, 0, a=a, b=b, form=self.form), "right": a * b, **found}

    def read(self, question: str) -> tuple[int, int]:
        """Return the two numbers of a question. Raises DataError."""
        match, example = _PROBLEM.fullmatch(question), "9" * self.form.digits
        if match is None:
            what = f"{question!r} is not a product of two whole numbers"
            raise DataError(what, fix=f'--ask "{example} x {example}"')
        a, b = int(match[1]), int(match[2])
        if max(a, b) >= 10**self.form.digits:
            what = f"{max(a, b)} has too many digits: these models write up to {self.form.digits}"
            raise DataError(
                what, fix=f'--ask "{example} x {example}", or a run with more --max-digits'
            )
        return a, b

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Go on after the prompt with its answer; without one, write the largest problem, too."""
        example = "9" * self.form.digits
        question = request.prompt or f"{example} x {example}"
        answered = self.ask(learner, question)["text"]
        sign = " " if question.rstrip().endswith("=") else " = "
        yield f"{'' if request.prompt else question}{sign}{answered}"
