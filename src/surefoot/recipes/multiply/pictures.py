"""What went wrong, and where the models look: pictures for the report, as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from surefoot.data.notation import ALPHABET
from surefoot.ops.way import exact
from surefoot.recipes.multiply.answers import Exam
from surefoot.track.picture import Bars, Grid, Picture, Table

__all__ = ["carries", "pictures"]

Int = NDArray[np.int64]
Drawing = Callable[[nn.Module], Picture | None]

WORST = 20  # mistakes that are listed
LOOKED = 200  # problems whose attention is averaged
DEAD = 0.1  # a latent with less than this part of an even share is dead


def pictures(exam: Exam) -> dict[str, Drawing]:
    """Return what is drawn at evaluations, by name."""
    return {
        "errors by leading digits": lambda model: _leading(exam, model),
        "errors by answer digit": lambda model: _places(exam, model),
        "errors by carries": lambda model: _carries(exam, model),
        "attention": lambda model: _attention(exam, model),
        "similarity of latents": lambda model: _similarity(exam, model),
        "worst mistakes": lambda model: _worst(exam, model),
    }


def _percent(wrong: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> float | None:
    return float(100 * wrong[chosen].mean()) if chosen.any() else None


def _leading(exam: Exam, model: nn.Module) -> Picture:
    a, b = exam.pairs.numbers
    wrong = ~exam.right(exam.sit(model))
    first, second = _first_digit(a), _first_digit(b)
    digits = range(10) if exam.pairs.split.shortest == 1 else range(1, 10)
    cells = [[_percent(wrong, (first == i) & (second == j)) for j in digits] for i in digits]
    names = [str(digit) for digit in digits]
    return Grid(
        "Wrong answers by leading digits", names, names, cells, "%",
        "Held-out problems; an empty cell was not asked.",
        down="first number", across="second number", low=0.0, high=100.0,
    )  # fmt: skip


def _first_digit(numbers: Int) -> Int:
    found = numbers.copy()
    for _ in range(12):
        found = np.where(found > 9, found // 10, found)
    return found


def _places(exam: Exam, model: nn.Module) -> Picture:
    """One bar for each digit of the product, the ones first."""
    a, b = exam.pairs.numbers
    sheet = exam.sit(model)
    said, true = np.maximum(sheet.numbers, 0), a * b
    none = sheet.numbers < 0
    labels, values = [], []
    for place in range(2 * exam.pairs.form.digits):
        there = true >= (10**place if place else 0)
        digit = said // 10**place % 10 != true // 10**place % 10
        labels.append("ones" if place == 0 else f"10^{place}")
        values.append(_percent(digit | none, there))
    return Bars("Wrong digits of the product", labels, values, "%", "Of products that are so long.")


def carries(a: Int, b: Int) -> Int:
    """Return in how many columns a long multiplication carries: column sums of 10 or more."""
    columns = np.zeros((len(a), 13), dtype=np.int64)
    for i in range(6):
        for j in range(6):
            columns[:, i + j] += a // 10**i % 10 * (b // 10**j % 10)
    carry, found = np.zeros_like(a), np.zeros_like(a)
    for column in columns.T:
        carry = (column + carry) // 10
        found += carry > 0
    return found


def _carries(exam: Exam, model: nn.Module) -> Picture:
    a, b = exam.pairs.numbers
    wrong, count = ~exam.right(exam.sit(model)), carries(a, b)
    kinds = range(int(count.max()) + 1)
    labels = [f"{k} ({int((count == k).sum())} asked)" for k in kinds]
    values = [_percent(wrong, count == k) for k in kinds]
    return Bars("Wrong answers by carries", labels, values, "%", "Columns that carry, on paper.")


def _attention(exam: Exam, model: Any) -> Picture | None:
    """Where the decoder looks while it writes each token, averaged over layers and heads."""
    if not hasattr(model, "attended"):
        return None
    batch = exam.to(next(exam.pairs.batches(LOOKED)))
    shares = model.attended(batch.fields["question"], batch.fields["inputs"])  # [L, B, H, T, N]
    table = shares.mean((0, 1, 2)).cpu().double().numpy()  # [T, N]
    form = exam.pairs.form
    rows = [f"{place + 1} (work)" if place < form.work_length else f"{place + 1}"
            for place in range(form.answer_length)]  # fmt: skip
    if not hasattr(model, "latents"):
        question = batch.fields["question"][0].tolist()
        names = [f"{place + 1}: {ALPHABET[t]}" for place, t in enumerate(question)]
        note = "The columns are places of the question, with the first problem's tokens."
        across = "token of the question"
    else:
        names = [f"latent {n + 1}" for n in range(table.shape[1])]
        used = table.mean(0)
        dead = int((used < DEAD / len(used)).sum())
        parts = ", ".join(f"{share:.0%}" for share in used[:16])
        note = (
            f"Shares of attention: {parts}. Dead latents (under a tenth of an even share): {dead}."
        )
        across = "latent"
    return Grid(
        "Where the decoder looks", rows, names, (100 * table).tolist(), "%", note,
        down="token of the answer", across=across, low=0.0, high=100.0,
    )  # fmt: skip


def _similarity(exam: Exam, model: Any) -> Picture | None:
    """Mean cosine of each pair of latents, over problems."""
    if not hasattr(model, "latents"):
        return None
    batch = exam.to(next(exam.pairs.batches(LOOKED)))
    latents = F.normalize(exact(model.memory(batch.fields["question"])), dim=-1)  # [B, N, C]
    cosine = torch.einsum("bnc,bmc->nm", latents, latents) / len(latents)
    names = [f"{n + 1}" for n in range(len(cosine))]
    return Grid(
        "Similarity of latents", names, names, cosine.cpu().tolist(), "",
        "Mean cosine over problems: 1 means that two latents say the same.",
        down="latent", across="latent", low=-1.0, high=1.0,
    )  # fmt: skip


def _worst(exam: Exam, model: nn.Module) -> Picture:
    """The mistakes that are furthest off, as a share of the product; no number is furthest."""
    a, b = exam.pairs.numbers
    sheet, true = exam.sit(model), a * b
    off = np.where(sheet.numbers < 0, np.inf, np.abs(sheet.numbers - true) / np.maximum(true, 1))
    order = [i for i in np.argsort(-off, kind="stable")[:WORST].tolist() if off[i] > 0]
    rows = [
        [
            f"{a[i]} x {b[i]}",
            int(true[i]),
            exam.pairs.form.text(sheet.said[i].tolist())
            if sheet.numbers[i] < 0
            else int(sheet.numbers[i]),
            float(100 * off[i]),
            float(100 * sheet.sure[i]),
        ]
        for i in order
    ]
    wrong = int((~exam.right(sheet)).sum())
    head = ("problem", "product", "said", "off by %", "sure %")
    return Table("Worst mistakes", head, rows, f"{wrong} of {len(a)} answers are wrong.")
