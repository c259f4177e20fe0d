"""What a disk may hold after a power loss, worked out from a log of file-system calls.

A strict model: data of a file is safe once that file was synced, a name in a folder once that
folder was synced, and of everything else any part may have reached the disk and any other not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Effect", "Folder", "History"]


@dataclass(eq=False)
class File:
    """One file, whatever it is called."""


@dataclass(eq=False)
class Folder:
    """One folder: names and what they stand for."""

    names: dict[str, File | Folder] = field(default_factory=dict)


@dataclass(eq=False)
class Effect:
    """One change that a call made. `safe` is the number of the call that made it durable."""

    call: int
    on: File | Folder
    kind: str  # write, cut, put, move, drop
    place: int = 0
    data: bytes = b""
    name: str = ""
    target: File | Folder | None = None
    old: str = ""
    safe: float = float("inf")


class History:
    """The calls of one process under `root`, as effects; `commits` are (call, step) of saves.

    `before` holds what was there, safely, when the process began.
    """

    def __init__(self, log: Path, data: Path, root: Path, before: Path | None = None) -> None:
        self.root = Folder()
        self.effects: list[Effect] = []
        self.commits: list[tuple[int, int]] = []
        self.begun = float("inf")  # the call that made the run's folder durable
        if before is not None:
            self._begin_with(before)
        blob, offset = data.read_bytes(), 0
        lines = log.read_text().splitlines()
        self.calls = len(lines)
        for call, line in enumerate(lines, 1):
            verb, one, two, a, b = line.split("\t")
            piece = b""
            if verb == "write":
                piece, offset = blob[offset : offset + int(b)], offset + int(b)
            path = Path(one).relative_to(root).parts
            other = () if two == "-" else Path(two).relative_to(root).parts
            self._play(call, verb, path, other, int(a), piece)

    def _begin_with(self, before: Path) -> None:
        self.begun = 0
        for path in sorted(before.rglob("*")):
            parts = path.relative_to(before).parts
            verb, data = ("mkdir", b"") if path.is_dir() else ("open", path.read_bytes())
            self._play(0, verb, parts, (), 0, b"")
            self._play(0, "write", parts, (), 0, data)
        for effect in self.effects:
            effect.safe = 0
        found = (before / "trial" / "checkpoints").glob("step-*")
        self.commits = [(0, int(path.name.removeprefix("step-"))) for path in found]

    def _play(
        self,
        call: int,
        verb: str,
        path: tuple[str, ...],
        other: tuple[str, ...],
        a: int,
        data: bytes,
    ) -> None:
        if verb == "sync":
            self._sync(call, path)
            return
        found = self._find(path)
        if verb in ("open", "mkdir") and found is None:
            made: File | Folder = File() if verb == "open" else Folder()
            parent = self._folder(path[:-1])
            parent.names[path[-1]] = made
            self.effects.append(Effect(call, parent, "put", name=path[-1], target=made))
        elif verb == "open" and a and isinstance(found, File):
            self.effects.append(Effect(call, found, "cut"))
        elif verb == "write" and isinstance(found, File):
            self.effects.append(Effect(call, found, "write", a, data))
        elif verb == "truncate" and isinstance(found, File):
            self.effects.append(Effect(call, found, "cut", a))
        elif verb == "rename" and found is not None:
            parent = self._folder(path[:-1])
            assert parent is self._folder(other[:-1]), "names move within one folder only"
            parent.names[other[-1]] = parent.names.pop(path[-1])
            self.effects.append(
                Effect(call, parent, "move", name=other[-1], target=found, old=path[-1])
            )
        elif verb == "remove" and found is not None:
            parent = self._folder(path[:-1])
            del parent.names[path[-1]]
            self.effects.append(Effect(call, parent, "drop", name=path[-1], target=found))

    def _sync(self, call: int, path: tuple[str, ...]) -> None:
        found = self._find(path)
        for effect in self.effects:
            if effect.on is found and effect.safe > call:
                effect.safe = call
                if effect.kind == "move" and effect.name.startswith("step-"):
                    self.commits.append((call, int(effect.name.removeprefix("step-"))))
                if effect.kind == "move" and effect.name == "trial":
                    self.begun = call

    def _find(self, path: tuple[str, ...]) -> File | Folder | None:
        here: File | Folder | None = self.root
        for name in path:
            here = here.names.get(name) if isinstance(here, Folder) else None
        return here

    def _folder(self, path: tuple[str, ...]) -> Folder:
        found = self._find(path)
        assert isinstance(found, Folder)
        return found

    def committed(self, call: int) -> int | None:
        """Return the step of the newest checkpoint whose save had ended at `call`."""
        return max((step for at, step in self.commits if at <= call), default=None)

    def losses(self, call: int, draws: int) -> Iterator[tuple[str, list[Effect]]]:
        """Yield (what is lost, effects that are on the disk) for a power loss after `call`."""
        past = [e for e in self.effects if e.call <= call]
        loose = [e for e in past if e.safe > call]
        names = {"put", "move", "drop"}
        yield "nothing", past
        yield "all that was not synced", _without(past, loose)
        yield "data", _without(past, (e for e in loose if e.kind not in names))
        yield "names", _without(past, (e for e in loose if e.kind in names))
        for effect in loose:
            yield f"call {effect.call} alone", _without(past, [effect])
            yield (
                f"all but call {effect.call}",
                _without(past, (e for e in loose if e is not effect)),
            )
        draw = random.Random(call)
        for number in range(draws):
            lost = [e for e in loose if draw.random() < 0.5]
            yield f"draw {number}", [_torn(e, draw) for e in _without(past, lost)]


def _without(effects: Iterable[Effect], lost: Iterable[Effect]) -> list[Effect]:
    gone = set(map(id, lost))
    return [e for e in effects if id(e) not in gone]


def _torn(effect: Effect, draw: random.Random) -> Effect:
    """The same effect, or a write of which only the first part reached the disk."""
    if effect.kind != "write" or effect.safe < float("inf") or draw.random() < 0.5:
        return effect
    kept = effect.data[: draw.randrange(len(effect.data) + 1)]
    return Effect(effect.call, effect.on, "write", effect.place, kept)


def restored(effects: Iterable[Effect], root: Folder) -> dict[str, bytes | None]:
    """Return what a disk with these effects holds: bytes by path, None for a folder."""
    contents: dict[File, bytearray] = {}
    names: dict[Folder, dict[str, File | Folder]] = {}
    for effect in effects:
        if isinstance(effect.on, File):
            held = contents.setdefault(effect.on, bytearray())
            if effect.kind == "cut":
                del held[effect.place :]
            held.extend(bytes(max(0, effect.place - len(held))))
            held[effect.place : effect.place + len(effect.data)] = effect.data
            continue
        entries = names.setdefault(effect.on, {})
        if effect.kind == "move" and entries.get(effect.old) is effect.target:
            del entries[effect.old]
        if effect.kind == "drop":
            if entries.get(effect.name) is effect.target:
                del entries[effect.name]
        elif effect.target is not None:
            entries[effect.name] = effect.target
    return dict(_walk(root, names, contents, ""))


def _walk(
    folder: Folder,
    names: dict[Folder, dict[str, File | Folder]],
    contents: dict[File, bytearray],
    prefix: str,
) -> Iterator[tuple[str, bytes | None]]:
    for name, inner in names.get(folder, {}).items():
        path = f"{prefix}{name}"
        if isinstance(inner, File):
            yield path, bytes(contents.get(inner, b""))
        else:
            yield path, None
            yield from _walk(inner, names, contents, f"{path}/")


def write_out(state: dict[str, bytes | None], target: Path) -> None:
    """Make `state` real under `target`."""
    for path, data in state.items():
        if data is None:
            (target / path).mkdir()
        else:
            (target / path).write_bytes(data)


def distinct(
    history: History, calls: Iterable[int], draws: int
) -> Iterator[tuple[int, str, dict[str, bytes | None]]]:
    """Yield (call, what is lost, state), each state once."""
    seen = set()
    for call in calls:
        for what, effects in history.losses(call, draws):
            state = restored(effects, history.root)
            key = (history.committed(call), frozenset(state.items()))
            if key not in seen:
                seen.add(key)
                yield call, what, state


def peak(history: History, folder: str) -> Iterator[int]:
    """Yield the bytes under `folder` after each call."""
    for call in range(1, history.calls + 1):
        state = restored((e for e in history.effects if e.call <= call), history.root)
        inside = itertools.chain.from_iterable(
            [len(data)] for path, data in state.items() if data and path.startswith(folder)
        )
        yield sum(inside)
