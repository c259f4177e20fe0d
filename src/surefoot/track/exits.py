"""What a process of a group leaves for the one that launched it: that it ended for good, and how.

torchrun begins all anew whenever a process ends with anything but 0. What ends a run for good must
not begin again, so such a process notes its code in a file and ends with 0. torchrun then takes it for
done: those that wait for it to come look here (`missed`), and so learn that it never will.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["FINAL", "NOTES", "afresh", "came", "left", "missed", "note", "tell", "told"]

NOTES = "SUREFOOT_EXIT_NOTES"  # the folder where processes leave their exit codes
_TOLD = "told"  # a file there: the launcher itself was asked to stop
_CAME = ".came"
FINAL = frozenset({2, 3, 5, 75, 130})  # codes that another try would not mend


def note(code: int, final: bool = False) -> int:
    """Leave a code for the launcher, where there is one; return the one to end with.

    `final` says that another try would not mend it, of a code that does not say so by itself.
    """
    place = _note()
    if place is None or not code or not (final or code in FINAL or place.exists()):
        return code
    fresh = place.with_name(f"{place.name}.new")
    try:
        fresh.write_text(str(code))
        fresh.replace(place)  # a process that is killed here leaves no half of a code
    except OSError:
        return code
    return 0


def afresh() -> None:
    """Take back what was noted in this place before all began again: it did not end the run."""
    place = _note()
    if place is not None:
        with suppress(OSError):
            place.unlink(missing_ok=True)
            place.with_suffix(_CAME).unlink(missing_ok=True)


def came() -> None:
    """Note that this process has met the others, which learn from now on in other ways how it ends."""
    place = _note()
    if place is not None:
        with suppress(OSError):
            place.with_suffix(_CAME).touch()


def missed() -> dict[int, int]:
    """Return the codes of processes of this machine that ended before they came, by their place."""
    place = _note()
    if place is None:
        return {}
    return {
        _number(p): int(code)
        for p in place.parent.iterdir()
        if p.name.isdecimal()
        and not p.with_suffix(_CAME).exists()
        and (code := _read(p)).isdecimal()
    }


def tell(folder: Path) -> None:
    """Note in the folder that the launcher itself was asked to stop."""
    with suppress(OSError):
        (folder / _TOLD).touch()


def told() -> bool:
    """Whether the launcher was asked to stop all, as far as this process can know."""
    place = _note()
    return place is not None and place.with_name(_TOLD).exists()


def left(folder: Path) -> list[int]:
    """Return the codes that were noted, in the order of the places; what is no code is none."""
    places = sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=_number)
    return [int(text) for place in places if (text := _read(place)).isdecimal()]


def _read(place: Path) -> str:
    try:
        return place.read_text()
    except (OSError, ValueError):
        return ""


def _note() -> Path | None:
    """Return where this process notes its exit code: its place on the machine outlives its rank."""
    folder = os.environ.get(NOTES)
    return None if folder is None else Path(folder) / os.environ.get("LOCAL_RANK", "0")


def _number(path: Path) -> int:
    return int(path.name)
