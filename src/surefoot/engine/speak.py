"""Use a trained model: what `surefoot sample` asks for, and how a language model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.data.tokenizer import Tokenizer
from surefoot.engine.sample import generate

__all__ = ["Answerer", "Request", "Speaker", "TextSpeaker"]


@dataclass(frozen=True)
class Request:
    """What a person asks of a model. `prompt` None means the recipe's own beginning."""

    prompt: str | None = None
    tokens: int = 300
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Speaker(Protocol):
    """Models by learner name, and how one of them answers."""

    @property
    def models(self) -> Mapping[str, nn.Module]: ...

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Yield pieces of text, the prompt not included.

        Raises DataError when the prompt cannot be read with the model's vocabulary.
        """
        ...


Answer = Callable[[str, str], Mapping[str, Any]]


@runtime_checkable
class Answerer(Protocol):
    """A speaker that also answers questions: `surefoot sample RUN --ask Q`."""

    @property
    def questions(self) -> Mapping[str, Answer]:
        """Return, for each kind of question (`ask`), what answers it.

        That takes a learner and the question, and returns facts as plain values, with `text` for
        a person. It raises DataError for a question that cannot be read.
        """
        ...


@dataclass(frozen=True)
class TextSpeaker:
    """A language model and its tokenizer.

    `border` is the token between documents, where there is one: it stands before every prompt,
    and a text ends where the model writes it.
    """

    models: Mapping[str, nn.Module]
    tokenizer: Tokenizer
    default_prompt: str = "\n"
    border: int | None = None

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Continue the prompt; pieces are whole characters, whatever the tokens are."""
        model: Any = self.models[learner].eval()
        known = torch.from_numpy(self._read(request.prompt)).unsqueeze(0)
        device = next(model.parameters()).device
        kept: list[int] = []  # tokens of a character that is not whole yet
        with torch.no_grad():
            for token in generate(
                model, known.to(device), request.tokens,
                temperature=request.temperature, top_k=request.top_k, top_p=request.top_p,
                seed=request.seed,
            ):  # fmt: skip
                if int(token) == self.border:
                    break
                kept.append(int(token))
                text = self.tokenizer.decode(kept)
                if not text.endswith("�"):
                    kept.clear()
                    yield text
        yield self.tokenizer.decode(kept)

    def _read(self, prompt: str | None) -> NDArray[np.int64]:
        tokens = self.tokenizer.encode(self.default_prompt if prompt is None else prompt)
        first = [] if self.border is None else [self.border]
        return np.concatenate((np.array(first, dtype=np.int64), tokens.astype(np.int64)))
