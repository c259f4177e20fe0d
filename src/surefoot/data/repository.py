"""The code of a repository: which files count, and which are trained on, validated and tested.

A file counts when git would not ignore it, it is text in a language we know, a person seems to
have written it, and it is no copy of another. Sides are drawn by file, before anything is cut, so
that no window of a held-out file is ever trained on. Nothing of a repository is executed.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from surefoot.data.duplicates import near_duplicates
from surefoot.data.fetch import writing
from surefoot.data.files import mend_path
from surefoot.data.languages import LANGUAGES, generated, language_of
from surefoot.data.secrets import looking_secret
from surefoot.errors import DataError

__all__ = ["SIDES", "CodeFile", "Repository", "read_repository", "stored_repository"]

SIDES = ("train", "val", "test")
_LARGEST = 1 << 20  # bytes
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv", "CVS"}
_GIT_SECONDS = 120
_CLONE = "git clone {} FOLDER, and --repo FOLDER"
_TOLD = 3  # examples of each remark


@dataclass(frozen=True)
class CodeFile:
    """One file: its name in the repository, its language and its text."""

    name: str
    language: str
    text: str


@dataclass(frozen=True)
class Repository:
    """Files by side, and what a person should know of how they were chosen."""

    name: str
    sides: Mapping[str, Sequence[CodeFile]] = field(repr=False)
    notes: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # file:line: kind

    @property
    def digest(self) -> str:
        """A name of the texts and their sides."""
        state = xxhash.xxh3_128()
        for text in self.jsonl().values():
            state.update(text.encode())
        return state.hexdigest()

    def jsonl(self) -> dict[str, str]:
        """Return each side as JSON Lines: one object with path, language and text for a file."""
        return {f"{side}.jsonl": "".join(map(_line, self.sides[side])) for side in SIDES}

    def describe(self) -> dict[str, Any]:
        """Return for the record what the code is; plain JSON values."""
        every = [f for side in SIDES for f in self.sides[side]]
        return {
            "name": self.name,
            "unit": "tokens",
            "languages": dict(Counter(f.language for f in every).most_common()),
            **{s: {"files": len(x), "bytes": _bytes(x)} for s, x in self.sides.items()},
            "secrets": list(self.secrets),
            "notes": list(self.notes),
        }

    def store(self, cache: Path) -> None:
        """Write the repository into the cache under its digest, so that a resume finds it as it was.

        Where it lies there already nothing is written, for a cache may be shared and read-only.
        """
        if stored_repository(cache, self.digest) is not None:
            return
        told = {"name": self.name, "notes": self.notes, "secrets": self.secrets}
        with writing(_stored_at(cache, self.digest)) as file:
            file.write(json.dumps({**told, **self.jsonl()}).encode())


def stored_repository(cache: Path, digest: str) -> Repository | None:
    """Return what `Repository.store` wrote, or None where it is gone or no longer whole."""
    try:
        told = json.loads(_stored_at(cache, digest).read_bytes())
        sides = {s: [_file(line) for line in told[f"{s}.jsonl"].split("\n") if line] for s in SIDES}
        found = Repository(told["name"], sides, tuple(told["notes"]), tuple(told["secrets"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.digest == digest else None


def read_repository(
    path: Path,
    *,
    languages: Sequence[str] = (),
    val_ratio: float = 0.05,
    test_ratio: float = 0.05,
    seed: int = 1,
    similarity: float = 0.85,
    drop_secrets: bool = False,
) -> Repository:
    """Read the files at `path`, a folder with or without git.

    `languages` limits what is read. A side is drawn from `seed` and the file's name alone; both
    held-out sides get at least one file. `similarity` is the overlap from which a file counts as
    a copy (1: only equal ones). Raises DataError with what is missing and what to do.
    """
    unknown = [name for name in languages if name not in LANGUAGES]
    if unknown:
        fix = f"of {', '.join(LANGUAGES)}"
        raise DataError(f"data.languages: unknown: {', '.join(unknown)}", fix=fix)
    root = _root(path)
    names, how = _names(root)
    inner = [name for name in names if (root / name).is_dir() and not (root / name).is_symlink()]
    left = {"repositories within it, left out": inner}
    files = list(_texts(root, names, set(languages), left))
    files = _without_copies(files, similarity, left)
    found = [f"{f.name}:{n}: {kind}" for f in files for n, kind in looking_secret(f.text)]
    if drop_secrets:
        risky = {entry.rsplit(":", 2)[0] for entry in found}
        left["files with what looks secret"] = sorted(risky)
        files = [f for f in files if f.name not in risky]
    if len(files) < len(SIDES):
        raise DataError(
            f"data.repo: {path} has {len(files)} file{'s' * (len(files) != 1)} of code to learn from, and it takes "
            f"{len(SIDES)}: some are validated with and some tested",
            where="; ".join(_remarks(left)) or how,
            fix="give a folder with more files, or other --languages",
        )
    sides = _divided(files, val_ratio, test_ratio, seed)
    return Repository(root.name, sides, (how, *_remarks(left)), tuple(found))


def _root(path: Path) -> Path:
    if not path.exists() and (address := re.match(r"(\w+:)/(?=\w)|[\w.-]+@[\w.-]+:", str(path))):
        found = str(path).replace(address[0], f"{address[1]}//", 1) if address[1] else path
        raise DataError(f"data.repo: {found} is an address", fix=_CLONE.format(found))
    if not path.exists():
        raise DataError(f"data.repo: there is nothing at {path}", fix=mend_path(path))
    if not path.is_dir():
        raise DataError(f"data.repo: {path} is a file", fix="give the folder of a repository")
    return path.resolve()


def _names(root: Path) -> tuple[list[str], str]:
    """Return names relative to `root`, in order, and how they were found."""
    # Settings of a repository may name a program to run, which is also why git refuses those of others.
    safe = ["-c", "core.fsmonitor=false", "-c", "safe.directory=*"]
    command = ["git", "-C", str(root), *safe, "ls-files", "-z", "--cached", "--others"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}  # no locks; English
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"], capture_output=True, env=quiet,
            stdin=subprocess.DEVNULL, timeout=_GIT_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return _walked(root), "git is not installed, so its ignore rules are not known"
    except subprocess.TimeoutExpired:
        raise DataError(f"data.repo: git did not answer in {_GIT_SECONDS} s: {root}") from None
    if done.returncode:
        said = os.fsdecode(done.stderr).strip().partition("\n")[0]
        if "work tree" in said:
            what = f"data.repo: {root} is a bare repository, without files"
            raise DataError(what, fix=_CLONE.format(root))
        why = "no git repository" if "not a git repository" in said else f"git refuses ({said})"
        return _walked(root), f"{why}: every folder that is not hidden is read"
    names = sorted(set(filter(None, os.fsdecode(done.stdout).split("\0"))))
    if not names:
        return _walked(
            root
        ), "git lists nothing in this folder, so every folder that is not hidden is read"
    return names, "what git ignores is left out"


def _walked(root: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in _SKIPPED)
        place = Path(folder).relative_to(root)
        found += [(place / n).as_posix() for n in names if not n.startswith(".")]
    return sorted(found)


def _texts(
    root: Path, names: Iterable[str], wanted: set[str], left: dict[str, list[str]]
) -> Iterator[CodeFile]:
    """Yield the files that count; names of the others go to `left` by reason."""
    seen: dict[str, str] = {}
    for path in names:
        language = language_of(path)
        if language is None or (wanted and language not in wanted):
            continue
        read = _read(root / path, root)
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # it may be in any encoding
        if isinstance(read, str):
            left.setdefault(read, []).append(name)
            continue
        text, encoding = read
        if encoding != "UTF-8":
            left.setdefault(f"files read as {encoding}", []).append(name)
        if not text.strip():
            left.setdefault("empty files", []).append(name)
        elif generated(name, text):
            left.setdefault("generated files", []).append(name)
        elif (twin := seen.setdefault(text, name)) != name:
            left.setdefault("copies", []).append(f"{name} of {twin}")
        else:
            yield CodeFile(name, language, text)


def _read(path: Path, root: Path) -> tuple[str, str] | str:
    """Return the text and its encoding, or why it is left out."""
    try:
        if not os.path.lexists(path):
            return "files that git knows and that are not there"
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(root):
            return "links and special files"
        if path.stat().st_size > _LARGEST:
            return "files above 1 MB"
        content = path.read_bytes()
    except OSError:
        return "unreadable files"
    text, encoding = _decoded(content)
    if "\0" in text:
        return "binary files"
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


def _decoded(content: bytes) -> tuple[str, str]:
    """Return text and the name of its encoding; UTF-16 is what a byte-order mark says is that."""
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding, name = ("utf-16", "UTF-16") if wide else ("utf-8-sig", "UTF-8")
    try:
        return content.decode(encoding), name
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def _without_copies(
    files: list[CodeFile], similarity: float, left: dict[str, list[str]]
) -> list[CodeFile]:
    if similarity >= 1:
        return files
    near = near_duplicates([f.text for f in files], similarity)
    if near:
        left["near copies"] = [f"{files[i].name} of {files[j].name}" for i, j in near.items()]
    return [f for i, f in enumerate(files) if i not in near]


def _divided(
    files: Sequence[CodeFile], val_ratio: float, test_ratio: float, seed: int
) -> dict[str, list[CodeFile]]:
    """Draw sides by the hash of (seed, name): a file keeps its side when others come and go."""

    def rank(file: CodeFile) -> float:
        return xxhash.xxh3_64_intdigest(f"side {seed} {file.name}".encode()) / 2**64

    ordered = sorted(files, key=lambda f: (rank(f), f.name))
    edges = (val_ratio, val_ratio + test_ratio)
    val = max(1, sum(rank(f) < edges[0] for f in ordered))
    test = max(1, sum(edges[0] <= rank(f) < edges[1] for f in ordered[val:]))
    cut = {"val": ordered[:val], "test": ordered[val : val + test], "train": ordered[val + test :]}
    if not cut["train"]:
        raise DataError(
            "data.val_ratio and data.test_ratio leave nothing to train on",
            where=f"{len(files)} files", fix="smaller shares",
        )  # fmt: skip
    return {side: sorted(cut[side], key=lambda f: f.name) for side in SIDES}


def _remarks(left: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what was left out or changed, with some examples."""
    found = []
    for reason, names in left.items():
        if names:
            more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
            found.append(f"{reason}: {', '.join(names[:_TOLD])}{more}")
    return found


def _bytes(files: Iterable[CodeFile]) -> int:
    return sum(len(f.text.encode()) for f in files)


def _line(file: CodeFile) -> str:
    told = {"path": file.name, "language": file.language, "text": file.text}
    return json.dumps(told, ensure_ascii=True) + "\n"


def _file(line: str) -> CodeFile:
    told = json.loads(line)
    return CodeFile(told["path"], told["language"], told["text"])


def _stored_at(cache: Path, digest: str) -> Path:
    return cache / "repositories" / f"{digest}.json"
