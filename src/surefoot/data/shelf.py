"""A folder of bounded size with copies of files from elsewhere, shared by processes of a machine.

    NAME.bin          a whole file, named by its SHA-256; `atime` says when it was last read
    NAME-SIZE.part    one that is being fetched; counts as SIZE from the beginning
    .lock             held while room is made

A reader holds a shared lock on the file that it reads, a fetcher an exclusive one on its part, and
what is locked is never removed. The kernel drops a lock with its process, so whoever is killed
leaves no more than a part, and the next one goes on where that ends. The folder is never larger
than the limit, parts in flight included, not even for a moment.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surefoot.errors import DataError, OutOfResources

__all__ = ["Item", "Shelf"]

_PIECE = 4 << 20  # bytes that are asked for at once
_PATIENCE = 120.0  # seconds without room, before somebody is told
_GLANCE = 0.02  # seconds
_FETCHERS = 2  # threads that work ahead


@dataclass(frozen=True)
class Item:
    """A file elsewhere: its name for people, SHA-256, and how to get bytes [start, stop) of it."""

    title: str
    sha256: str
    size: int  # bytes
    pull: Callable[[int, int], bytes]


class Shelf:
    """Files that are fetched when first read, and kept while there is room.

    `limit` is in bytes. Raises DataError when the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.fetched = 0  # bytes, by this process
        self._sound: dict[str, tuple[int, int, int]] = {}  # verified by this process
        self._fresh: set[str] = set()  # fetched ahead and not read yet
        self._ahead: deque[Item] = deque()
        self._wanted: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._guard, self._turn = threading.Lock(), threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None

    @contextmanager
    def open(self, item: Item) -> Iterator[int]:
        """Yield a handle to read `item` from, whole and verified; it stays while the block runs.

        Raises DataError when the bytes at the other end are not those of its hash, OutOfResources
        when there is no room.
        """
        while (handle := self._take(item)) is None:
            self._fetch(item)
        try:
            yield handle
        finally:
            os.close(handle)

    def expect(self, items: Sequence[Item]) -> None:
        """Fetch `items` in the background, in this order, as far as nothing expected must go."""
        with self._guard:
            self._ahead = deque(items)
            self._wanted = {item.sha256 for item in items}
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < min(_FETCHERS, len(items)):
                thread = threading.Thread(target=self._work_ahead, daemon=True)
                self._threads.append(thread)
                thread.start()

    def settle(self) -> None:
        """Wait until nothing is fetched in the background."""
        for thread in list(self._threads):
            thread.join()

    def size(self) -> int:
        """Return the bytes that the folder holds or has promised."""
        with self._alone():
            return sum(size for _, _, size, _ in self._entries())

    def _take(self, item: Item) -> int | None:
        """Return a handle with a shared lock on the whole file, or None where it is not here."""
        path = self.folder / f"{item.sha256}.bin"
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unwritable(error) from None
        fcntl.flock(handle, fcntl.LOCK_SH)
        about = os.fstat(handle)
        if about.st_nlink and self._is_sound(item, handle, about):
            os.utime(handle, ns=(time.time_ns(), about.st_mtime_ns))
            self._fresh.discard(item.sha256)
            return handle
        if about.st_nlink:  # damaged on this disk
            path.unlink(missing_ok=True)
        os.close(handle)
        return None

    def _is_sound(self, item: Item, handle: int, about: os.stat_result) -> bool:
        mark = (about.st_ino, about.st_size, about.st_mtime_ns)
        if self._sound.get(item.sha256) == mark:
            return True
        if about.st_size != item.size or _sha256(handle) != item.sha256:
            return False
        self._sound[item.sha256] = mark
        return True

    def _fetch(self, item: Item) -> None:
        """Bring `item` here, or wait for who does."""
        begun = time.monotonic()
        try:
            while (made := self._part(item, ahead=False)) == "no room":
                if time.monotonic() - begun > _PATIENCE:
                    raise OutOfResources(
                        f"no room for {item.title} ({item.size:,} bytes): all that the shard cache "
                        f"holds is being read",
                        where=f"{self.folder}, {self.limit:,} bytes",
                        fix="a larger --shard-cache",
                    )
                time.sleep(_GLANCE)
            if isinstance(made, int):
                try:
                    self._download(item, made)
                finally:
                    os.close(made)
        except OSError as error:
            raise self._unwritable(error) from None

    def _part(self, item: Item, ahead: bool) -> int | Literal["no room", "came"]:
        """Return a handle of a part with room for all of `item` that is locked for us."""
        path = self._part_of(item)
        with self._alone():
            if (self.folder / f"{item.sha256}.bin").exists():
                return "came"
            if not path.exists() and not self._make_room(item.size, ahead):
                return "no room"
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if ahead else 0))
            # Meanwhile it may have become a whole file, or been given up.
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass  # somebody else fetches it, or has
        os.close(handle)
        return "came"

    def _part_of(self, item: Item) -> Path:
        return self.folder / f"{item.sha256}-{item.size}.part"

    def _download(self, item: Item, handle: int) -> None:
        """Complete the part, verify it, and give it its name."""
        path = self._part_of(item)
        began = os.fstat(handle).st_size
        while True:
            at = os.fstat(handle).st_size
            while at < item.size:
                content = item.pull(at, min(at + _PIECE, item.size))[: item.size - at]
                if not content:
                    break  # the file at the other end is shorter than it was
                self.fetched += len(content)
                at += os.pwrite(handle, content, at)
            found = _sha256(handle)
            if found == item.sha256:
                break
            os.ftruncate(handle, 0)
            if not began:
                path.unlink()
                raise DataError(
                    f"shard {item.title} is not what its manifest says: its bytes changed",
                    where=f"sha256 {found[:16]}…, expected {item.sha256[:16]}…",
                    fix="write the shards anew with `surefoot data shard`; nothing was kept",
                )
            began = 0  # what a killed process left may be torn: once more from the beginning
        about = os.fstat(handle)
        self._sound[item.sha256] = (about.st_ino, about.st_size, about.st_mtime_ns)
        os.utime(handle, ns=(time.time_ns(), about.st_mtime_ns))
        with self._alone():  # or whoever counts might see it under both names, or under none
            path.rename(self.folder / f"{item.sha256}.bin")

    def _make_room(self, size: int, ahead: bool) -> bool:
        """Remove what was read longest ago, until `size` bytes fit; False where too much is in use.

        What was fetched ahead and not read yet goes last; `ahead`, nothing that is expected goes.
        """
        entries = self._entries()
        spare = self.limit - size - sum(entry[2] for entry in entries)
        entries.sort(key=lambda entry: (entry[0] in self._fresh, entry[3]))
        for name, path, taken, _ in entries:
            if spare >= 0:
                break
            if not (ahead and name in self._wanted) and _remove(path):
                spare += taken
        return spare >= 0

    def _entries(self) -> list[tuple[str, Path, int, int]]:
        """Return (SHA-256, path, bytes, last read in ns) of all that is here."""
        found = []
        with os.scandir(self.folder) as listed:
            for entry in listed:
                name, _, kind = entry.name.partition(".")
                with suppress(OSError, ValueError):  # gone meanwhile, or not ours
                    about = entry.stat()
                    if kind == "bin":
                        found.append((name, Path(entry.path), about.st_size, about.st_atime_ns))
                    elif kind == "part":
                        name, _, size = name.partition("-")
                        found.append((name, Path(entry.path), int(size), about.st_atime_ns))
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _work_ahead(self) -> None:
        while True:
            done = False
            with suppress(Exception):  # whoever needs it will try again, and tell
                with self._turn:  # room is promised in the order in which it was asked for
                    with self._guard:
                        if not self._ahead:
                            return
                        item = self._ahead.popleft()
                    if (self.folder / f"{item.sha256}.bin").exists():
                        continue
                    self._fresh.add(item.sha256)
                    made = self._part(item, ahead=True)
                if isinstance(made, int):
                    try:
                        self._download(item, made)
                    finally:
                        os.close(made)
                done = made != "no room"
            if not done:  # no room, or no way: what follows would not fare better
                with self._guard:
                    self._fresh.discard(item.sha256)
                    self._ahead.clear()

    def _unwritable(self, error: OSError) -> Exception:
        what = f"cannot use the shard cache: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "free some space, or a smaller --shard-cache"
            return OutOfResources(what, where=str(self.folder), fix=fix)
        fix = "set SUREFOOT_CACHE to a folder that you may write to"
        return DataError(what, where=str(self.folder), fix=fix)


def _remove(path: Path) -> bool:
    """Remove a file that nobody reads or fetches; return whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _sha256(handle: int) -> str:
    state, at = hashlib.sha256(), 0
    while block := os.pread(handle, _PIECE, at):
        state.update(block)
        at += len(block)
    return state.hexdigest()
