"""How a tuned model is looked at: perplexity, what it forgot, and whether what it writes compiles.

Every figure stands beside that of the base under the same rule. A model never sees what it is
judged by: held-out files are other files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch

from surefoot.data.compile_rate import Completion, Prompt, Verdict
from surefoot.engine import Request, TextSpeaker, wilson
from surefoot.nn.adapters import Writer

if TYPE_CHECKING:
    from surefoot.data.batch import Batch
    from surefoot.data.bpe import BPE
    from surefoot.nn.adapters import Pretrained

__all__ = [
    "Judge",
    "Likelihood",
    "ShareJudge",
    "TextJudge",
    "as_they_are",
    "likelihood",
    "rates",
    "written",
]

T = TypeVar("T")
Rows = Callable[[], Iterable["Batch"]]
_Z = 1.959964  # 95 %
_ALONE = ("_loss", "_low", "_high", "_per_byte")  # what is told of the model alone
_AT_ONCE = 32  # texts
_WORST = 700.0  # nats, beyond which exp overflows


@dataclass(frozen=True)
class Likelihood:
    """What rows cost: `nats` summed over the `targets` of each."""

    nats: Sequence[float]
    targets: Sequence[int]

    @property
    def loss(self) -> float:
        """Mean over all tokens."""
        return math.fsum(self.nats) / sum(self.targets)

    def perplexities(self) -> dict[str, float]:
        """Return exp(all nats / all tokens) as "", and the ends of its 95 % interval, where it has one.

        The interval takes the rows for drawn at random from the repository's; of one row there is none.
        """
        mean, rows, count = self.loss, len(self.nats), sum(self.targets)
        found = {"": mean}
        if rows > 1:
            spread = math.fsum((s - mean * n) ** 2 for s, n in zip(self.nats, self.targets))
            half = _Z * math.sqrt(spread * rows / (rows - 1)) / count
            found |= {"_low": mean - half, "_high": mean + half}
        return {end: math.exp(min(value, _WORST)) for end, value in found.items()}

    def than(self, other: Likelihood) -> Likelihood:
        """Return what the same rows cost more than they cost `other`."""
        more = [mine - theirs for mine, theirs in zip(self.nats, other.nats, strict=True)]
        return Likelihood(more, self.targets)


def likelihood(model: Pretrained, batches: Iterable[Batch]) -> Likelihood:
    """Return what each row of `batches` costs."""
    nats: list[float] = []
    counts: list[int] = []
    for batch in batches:
        for x, y in zip(batch.fields["x"].split(1), batch.fields["y"].split(1)):
            nats.append(float(model(x, y)))
            counts.append(int((y != -100).sum()))
    return Likelihood(nats, counts)


def _joined(pieces: Sequence[Likelihood]) -> Likelihood:
    """Return what all rows of some batches cost."""
    nats = [value for piece in pieces for value in piece.nats]
    return Likelihood(nats, [count for piece in pieces for count in piece.targets])


def written(
    model: Pretrained, bpe: BPE, prompts: Sequence[Prompt], tokens: int, seen: int
) -> list[Completion]:
    """Let the model complete each prompt with the likeliest tokens, seeing the last `seen` of it.

    A few are written at once: the memory of keys and values grows with them.
    """
    speaker = TextSpeaker(
        {"main": model}, bpe, "", bpe.boundary, {"main": Writer(model, bpe.vocab_size)}
    )
    found: list[Completion] = []
    for at in range(0, len(prompts), _AT_ONCE):
        some = prompts[at : at + _AT_ONCE]
        known = [bpe.encode(prompt.prefix)[-seen:].astype(np.int64) for prompt in some]
        asked = [Request(None, tokens, temperature=0.0)] * len(some)
        texts = speaker.continuations("main", known, asked)
        found += [Completion(prompt, *text) for prompt, text in zip(some, texts)]
    return found


def as_they_are(
    prompts: Sequence[Prompt], texts: Mapping[str, str], bpe: BPE, tokens: int
) -> list[Completion]:
    """Return what stands after each prompt in the texts of files by name, as many tokens of it."""
    found = []
    for prompt in prompts:
        rest = bpe.encode(texts[prompt.file][len(prompt.prefix) :])
        found.append(Completion(prompt, bpe.decode(rest[:tokens]), len(rest) <= tokens))
    return found


def rates(name: str, prefix: str, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return shares: what is taken as it is and cut, what ended, what is empty or was cut off.

    `NAME_cut_low` and `NAME_cut_high` are the 95 % interval of `NAME_cut` (Wilson).
    """
    count = max(1, len(verdicts))
    hits = sum(v.cut for v in verdicts)
    low, high = wilson(hits, len(verdicts))
    return {
        f"{name}_as_is": sum(v.as_is and not v.empty for v in verdicts) / count,
        f"{name}_cut": hits / count,
        f"{name}_cut_low": low,
        f"{name}_cut_high": high,
        f"{prefix}ended": sum(v.ended and not v.empty for v in verdicts) / count,
        f"{prefix}empty": sum(v.empty for v in verdicts) / count,
        f"{prefix}truncated": sum(not (v.ended or v.empty) for v in verdicts) / count,
    }


