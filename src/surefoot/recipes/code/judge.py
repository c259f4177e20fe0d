"""How a tuned model is looked at: perplexity, what it forgot, and whether what it writes compiles.

Every figure stands beside that of the base under the same rule. A model never sees what it is
judged by: held-out files are other files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from surefoot.data.compile_rate import Completion, Prompt, Verdict, judge
from surefoot.data.parse_rate import judge_parse
from surefoot.engine import Request, TextSpeaker, wilson
from surefoot.nn.adapters import Writer

if TYPE_CHECKING:
    from surefoot.data.batch import Batch
    from surefoot.data.bpe import BPE
    from surefoot.nn.adapters import Pretrained

__all__ = [
    "Judge",
    "Likelihood",
    "compile_rates",
    "likelihood",
    "measured",
    "parse_rates",
    "problem_rates",
    "rates",
    "written",
]

Rows = Callable[[], Iterable["Batch"]]
_Z = 1.959964  # 95 %


@dataclass(frozen=True)
class Likelihood:
    """Mean `loss` in nats by token over `targets`, and the half width of its 95 % interval.

    The interval treats rows as drawn at random from the repository's.
    """

    loss: float
    half: float
    targets: int

    def perplexity(self, sign: int = 0) -> float:
        """exp(all nats / all tokens), or an end of its interval with `sign` -1 or 1."""
        return math.exp(min(self.loss + sign * self.half, 700.0))


def likelihood(model: Pretrained, batches: Iterable[Batch]) -> Likelihood:
    """Return the token-weighted mean loss over all rows of `batches`, and how sure it is."""
    nats: list[float] = []
    counts: list[int] = []
    for batch in batches:
        for x, y in zip(batch.fields["x"].split(1), batch.fields["y"].split(1)):
            nats.append(float(model(x, y)))
            counts.append(int((y != -100).sum()))
    total = sum(counts)
    mean = math.fsum(nats) / total
    spread = math.fsum((s - mean * n) ** 2 for s, n in zip(nats, counts))
    rows = len(nats)
    error = math.sqrt(spread * rows / max(1, rows - 1)) / total
    return Likelihood(mean, _Z * error, total)


def written(
    model: Pretrained, bpe: BPE, prompts: Sequence[Prompt], tokens: int, seen: int
) -> list[Completion]:
    """Let the model complete each prompt with the likeliest tokens, seeing the last `seen` of it."""
    speaker = TextSpeaker({"main": model}, bpe, "", bpe.boundary, {"main": Writer(model)})
    known = [bpe.encode(prompt.prefix)[-seen:].astype(np.int64) for prompt in prompts]
    asked = [Request(None, tokens, temperature=0.0)] * len(prompts)
    texts = speaker.continuations("main", known, asked)
    return [Completion(prompt, *text) for prompt, text in zip(prompts, texts)]


def compile_rates(completions: Sequence[Completion]) -> dict[str, float]:
    """Return shares of completions in Python, asked of the compiler (see `rates`)."""
    return rates("compile", "", judge(completions))


def parse_rates(completions: Sequence[Completion]) -> dict[str, float]:
    """Return shares of completions in other languages, asked of grammars (see `rates`)."""
    return rates("parse", "parse_", judge_parse(completions))


def problem_rates(completions: Sequence[Completion]) -> dict[str, float]:
    """Return shares of completions of problems, in Python, asked of the compiler (see `rates`)."""
    return rates("problems", "problems_", judge(completions))


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


@dataclass
class Judge:
    """Looks at a model in one way, and once at the base in the same way.

    `measure(model)` returns figures, of which those `compared` are told of the base, too.
    """

    measure: Callable[[Any], dict[str, float]]
    compared: tuple[str, ...]
    _base: dict[str, float] = field(default_factory=dict)

    def remember(self, model: Pretrained) -> None:
        """Take `model` as it is for the base."""
        found = self.measure(model)
        self._base = {f"base_{name}": found[name] for name in self.compared}

    def __call__(self, model: Any) -> dict[str, float]:
        """Return the figures of the model, and those of the base."""
        if not self._base:
            with model.base():
                self.remember(model)
        return self.measure(model) | self._base


@torch.no_grad()
def measured(model: Pretrained, rows: Rows, name: str, bits: float | None) -> dict[str, float]:
    """Return the perplexity by token with its 95 % interval, and the loss of held-out code.

    `bits` is tokens by byte: with it, bits by byte are told, too.
    """
    found = likelihood(model, rows())
    told = {f"{name}_loss": found.loss} if bits is not None else {}
    told |= {
        f"{name}_ppl": found.perplexity(),
        f"{name}_ppl_low": found.perplexity(-1),
        f"{name}_ppl_high": found.perplexity(1),
    }
    if bits is not None:
        told[f"{name}_bits_per_byte"] = found.loss / math.log(2) * bits
    return told
