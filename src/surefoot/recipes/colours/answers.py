"""Ask a model: the whole list for a score, one colour or one name for an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from surefoot.data import colours as names
from surefoot.data.colours import Colours
from surefoot.data.delta_e import delta_e
from surefoot.engine import Request
from surefoot.engine.checksum import weights_sum
from surefoot.errors import DataError
from surefoot.ops.way import exact
from surefoot.recipes.colours.settings import ColoursConfig
from surefoot.recipes.colours.tables import Tables

__all__ = ["Exam", "Palette", "Sheet", "vector_symbols"]

Int = NDArray[np.int64]
NEAR = 5  # known colours that are named beside an answer


@dataclass(frozen=True)
class Sheet:
    """What a model gave back for the names at places `rows` [n], by the way it took.

    `rgb` f32[n, 3] and `said` i64[n, T] are by way, such as `names_to_rgb`. `loss` is f64[n], the
    squared error of vectors, where there are some.
    """

    rows: Int
    rgb: Mapping[str, NDArray[np.float32]]
    said: Mapping[str, Int]
    loss: NDArray[np.float64] | None = None


def vector_symbols(vectors: torch.Tensor) -> torch.Tensor:
    """Return the symbols i64[B, T] that vectors f32[B, W] say, each place rounded to the nearest."""
    told = (vectors[:, : names.PLACES] * len(names.ALPHABET)).round()
    return told.clamp(0, len(names.ALPHABET)).long()


@dataclass
class Exam:
    """A list, asked in part: all that is held out, and some of what trains."""

    colours: Colours
    tables: Tables
    config: ColoursConfig
    _last: tuple[Any, dict[str, Sheet]] | None = field(default=None, repr=False)

    @cached_property
    def rows(self) -> dict[str, Int]:
        """Places in the list of the names that are asked: `trained` and `held out`."""
        train = self.colours.rows(held_out=False)
        step = -(-len(train) // self.config.data.train_names)
        return {"trained": train[::step], "held out": self.colours.rows(held_out=True)}

    def sit(self, model: nn.Module) -> dict[str, Sheet]:
        """Let the model give back everything; asked again of the same weights, the same comes back."""
        mark = (id(model), weights_sum(model))
        if self._last is None or self._last[0] != mark:
            self._last = mark, {part: self._sit(model, rows) for part, rows in self.rows.items()}
        return self._last[1]

    def _sit(self, model: nn.Module, rows: Int) -> Sheet:
        pieces: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, len(rows), self.config.data.val_batch):
            row = torch.from_numpy(rows[start : start + self.config.data.val_batch])
            for way, found in self._ask(model, row.to(self.tables.rgb.device)).items():
                pieces.setdefault(way, []).append(found.cpu().numpy())
        whole = {way: np.concatenate(parts) for way, parts in pieces.items()}
        said = {way: _ended(found) for way, found in whole.items() if way.endswith("names")}
        rgb = {way: found for way, found in whole.items() if way.endswith("rgb")}
        return Sheet(rows, rgb, said, whole.get("loss"))

    def _ask(self, model: nn.Module, row: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.tables.vectors is not None:
            wanted = self.tables.vectors[row]
            back = model(wanted)
            error = exact(back - wanted).square().mean(1)
            return {"loss": error, "names_to_names": vector_symbols(back)}
        seen = self.tables.see(model, row)._asdict()
        return {
            way: found.argmax(-1) if way.endswith("names") else found.float()
            for way, found in seen.items()
            if found is not None
        }

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Return mean errors a channel and CIEDE2000 of held-out colours, and what is held of names.

        `characters` and `held` are the shares of characters and of whole names that training names
        come back with; `named`, that of training colours which give their name. `val_loss` is the loss of held-out colours (of vectors, for those); a model of names alone
        has none, for what it is to hold are the names that it is trained on.
        """
        trained, held = self.sit(model).values()
        found: dict[str, float] = {}
        wanted = self.colours.rgb[held.rows]
        for way, rgb in held.rgb.items():
            found |= _distance("rgb" if way == "rgb_to_rgb" else "name", rgb, wanted)
        if "rgb_to_rgb" in held.rgb:
            error = np.square(held.rgb["rgb_to_rgb"].astype(np.float64) - wanted).sum(1).mean()
            found["val_loss"] = self.config.loss.rgb_to_rgb * float(error)
        if held.loss is not None:
            found["val_loss"] = float(held.loss.mean())
        if "rgb_to_names" in trained.said:
            found["named"] = self._right(trained, "rgb_to_names")[1]
        if "names_to_names" in trained.said:
            found["characters"], found["held"] = self._right(trained, "names_to_names")
            found["unseen_characters"], unseen = self._right(held, "names_to_names")
            if held.loss is not None:
                found["unseen_held"] = unseen
        return found

    def wanted(self, sheet: Sheet) -> Int:
        """Return the symbols i64[n, T] of the names of a sheet."""
        return names.symbols([self.colours.folded[row] for row in sheet.rows.tolist()])

    def _right(self, sheet: Sheet, way: str) -> tuple[float, float]:
        """Return the share of right characters, and that of names without a mistake."""
        wanted = self.wanted(sheet)
        same = sheet.said[way] == wanted
        return float(same[wanted > 0].mean()), float(same.all(1).mean())

    def scores_beside_words(self, model: nn.Module) -> dict[str, float]:
        """Return also how far off a table of words is, for the colours of held-out names."""
        found = self.scores(model)
        if "name_error" in found:
            rows = self.rows["held out"]
            said = names.nearest_word(self.colours)[rows]
            found |= _distance("nearest_word", said, self.colours.rgb[rows])
        return found


