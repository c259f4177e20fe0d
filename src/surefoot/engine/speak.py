"""Use a trained model: what `surefoot sample` asks for, and how a language model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
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
    """A language model and its tokenizer."""

    models: Mapping[str, nn.Module]
    tokenizer: Tokenizer
    default_prompt: str = "\n"

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Continue the prompt; pieces are whole characters, whatever the tokens are."""
        model: Any = self.models[learner].eval()
        prompt = self.default_prompt if request.prompt is None else request.prompt
        known = torch.from_numpy(self.tokenizer.encode(prompt).astype("int64"))
        device = next(model.parameters()).device
        said: list[int] = []
        shown = 0
        with torch.no_grad():
            for token in generate(
                model, known.unsqueeze(0).to(device), request.tokens,
                temperature=request.temperature, top_k=request.top_k, top_p=request.top_p,
                seed=request.seed,
            ):  # fmt: skip
                said.append(int(token))
                text = self.tokenizer.decode(said)
                whole = text.rstrip("�")  # a symbol of several bytes may be cut off here
                yield whole[shown:]
                shown = len(whole)
        yield self.tokenizer.decode(said)[shown:]
