"""From what a package ships to plain text worth learning. Pure functions: text in, text out."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["docstrings", "play", "plays"]

_SPEAKER = re.compile(r"^\*\*([^*\n]+)\*\*$", re.MULTILINE)
_DIRECTION = re.compile(r"(?:_*\[[^\[\]]*\]_*|_[^_]*_) ?")  # may span lines
_LEFTOVER = re.compile(r"[\[\]_*]")
_TYPED = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})
_TOOLS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}


def play(markdown: str) -> str:
    """Return the speeches of a play: `NAME:`, its lines, an empty line.

    Expects `**NAME**` before a speech, directions in `_..._` or brackets, headings with `#`;
    directions and headings are left out.

    >>> play("# ACT I\\n\\n_Enter KENT_\\n\\n**KENT**  \\nI thought _[Aside]_ the king")
    'KENT:\\nI thought the king\\n\\n'
    """
    text = markdown.replace("\r\n", "\n").replace("\\", "")
    return "".join(_speech(p) for p in re.split(r"\n\s*\n", text) if not p.lstrip().startswith("#"))


def _speech(paragraph: str) -> str:
    lines = "\n".join(line.strip() for line in paragraph.split("\n"))
    spoken = _LEFTOVER.sub("", _DIRECTION.sub("", _SPEAKER.sub(r"\1:", lines)))
    body = "\n".join(line.strip() for line in spoken.split("\n") if line.strip())
    return body + "\n\n" if body else ""


def plays(documents: Iterable[str], last_line: str | None = None) -> str:
    """Return several plays as one text; it ends after the line that ends with `last_line`."""
    text = "".join(play(document) for document in documents)
    if last_line is None:
        return text
    end = text.index(last_line) + len(last_line)
    return text[:end] + "\n"


def docstrings(topics: Iterable[str], library: Path) -> str:
    """Return help topics, then the docstrings of the modules in `library`, as one ASCII text.

    Meant for the standard library: every Python carries it, so this text needs no network.
    Typographic marks become what a keyboard has, and a paragraph that still has a character
    outside ASCII is left out, which keeps the alphabet small.
    """
    pieces = (_plain(piece) for piece in (*topics, *_documented(library)))
    return "".join(f"{piece}\n\n\n" for piece in pieces if piece)


def _plain(text: str) -> str:
    paragraphs = text.translate(_TYPED).strip().split("\n\n")
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph.isascii())


def _documented(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if _TOOLS.intersection(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old escapes in other people's strings
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue  # templates and deliberately broken files
        yield from _of_module(tree, path.stem)


def _of_module(tree: ast.Module, name: str) -> Iterator[str]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, owners) and (found := ast.get_docstring(node, clean=False)):
            yield f"{getattr(node, 'name', name)}\n{inspect.cleandoc(found)}"
