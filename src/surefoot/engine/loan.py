"""The state on loan to whoever writes it: read in place, until the next update wants to change it.

A copy of everything costs the memory of everything. But forward and backward change nothing that is
saved, and take longer than writing. So the writer reads live tensors, under a lock and a piece at a
time into one small buffer, from which it hashes and writes. An update first ends the loan: under the
same lock, what has not been read is copied, and from then on nobody looks at a live tensor. Whenever
that happens, every piece was read or copied before the change.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from surefoot.engine.state import Payload, Snapshot

__all__ = ["Loan", "Room", "Withheld"]

PIECE = 1 << 22  # bytes that are read at once, and for which an update may have to wait

Key = tuple[str, str, int]  # file, name of the tensor, first byte
Room = dict[Key, Tensor]  # memory for copies, kept from save to save


class Loan:
    """A payload on the processor, until `end`. Several threads may call its methods.

    `room` is memory of an earlier loan for copies. `in_time` are the bytes that the next update is
    expected to find written; the writer copies the others before it reads any.
    """

    def __init__(self, payload: Payload, room: Room, in_time: float = math.inf) -> None:
        self.used: Room = {}  # memory that copies took, for the next loan
        self.rate: float | None = None  # bytes a second at which all of it was read, when it was
        self._payload, self._room, self._in_time = payload, room, in_time
        self._begun = math.nan
        self._lock = threading.Lock()
        self._live = dict(_pieces(payload))
        self._bytes = sum(piece.numel() for piece in self._live.values())
        self._copies: Room = {}
        self._ended = False
        self._failure: Exception | None = None
        self._page = np.empty(PIECE, np.uint8)

    def take(self) -> Payload:
        """Return the payload, whose bytes must be read through `pieces`; copies ahead first."""
        self._begun = time.monotonic()
        left = self._bytes - self._in_time
        for key in reversed(list(self._live)):
            if left <= 0:
                break
            left -= self._copy_ahead(key)
        return Payload(self._payload.tensors, self._payload.small, pieces=self._read)

    def _copy_ahead(self, key: Key) -> int:
        with self._lock:
            piece = self._live.pop(key, None)
            if piece is None:  # the loan has ended
                return 0
            self._copies[key] = self._copy(key, piece)
            return piece.numel()

    def end(self) -> None:
        """Copy what has not been read; when this returns, no live tensor is looked at any more.

        Where that fails, so does the save, and not who wanted to change them.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
            try:
                for key, piece in self._live.items():
                    self._copies[key] = self._copy(key, piece)
            except Exception as error:
                self._failure = error
            finally:
                self._live = {}

    def close(self) -> None:
        """Forget everything: the writer has ended, well or not."""
        with self._lock:
            self._ended, self._live, self._copies = True, {}, {}
            self._payload, self._page = Payload({}, {}), self._page[:0].copy()

    def _read(self, file: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor in order; each is valid until the next is asked for."""
        value = self._payload.tensors[file][name]
        for start in range(0, value.nbytes, PIECE):
            key = file, name, start
            with self._lock:
                copy = self._copies.pop(key, None)
                found = self._page_of(key) if copy is None else copy.numpy()
                if not (self._live or self._copies):
                    self.rate = self._bytes / max(1e-9, time.monotonic() - self._begun)
            yield found.data

    def _page_of(self, key: Key) -> np.ndarray:
        live = self._live.pop(key, None)
        if live is None:  # its copy could not be made
            raise self._failure or RuntimeError(f"{key[1]} changed before it was written")
        page = self._page[: live.numel()]
        np.copyto(page, live.numpy())  # by this thread alone: training has the others
        return page

    def _copy(self, key: Key, live: Tensor) -> Tensor:
        kept = self._room.get(key)
        if kept is None or kept.numel() != live.numel():
            kept = torch.empty_like(live)
        self.used[key] = kept
        return kept.copy_(live)


class Withheld:
    """A payload that is copied as a whole before any of it is written, as from a device.

    The next update waits for that.
    """

    def __init__(self, payload: Payload, snapshot: Snapshot) -> None:
        self.used: Room = {}
        self.rate: float | None = None
        self._payload, self._snapshot = payload, snapshot
        self._copied = threading.Event()

    def take(self) -> Payload:
        """Return the copy."""
        try:
            return self._snapshot.take(self._payload)
        finally:
            self._copied.set()

    def end(self) -> None:
        """Wait for the copy."""
        self._copied.wait()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._copied.set()


def _pieces(payload: Payload) -> Iterator[tuple[Key, Tensor]]:
    """Yield pieces of all tensors as u8[n], in the order in which they are written."""
    for file, group in payload.tensors.items():
        for name, value in sorted(group.items()):
            # What does not lie in one stretch is copied at once.
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, flat.numel(), PIECE):
                yield (file, name, start), flat[start : start + PIECE]
