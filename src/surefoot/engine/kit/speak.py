"""Use a trained model: what `surefoot sample` asks for, and how a language model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.data.tokenizer import Tokenizer
from surefoot.engine.kit.sample import Decodes, generate
from surefoot.engine.place import reads_past_mkl
from surefoot.errors import RunError
from surefoot.nn.decode import Decoder

__all__ = ["Answerer", "Request", "Silent", "Speaker", "TextSpeaker"]

_AT_ONCE = 64  # texts
_BEFORE = 4  # tokens that decide how the next is read


@dataclass(frozen=True)
class Request:
    """What a person asks of a model. `prompt` None means the recipe's own beginning."""

    prompt: str | None = None
    tokens: int = 300
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()  # the text ends before the first of these

    @property
    def settings(self) -> dict[str, Any]:
        """What `generate` is told, the seed aside."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}


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
class Silent:
    """Models of a recipe without a voice; only `models` are of use."""

    models: Mapping[str, nn.Module]
    recipe: str

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Raise RunError."""
        fix = "surefoot.load(RUN) in Python returns the model; `speak` in the recipe gives it words"
        raise RunError(f"recipe {self.recipe} has nothing to say", fix=fix)


@dataclass(frozen=True)
class TextSpeaker:
    """A language model and its tokenizer.

    `border` is the token between documents, where there is one: it stands before every prompt,
    and a text ends where the model writes it. `engines` compute instead of the models, by learner.
    """

    models: Mapping[str, nn.Module]
    tokenizer: Tokenizer
    default_prompt: str = "\n"
    border: int | None = None
    engines: Mapping[str, Decodes] = field(default_factory=dict)

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Continue the prompt; pieces are whole characters, whatever the tokens are."""
        prompt = self._read(request.prompt)
        text = _Writing(self.tokenizer, self.border, request.stop, prompt)
        known = torch.from_numpy(prompt).unsqueeze(0)
        for token in self._generate(learner, known, request, request.seed):
            yield text.push(int(token))
            if text.done:
                return
        yield text.rest()

    def replies(self, learner: str, requests: Sequence[Request]) -> list[str]:
        """Return what follows each prompt; those of equal length and settings are written at once.

        A text does not depend on the others, but for the rounding of larger matrix products.
        """
        if learner in self.engines:  # they write one text at a time
            return ["".join(self.reply(learner, request)) for request in requests]
        prompts = [self._read(request.prompt) for request in requests]
        return [text for text, _ in self.continuations(learner, prompts, requests)]

    def continuations(
        self, learner: str, prompts: Sequence[NDArray[np.int64]], requests: Sequence[Request]
    ) -> list[tuple[str, bool]]:
        """Like `replies`, for prompts as tokens [n]; also whether each text ended by itself."""
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            key = (len(prompts[i]), replace(request, prompt=None, seed=0))
            groups.setdefault(key, []).append(i)
        found = [("", False)] * len(requests)
        for shared, members in _shares(groups):
            known = torch.from_numpy(np.stack([prompts[i] for i in members]))
            texts = [
                _Writing(self.tokenizer, self.border, shared.stop, prompts[i]) for i in members
            ]
            seeds = [requests[i].seed for i in members]
            said = [""] * len(members)
            for tokens in self._generate(learner, known, shared, seeds):
                said = [a + text.push(t) for a, text, t in zip(said, texts, tokens.tolist())]
                if all(text.done for text in texts):
                    break
            for i, text, start in zip(members, texts, said):
                whole = text.done
                found[i] = (start + text.rest(), whole)
        return found

    def remark(self, learner: str, prompt: str | None) -> str | None:
        """Say so when the model cannot see the whole prompt."""
        tokens, context = len(self._read(prompt)), self._context(learner)
        if tokens <= context:
            return None
        return f"the prompt has {tokens:,} tokens; the model sees the last {context:,} at most"

    def _context(self, learner: str) -> int:
        model: Any = self.models[learner]
        return int(model.config.context)

    def _generate(
        self, learner: str, known: torch.Tensor, request: Request, seed: int | list[int]
    ) -> Iterator[torch.Tensor]:
        model: Any = self.models[learner].eval()
        decode = self.engines.get(learner) or Decoder(model, reads_past_mkl())
        tokens = known.to(decode.device)
        return generate(decode, tokens, request.tokens, seed=seed, **request.settings)

    def _read(self, prompt: str | None) -> NDArray[np.int64]:
        tokens = self.tokenizer.encode(self.default_prompt if prompt is None else prompt)
        first = [] if self.border is None else [self.border]
        return np.concatenate((np.array(first, dtype=np.int64), tokens.astype(np.int64)))


def _shares(groups: Mapping[Any, list[int]]) -> Iterator[tuple[Request, list[int]]]:
    """Yield what is written at once: not so much that keys and values would fill the memory."""
    for (_, shared), members in groups.items():
        for start in range(0, len(members), _AT_ONCE):
            yield shared, members[start : start + _AT_ONCE]


class _Writing:
    """A text as it grows, token by token; what may still change is held back.

    Tokens are read after those before them, at first the end of the prompt: some vocabularies
    drop the space of a word where it is the first.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        border: int | None,
        stops: tuple[str, ...],
        prompt: Sequence[int] | NDArray[np.int64] = (),
    ) -> None:
        self._tokenizer, self._border, self._stops = tokenizer, border, stops
        self._before = [int(token) for token in prompt[-_BEFORE:] if token != border]
        self._tokens: list[int] = []  # of a character that is not whole yet
        self._held = ""  # may be the beginning of a stop
        self.done = False

    def push(self, token: int) -> str:
        """Take a token; return what can be shown. After `done`, nothing is."""
        if self.done:
            return ""
        if token == self._border:
            return self.rest()
        self._tokens.append(token)
        text = self._text()
        if text.endswith("�"):
            return ""
        self._before, self._tokens = (self._before + self._tokens)[-_BEFORE:], []
        return self._past(text)

    def rest(self) -> str:
        """Return what was held back; the text is done."""
        if self.done:
            return ""
        shown = self._past(self._text())
        found = shown if self.done else shown + self._held
        self.done = True
        return found

    def _text(self) -> str:
        """Return the text of the last tokens."""
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._tokens)[len(before) :]

    def _past(self, text: str) -> str:
        """Return what surely stands before a stop."""
        text = self._held + text
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.done = True
            return text[: min(places)]
        longest = max(map(len, self._stops), default=1)
        kept = range(min(len(text), longest - 1), 0, -1)
        held = next((n for n in kept if any(s.startswith(text[-n:]) for s in self._stops)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