def share_change(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return by how much the share of hits changed on the same items, and its 95 % interval.

    Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data" (2012): one item that changed each way is added, so that the interval has
    a width also where none did.

    >>> change, low, high = share_change([False] * 6 + [True] * 14, [True] * 20)
    >>> [round(x, 2) for x in (change, low, high)]
    [0.3, 0.05, 0.5]
    """
    count = len(before)
    up = sum(b and not a for a, b in zip(before, after, strict=True))
    down = sum(a and not b for a, b in zip(before, after))
    if not count:
        return 0.0, -1.0, 1.0
    rise, fall = (up + 1) / (count + 2), (down + 1) / (count + 2)
    half = _Z * math.sqrt((rise + fall - (rise - fall) ** 2) / (count + 2))
    return (up - down) / count, max(-1.0, rise - fall - half), min(1.0, rise - fall + half)


class Judge(ABC, Generic[T]):
    """Looks at a model in one way, and once at the base in the same way.

    The base's figures stand beside the model's as base_NAME; NAME_change with its 95 % interval
    says how the two differ on the same items, which is known far better than either.
    """

    def __init__(self) -> None:
        self._base: T | None = None

    @abstractmethod
    def look(self, model: Any) -> T:
        """Return what was seen, item by item."""

    @abstractmethod
    def figures(self, seen: T) -> dict[str, float]:
        """Return what is told of a model."""

    @abstractmethod
    def changes(self, base: T, seen: T) -> dict[str, float]:
        """Return what is told of two models side by side."""

    @property
    def knows_the_base(self) -> bool:
        """Whether the base was looked at."""
        return self._base is not None

    def remember(self, model: Pretrained) -> None:
        """Take `model` as it is for the base."""
        self._base = self.look(model)

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the figures of the model, those of the base, and how they differ."""
        if self._base is None:
            with model.base():
                self.remember(model)
        return self.told(self.look(model))

    def told(self, seen: T) -> dict[str, float]:
        """Return the figures of what was seen, those of the base, and how they differ."""
        assert self._base is not None
        before = {
            f"base_{name}": value
            for name, value in self.figures(self._base).items()
            if not name.endswith(_ALONE)
        }
        return self.figures(seen) | before | self.changes(self._base, seen)


class TextJudge(Judge[Likelihood]):
    """Tells the perplexity of `batches` by token, called `name`; several processes share it.

    `bits` is tokens by byte: with it, the loss and bits by byte are told, too.
    """

    def __init__(self, batches: Rows, name: str, bits: float | None = None) -> None:
        super().__init__()
        self.batches, self.name, self.bits = batches, name, bits

    def look(self, model: Any) -> Likelihood:
        return _joined(self._pieces(model, 0, 1))

    @torch.no_grad()
    def _pieces(self, model: Any, first: int, step: int) -> list[Likelihood]:
        mine = islice(self.batches(), first, None, step)
        return [likelihood(model, [batch]) for batch in mine]

    def rows(self, model: Any, first: int, step: int) -> list[tuple[Likelihood, Likelihood | None]]:
        """Return what every `step`-th batch costs from `first` on, and the base the first time."""
        base: list[Likelihood] = []
        if self._base is None:
            with model.base():
                base = self._pieces(model, first, step)
        return list(zip_longest(self._pieces(model, first, step), base))

    def result(self, rows: Sequence[tuple[Likelihood, Likelihood | None]]) -> dict[str, float]:
        """Return what is told of all batches."""
        if self._base is None:
            self._base = _joined([base for _, base in rows if base is not None])
        return self.told(_joined([mine for mine, _ in rows]))

    def figures(self, seen: Likelihood) -> dict[str, float]:
        told = {f"{self.name}_loss": seen.loss} if self.bits is not None else {}
        told |= {f"{self.name}_ppl{end}": value for end, value in seen.perplexities().items()}
        if self.bits is not None:
            told[f"{self.name}_bits_per_byte"] = seen.loss / math.log(2) * self.bits
        return told

    def changes(self, base: Likelihood, seen: Likelihood) -> dict[str, float]:
        more = seen.than(base).perplexities()
        return {f"{self.name}_ppl_change{end}": value - 1 for end, value in more.items()}


class ShareJudge(Judge[Sequence[Verdict]]):
    """Lets the model complete prompts, and tells how much of it `judge` takes (see `rates`).

    With `own`, what stands after the prompts in their files, NAME_cut_files is the share of that
    under the same rule: the most that a model can reach.
    """

    def __init__(
        self, write: Callable[[Any], list[Completion]],
        judge: Callable[[Sequence[Completion]], Sequence[Verdict]], name: str, prefix: str = "",
        own: Sequence[Completion] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.write, self.judge, self.name, self.prefix = write, judge, name, prefix
        self.own = own

    @cached_property
    def _most(self) -> dict[str, float]:
        hits = [verdict.cut for verdict in self.judge(self.own)] if self.own else []
        return {f"{self.name}_cut_files": sum(hits) / len(hits)} if hits else {}

    def look(self, model: Any) -> Sequence[Verdict]:
        return self.judge(self.write(model))

    def figures(self, seen: Sequence[Verdict]) -> dict[str, float]:
        return rates(self.name, self.prefix, seen)

    def changes(self, base: Sequence[Verdict], seen: Sequence[Verdict]) -> dict[str, float]:
        found = share_change([v.cut for v in base], [v.cut for v in seen])
        ends = ("", "_low", "_high")
        told = {f"{self.name}_cut_change{end}": value for end, value in zip(ends, found)}
        return told | self._most