def _ended(said: Int) -> Int:
    """Return symbols i64[n, T] with nothing after the first end of each name."""
    return np.where((said == 0).cumsum(1) > 0, 0, said)


def _distance(
    label: str, rgb: NDArray[np.float32], wanted: NDArray[np.float32]
) -> dict[str, float]:
    off = float(delta_e(rgb, wanted).mean())
    return {f"{label}_error": float(np.abs(rgb - wanted).mean()), f"{label}_delta_e": off}


@dataclass(frozen=True)
class Palette:
    """A model, asked with `--rgb 0,0.28,0.73` and `--name-text "dusty teal"`."""

    models: Mapping[str, nn.Module]
    colours: Colours
    reads: str
    gram_kinds: int

    @property
    def questions(self) -> Mapping[str, Callable[[str, str], dict[str, Any]]]:
        """Return how each kind of question is answered."""
        return {"rgb": self.of_rgb, "name": self.of_name}

    def of_rgb(self, learner: str, text: str) -> dict[str, Any]:
        """Return what comes back of a colour, its name, and the known colours nearest to it.

        Raises DataError for what is no colour, and where the model reads names alone.
        """
        return self._of_rgb(self.models[learner].eval(), text)

    def of_name(self, learner: str, text: str) -> dict[str, Any]:
        """Return what comes back of a name, and the colour that it stands for.

        Raises DataError for a name that cannot be read, and where the model reads colours alone.
        """
        return self._of_name(self.models[learner].eval(), text)

    def reply(self, learner: str, request: Request) -> Iterator[str]:
        """Answer a prompt, a colour like #0048ba or 0,0.28,0.73 or a name, on one line."""
        text = request.prompt or ("#0048ba" if self.can("rgb") else "absolute zero")
        kind = "rgb" if text.lstrip().startswith("#") or "," in text else "name"
        if not request.prompt:
            yield text  # a prompt is written by whoever gave it
        yield self.write(f"{kind} {text}", self.models[learner].eval(), request.seed)

    def can(self, question: str) -> bool:
        """Whether a model of this kind can be asked `rgb ...` or `name ...`."""
        return (self.reads in ("rgb", "both")) if question[0] == "r" else self.reads != "rgb"

    def write(self, question: str, model: nn.Module, seed: int) -> str:
        """Answer `rgb 0,0.28,0.73` or `name dusty teal` on one line."""
        kind, _, text = question.partition(" ")
        found = {"rgb": self._of_rgb, "name": self._of_name}[kind](model, text)
        return f" -> {', '.join(filter(None, (found['hex'], found['name'])))}"

    def _refuse(self, question: str) -> None:
        if not self.can(question):
            what = f"this model was trained with --reads {self.reads} and reads no {question}"
            raise DataError(what, fix="surefoot train colours --reads both reads either")

    @torch.no_grad()
    def _of_rgb(self, model: Any, text: str) -> dict[str, Any]:
        self._refuse("rgb values")
        asked = names.parse_rgb(text)
        seen = model(rgb=torch.from_numpy(asked).float().unsqueeze(0).to(_device(model)))
        back = _cut(seen.rgb_to_rgb)
        name = None if seen.rgb_to_names is None else _read(seen.rgb_to_names)
        off = float(delta_e(asked, back))
        near = self.colours.nearest(asked, NEAR)
        lines = [_line("asked", asked), f"{_line('back', back)}  ΔE {off:.2f}"]
        lines += [] if name is None else [f"name   {name}"]
        return {
            "text": "\n".join(lines + _near(near)), "asked": asked.tolist(), "rgb": back.tolist(),
            "hex": names.hex_code(back), "delta_e": off, "name": name, "nearest": _plain(near),
        }  # fmt: skip

    @torch.no_grad()
    def _of_name(self, model: Any, text: str) -> dict[str, Any]:
        self._refuse("names")
        asked = names.check(text)
        back, name = self._given_back(model, asked)
        lines = [f"asked  {asked}", f"back   {name}"]
        near: list[tuple[str, str, float]] = []
        if back is not None:
            near = self.colours.nearest(back, NEAR)
            lines.append(_line("colour", back))
        known = [i for i, told in enumerate(self.colours.folded) if told == asked]
        for place in known:
            held = "held out" if self.colours.held_out[place] else "trained on"
            lines.append(f"{_line('listed', self.colours.rgb[place].astype(np.float64))}  {held}")
        return {
            "text": "\n".join(lines + _near(near)), "asked": asked, "name": name,
            "rgb": None if back is None else back.tolist(),
            "hex": None if back is None else names.hex_code(back),
            "listed": [names.hex_code(self.colours.rgb[i]) for i in known], "nearest": _plain(near),
        }  # fmt: skip

    def _given_back(self, model: Any, asked: str) -> tuple[NDArray[np.float64] | None, str]:
        device = _device(model)
        if self.reads == "vectors":
            width = model.encoder[0].in_features
            vector = torch.from_numpy(names.vectors(names.symbols([asked]), width)).to(device)
            return None, names.read(vector_symbols(model(vector))[0].tolist())
        pieces = torch.from_numpy(names.grams([asked], self.gram_kinds)).to(device)
        seen = model(grams=pieces)
        rgb = seen.names_to_rgb
        return None if rgb is None else _cut(rgb), _read(seen.names_to_names)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _cut(rgb: torch.Tensor) -> NDArray[np.float64]:
    """Return the first colour of f32[B, 3] as one that can be shown: channels from 0 to 1."""
    found: NDArray[np.float64] = rgb[0].cpu().double().clamp(0, 1).numpy()
    return found


def _read(logits: torch.Tensor) -> str:
    return names.read(logits[0].argmax(-1).tolist())


def _line(what: str, rgb: NDArray[np.float64]) -> str:
    return f"{what:<6} {names.hex_code(rgb)}  " + ", ".join(f"{channel:.3f}" for channel in rgb)


def _near(near: list[tuple[str, str, float]]) -> list[str]:
    heads = ["near", *[""] * len(near)]
    return [f"{h:<6} {code}  {name}, ΔE {off:.1f}" for h, (name, code, off) in zip(heads, near)]


def _plain(near: list[tuple[str, str, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "hex": code, "delta_e": off} for name, code, off in near]
