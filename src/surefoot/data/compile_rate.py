"""How often Python that a model wrote compiles: asked of a limited process, never executed.

It compiles, which is all that is said: whether it does what it should is not looked at. What
counts as valid depends on the version of Python, so that belongs to the record.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from surefoot.data.repository import CodeFile

__all__ = ["Completion", "Prompt", "Verdict", "function_prompts", "judge"]

_SECONDS = 20.0  # for one process
_A_FILE = 4  # functions of one file


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out file, up to the head of a function whose body is to be written.

    `column` is where its body begins; the docstring is part of the prompt. The end of its last
    line is not: most tokenizers join it with the spaces that follow.
    """

    file: str
    line: int
    prefix: str
    column: int


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt; `whole` when it ended by itself."""

    prompt: Prompt
    text: str
    whole: bool


@dataclass(frozen=True)
class Verdict:
    """Whether a completion compiles `as_is`, and `cut` at the end of the function or, where it has

    none, before the last statement; whether the function `ended`; whether it is `empty`.
    """

    as_is: bool
    cut: bool
    ended: bool
    empty: bool


def function_prompts(files: Iterable[CodeFile], most: int, seed: int = 0) -> list[Prompt]:
    """Return up to `most` functions of the Python files, four of a file, drawn by `seed`.

    Files that do not compile as they are give none.
    """
    found = [p for file in files if file.language == "python" for p in _of(file, seed)]
    return sorted(found, key=lambda p: _rank(p, seed))[:most]


def _rank(prompt: Prompt, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(f"prompt {seed} {prompt.file} {prompt.line}".encode())


def _of(file: CodeFile, seed: int) -> list[Prompt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    lines = file.text.split("\n")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [p for node in functions if (p := _prompt(file, node, lines)) is not None]
    return sorted(found, key=lambda p: _rank(p, seed))[:_A_FILE]


def _prompt(
    file: CodeFile, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]
) -> Prompt | None:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body:
        return None
    first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
    before = lines[first - 2].strip() if first > 1 else ""
    if first <= node.lineno or before.startswith("#"):  # a body on the line of its head
        return None
    prefix = "\n".join(lines[: first - 1])
    return Prompt(file.name, node.lineno, prefix, body[0].col_offset)


def judge(completions: Sequence[Completion]) -> list[Verdict]:
    """Return a verdict on each. A piece that the process does not survive does not compile."""
    found: list[Verdict] = []
    while len(found) < len(completions):
        before = len(found)
        found += _asked(completions[before:])
        if len(found) < len(completions):  # the process ended at this one
            found.append(Verdict(False, False, False, not completions[len(found)].text.strip()))
    return found


def _asked(completions: Sequence[Completion]) -> Iterator[Verdict]:
    """Yield the verdicts of one process, as many as it lived to give."""
    child = Path(__file__).with_name("compile_child.py")
    asked = "".join(
        json.dumps(
            {"prefix": c.prompt.prefix, "text": c.text, "column": c.prompt.column, "whole": c.whole}
        )
        + "\n"
        for c in completions
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-W", "ignore", str(child)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, encoding="utf-8", errors="surrogatepass",
    )  # fmt: skip
    try:
        told, _ = process.communicate(asked, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
    for line in told.splitlines():
        try:
            yield Verdict(**json.loads(line))
        except (ValueError, TypeError):  # cut off in the middle
            return
