"""All ranks of this start find each other in a store that may still hold the keys of an earlier one.

After a machine is lost or comes back, torchrun starts the processes anew and keeps its store. It
counts restarts for each machine apart, so its count cannot tell the starts apart: rank 0 makes a
name for this one and gives it to whoever asks.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

__all__ = ["meet", "open_store"]

_HOME = "surefoot"
_GLANCE = 0.02  # seconds


def open_store(seconds: float, serve: bool = False, size: int | None = None) -> Any:
    """Return the store at the address in the environment; `serve` it, unless torchrun does."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size,
        is_master=serve and not agent, timeout=timedelta(seconds=seconds),
        wait_for_workers=False, multi_tenant=True,
    )  # fmt: skip


def meet(rank: int, size: int, seconds: float) -> tuple[Any, str, bool]:
    """Return the store of this start, its name there, and whether another start came before.

    Raises DistError or RuntimeError when not all come within `seconds`.
    """
    store = open_store(seconds, rank == 0, size)
    home, mine = PrefixStore(_HOME, store), secrets.token_hex(8)
    if rank:
        home.set(f"asks/{rank}", mine)
        home.wait([f"answer/{mine}"], timedelta(seconds=seconds))
        name, _, again = home.get(f"answer/{mine}").decode().partition(" ")
        home.set(f"{name}/here/{rank}", socket.gethostname())
    else:
        name, again = mine, "again" if home.check(["begun"]) else ""
        home.set("begun", mine)
        _answer(home, size, f"{name} {again}", seconds)
    return PrefixStore(f"{_HOME}/{name}", store), name, bool(again)


def _answer(home: Any, size: int, answer: str, seconds: float) -> None:
    """Tell every rank that asks, until all have come; an older start's question is answered, too."""
    name, end = answer.partition(" ")[0], time.monotonic() + seconds
    missing, answered = set(range(1, size)), dict[int, bytes]()
    while missing:
        for rank in sorted(missing):
            if home.check([f"asks/{rank}"]):
                asked = home.get(f"asks/{rank}")
                if answered.get(rank) != asked:
                    home.set(f"answer/{asked.decode()}", answer)
                    answered[rank] = asked
            if home.check([f"{name}/here/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > end:
            raise RuntimeError(f"without rank {', '.join(map(str, sorted(missing)))}")
        time.sleep(_GLANCE if missing else 0)
