"""Old names and flat files: read with one note, never guessed silently.

A flat file has no sections: every line is `name: value`. Such files come from nanoGPT and from
times when there were few settings. Names of today are accepted in them without their section, old
names are translated, and what has no counterpart is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from surefoot.config.fields import Given, Leaf
from surefoot.config.names import LEFT_OUT, RENAMED
from surefoot.errors import Problem

if TYPE_CHECKING:
    from surefoot.config.place import Document

__all__ = ["Translation", "flag_note", "is_old", "today", "translate"]

_VALUES: dict[str, dict[Any, str]] = {
    "dtype": {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"},
    "compile": {True: "on", False: "off"},
    "decay_lr": {True: "cosine", False: "constant", "true": "cosine", "false": "constant"},
}
_ACCUMULATION = "gradient_accumulation_steps"
_CLASSIC = {"n_embd", "n_layer", "n_head", "block_size"}


def is_old(name: str) -> bool:
    """Return whether `name` is one that only old files and flags use."""
    return name in RENAMED or name in LEFT_OUT or name == _ACCUMULATION


def today(name: str, value: Any) -> Any:
    """Return the value of an old setting as it is written today.

    >>> today("dtype", "bfloat16"), today("decay_lr", False), today("n_embd", 64)
    ('bf16', 'constant', 64)
    """
    known = _VALUES.get(name, {})
    key = value.lower() if isinstance(value, str) else value
    return known.get(key, value) if isinstance(key, str | bool) else value


@dataclass
class Translation:
    """What the old part of a file says today; `taken` are the entries that were understood."""

    taken: set[str] = field(default_factory=set)
    values: dict[str, Given] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)  # as written -> path
    left_out: dict[str, str] = field(default_factory=dict)  # as written -> reason
    problems: list[Problem] = field(default_factory=list)

    def note(self, document: Document) -> str | None:
        """Return one note that lists every translation, or None when there was none."""
        if not self.renamed and not self.left_out:
            return None
        lines = [f"{document.name} uses old or short names; read as"]
        pairs = [f"{old} -> {path}".replace(" ", "\xa0") for old, path in self.renamed.items()]
        wrapped = wrap(", ".join(pairs), 92, break_long_words=False, break_on_hyphens=False)
        lines += [line.replace("\xa0", " ") for line in wrapped]
        lines += [f"left out: {name} ({why})" for name, why in self.left_out.items()]
        if _CLASSIC & set(self.renamed) and "model.layout" not in self.values:
            lines.append("for the classic model of such files: --layout gpt2 --optim.kind adamw")
        lines.append(f"write it in today's form: surefoot config migrate {document.name}")
        return "\n  ".join(lines)


def translate(
    document: Document, leaves: Mapping[str, Leaf], short: Mapping[str, str]
) -> Translation:
    """Read the entries of `document` that stand outside of sections.

    `short` maps the names of today that need no section here to their paths. Entries that are
    neither old nor short are not touched.
    """
    out = Translation()
    for name, value in document.data.items():
        path = RENAMED.get(name) or short.get(name)
        if name in LEFT_OUT and name not in short:
            out.left_out[name] = LEFT_OUT[name]
            out.taken.add(name)
        elif path is not None and path in leaves and name not in leaves:
            out.taken.add(name)
            _add(out, document, name, path, today(name, value))
    if _ACCUMULATION in document.data:
        out.taken.add(_ACCUMULATION)
        _accumulate(out, document)
    return out


def _add(out: Translation, document: Document, name: str, path: str, value: Any) -> None:
    spot = document.spot((name,))
    if path in out.values:
        other = next(old for old, known in out.renamed.items() if known == path)
        what = f"{name}: says the same as {other}"
        out.problems.append(document.problem(what, spot.key, f"keep one, as {path}"))
        return
    if not isinstance(value, bool | int | float | str | list | None):
        what = f"{name}: is not a plain value: {spot.text}"
        out.problems.append(document.problem(what, spot.value, "write the value itself"))
        return
    where = document.where(spot.value)
    text = spot.text if value == document.data[name] else None
    given = Given(value, where, where, document.excerpt(spot.value), text, f"{name} -> {path}")
    out.values[path], out.renamed[name] = given, path


def _accumulate(out: Translation, document: Document) -> None:
    """An old batch was `batch_size` examples, gradient_accumulation_steps times."""
    pieces, batch = document.data[_ACCUMULATION], out.values.get("train.batch_size")
    spot = document.spot((_ACCUMULATION,))
    if pieces == 1:
        out.left_out[_ACCUMULATION] = "1 changes nothing"
    elif batch is None or not all(type(n) is int and n > 0 for n in (pieces, batch.value)):
        fix = "write train.batch_size for the whole batch and machine.micro_batch_size for a piece"
        what = f"{_ACCUMULATION}: has no meaning without a batch_size beside it"
        out.problems.append(document.problem(what, spot.key, fix))
    else:
        where = document.where(spot.value)
        old = f"batch_size x {_ACCUMULATION} -> train.batch_size"
        whole = Given(batch.value * pieces, where, where, document.excerpt(spot.value), None, old)
        out.values["train.batch_size"], out.values["machine.micro_batch_size"] = whole, batch
        del out.renamed["batch_size"]
        out.renamed[f"batch_size x {_ACCUMULATION}"] = "train.batch_size"
        out.renamed["batch_size"] = "machine.micro_batch_size"


def flag_note(values: Mapping[str, Given]) -> str | None:
    """Return one note that lists the old flags among `values`, or None."""
    old = [given.old for given in values.values() if given.old]
    return f"old flags, read as {', '.join(old)}" if old else None
