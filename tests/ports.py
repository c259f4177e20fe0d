"""A port on loopback that nobody else is given, for a server that is told where to listen."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["reserved"]


@contextmanager
def reserved() -> Iterator[int]:
    """Yield a port that stays ours for the block.

    Whoever asks for any free port does not get it, as it is bound; who asks for this one by number, and
    reuses addresses as servers do, may listen there, as nobody does.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
