"""Prompts from files of programming problems, as HumanEval and MBPP have them: for compiling only.

Nothing of such a file is executed, neither its solutions nor its tests. Problems that stand in what
a model is trained on say nothing, so they are looked for.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from surefoot.data.compile_rate import Prompt, drawn
from surefoot.data.files import mend_path
from surefoot.errors import DataError

__all__ = ["Problem", "leaks", "read_problems"]

_RUN = 5  # words in a row that are compared
_FEW = 8  # runs below which two texts are alike by chance
_SHARE = 0.7  # of a problem's runs that make it known
_WRONG: dict[type[Exception], str] = {
    KeyError: "it has no ", SyntaxError: "its code is no Python: ",
    json.JSONDecodeError: "it is no JSON: ",
}  # fmt: skip
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Problem:
    """A problem: what a model completes, and all its code, to look for it elsewhere."""

    name: str
    prompt: Prompt
    code: str


def read_problems(path: Path, most: int, seed: int = 0) -> list[Problem]:
    """Return up to `most` problems of a file of JSON Lines, drawn by `seed`.

    Known are the fields of HumanEval (prompt, canonical_solution) and of MBPP (text or prompt, and
    code). Raises DataError with the line where there is something else.
    """
    if not path.is_file():
        what = f"evaluation.prompts_file: there is no file {path}"
        raise DataError(what, fix=mend_path(path))
    found: list[Problem] = []
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        what = f"evaluation.prompts_file: {path} is no text: {error.reason}"
        raise DataError(what, fix="JSON Lines, unpacked") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_problem(json.loads(line), number))
            except (ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
                raise DataError(
                    f"evaluation.prompts_file: not a problem: {_WRONG.get(type(error), '')}{error}",
                    where=f"{path}:{number}", fix="a line as in HumanEval or MBPP",
                ) from None  # fmt: skip
    if not found:
        raise DataError(f"evaluation.prompts_file: {path} is empty", fix="another file")
    kept = {id(p) for p in drawn([p.prompt for p in found], seed, most)}
    return [p for p in found if id(p.prompt) in kept]


def _problem(told: Mapping[str, Any], line: int) -> Problem:
    if not isinstance(told, Mapping):
        raise TypeError("it is no object")
    name = str(told.get("task_id", line))
    if "canonical_solution" in told:
        text = str(told["prompt"])
        if not text.strip():
            raise ValueError("its prompt is empty")
        column = len(text.rstrip().rpartition("\n")[2]) - len(
            text.rstrip().rpartition("\n")[2].lstrip()
        )
        prompt = Prompt(name, line, text.rstrip(), column or 4)
        return Problem(name, prompt, text + str(told["canonical_solution"]))
    code = str(told["code"]).replace("\r\n", "\n")
    return Problem(name, _head(code, str(told.get("text") or told["prompt"]), name, line), code)


def _head(code: str, text: str, name: str, line: int) -> Prompt:
    """Return the beginning of `code` up to its last function's head, with `text` as docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functions = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)]
    if not functions:
        raise ValueError("its code defines no function")
    last = functions[-1]
    first = last.body[0]
    head = code.split("\n")[: max(last.lineno, first.lineno - 1)]
    if first.lineno == last.lineno:  # on the line of its head
        head[-1] = head[-1][: first.col_offset].rstrip()
    below = first.lineno > last.lineno
    indent = code.split("\n")[first.lineno - 1][: first.col_offset] if below else " " * 4
    quoted = text.strip().replace("\\", "\\\\").replace('"""', "'''")
    docstring = f'{indent}"""{quoted}"""'
    return Prompt(name, line, "\n".join([*head, docstring]), len(indent))


def leaks(problems: Sequence[Problem], texts: Iterable[str]) -> list[str]:
    """Return the names of problems most of whose code stands in `texts`, whatever its spaces.

    Compared are runs of five words; of problems with hardly any, all of them must be there.
    """
    known: dict[str, int] = {}
    seen = [_runs(text, known) for text in texts]
    there = np.unique(np.concatenate(seen)) if seen else np.empty(0, np.uint64)
    found = []
    for problem in problems:
        mine = np.unique(_runs(problem.code, known))
        share = float(np.isin(mine, there).mean()) if len(mine) else 0.0
        if share >= (_SHARE if len(mine) >= _FEW else 1.0):
            found.append(problem.name)
    return found


def _runs(text: str, known: dict[str, int]) -> NDArray[np.uint64]:
    """Return a hash of each run of words; `known` keeps those of words."""
    words = _WORD.findall(text)
    for word in words:
        if word not in known:
            known[word] = xxhash.xxh3_64_intdigest(word.encode(errors="replace"))
    hashes = np.array([known[word] for word in words], dtype=np.uint64)
    if len(hashes) < _RUN:
        return np.empty(0, np.uint64)
    found = np.zeros(len(hashes) - _RUN + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(_RUN):
            part = hashes[place : place + len(found)]
            found = (found ^ part) * np.uint64(0x9E3779B97F4A7C15)
    return found
