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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from surefoot.data.compile_child import READY
from surefoot.data.repository import CodeFile
from surefoot.errors import Unsupported

__all__ = [
    "Completion",
    "Prompt",
    "Verdict",
    "asked_of",
    "drawn",
    "function_prompts",
    "judge",
    "verdicts",
]

# For one process, which limits its own processor time: numbers must not hang on how busy the machine is.
_SECONDS = 600.0
_A_FILE = 4  # functions of one file


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out file, up to the head of a function whose body is to be written.

    `column` is where its body begins; the docstring is part of the prompt. The end of its last
    line is not: most tokenizers join it with the spaces that follow.

    In a language with braces, `grammar` names what judges it, `begin` is the byte of the brace that
    opens the body, and `outer` how many braces are open around the function.
    """

    file: str
    line: int
    prefix: str
    column: int
    grammar: str = ""
    begin: int = 0
    outer: int = 0


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
    python = (file for file in files if file.language == "python")
    return drawn([p for file in python for p in drawn(_of(file), seed, None)], seed, most)


def drawn(prompts: Iterable[Prompt], seed: int, most: int | None) -> list[Prompt]:
    """Return `most` of them drawn by `seed`; None: as many as one file may give."""

    def rank(prompt: Prompt) -> int:
        return xxhash.xxh3_64_intdigest(f"prompt {seed} {prompt.file} {prompt.line}".encode())

    return sorted(prompts, key=rank)[: _A_FILE if most is None else most]


def _of(file: CodeFile) -> Iterator[Prompt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = file.text.split("\n")
    # Up to the end of such a function, no handler makes the try whole: nothing would compile.
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try | ast.TryStar))
    tried = {inner for node in tries for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node not in tried:
            found = _prompt(file, node, lines)
            if found is not None:
                yield found


def _prompt(
    file: CodeFile, node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]
) -> Prompt | None:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body:
        return None
    first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
    before = lines[first - 2].strip() if first > 1 else ""
    shared = lines[body[0].lineno - 1].encode()[: body[0].col_offset].strip()
    if shared or before.startswith("#"):  # a body on the line where its head or docstring ends
        return None
    prefix = "\n".join(lines[: first - 1])
    return Prompt(file.name, node.lineno, prefix, body[0].col_offset)


def judge(completions: Sequence[Completion]) -> list[Verdict]:
    """Return a verdict on each. A piece that the process does not survive does not compile."""
    child = Path(__file__).with_name("compile_child.py")
    command = ["-I", "-S", "-W", "ignore", str(child)]

    def told(c: Completion) -> dict[str, Any]:
        prompt = c.prompt
        return {"prefix": prompt.prefix, "text": c.text, "column": prompt.column, "whole": c.whole}

    return verdicts(completions, lambda rest: asked_of(command, map(told, rest)))


def verdicts(
    completions: Sequence[Completion], ask: Callable[[Sequence[Completion]], Iterable[Verdict]]
) -> list[Verdict]:
    """Return a verdict on each, of processes that `ask` lets judge as many as they live for."""
    found: list[Verdict] = []
    while len(found) < len(completions):
        before = len(found)
        found += ask(completions[before:])
        if len(found) < len(completions):  # the process ended at this one
            found.append(Verdict(False, False, False, not completions[len(found)].text.strip()))
    return found


def asked_of(command: Sequence[str], pieces: Iterable[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Yield the verdicts of one Python process on `pieces`, as many as it lived to give.

    Raises Unsupported where it did not even begin, which says nothing of any piece.
    """
    asked = "".join(json.dumps(piece) + "\n" for piece in pieces)
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="surrogatepass",
    )  # fmt: skip
    try:
        told, errors = process.communicate(asked, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        told, errors = process.communicate()
    ready, *lines = told.splitlines() or [""]
    if ready != READY:
        why = (errors.splitlines() or [f"it ended with {process.returncode}"])[-1]
        what = f"the process that judges written code did not begin: {why}"
        raise Unsupported(what, fix="--prompts 0 goes on without it")
    for line in lines:
        try:
            yield Verdict(**json.loads(line))
        except (ValueError, TypeError):  # cut off in the middle
            return
