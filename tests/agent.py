"""The store that torchrun's agent keeps, in a process of its own, for tests whose ranks are forks.

The store begins a thread that asks the resolver for names, and holds locks of the loader while it
does: who forks in that moment gets a child that waits for them for ever.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["agent_store"]


@contextmanager
def agent_store() -> Iterator[int]:
    """Serve a store on loopback as long as the block lasts; yield its port."""
    told, tell = os.pipe()
    alive, living = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(living)
            store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
            os.write(tell, b"%d" % store.port)
            os.read(alive, 1)  # until whoever began this, and all forks of it, are gone
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(alive)
    os.close(tell)
    try:
        port = os.read(told, 16)
        assert port, "no store could be opened on loopback; what torch said is above"
        yield int(port)
    finally:
        os.close(told)
        os.close(living)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
