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
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

__all__ = ["Missing", "meet", "open_store"]

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


class Missing(RuntimeError):
    """Not all ranks came; says which, and who did."""


def meet(rank: int, size: int, seconds: float) -> tuple[Any, str, bool]:
    """Return the store of this start, its name there, and whether another start came before.

    Raises DistError or RuntimeError when not all come within `seconds`, Missing where it is known
    who did not.
    """
    store = open_store(seconds, rank == 0, size)
    home, mine, patience = (
        PrefixStore(_HOME, store),
        secrets.token_hex(8),
        timedelta(seconds=seconds),
    )
    if rank:
        home.set(f"asks/{rank}", mine)
        home.wait([f"answer/{mine}"], patience)
        name, _, again = home.get(f"answer/{mine}").decode().partition(" ")
        home.set(f"{name}/here/{rank}", socket.gethostname())
        home.wait([f"{name}/all"], patience)
    else:
        name, again = mine, "again" if home.check(["begun"]) else ""
        home.set("begun", mine)
        hosts = _answer(home, size, f"{name} {again}", seconds)
        home.set(f"{name}/all", _missing(hosts, size))
    if missing := home.get(f"{name}/all").decode():
        raise Missing(missing)
    return PrefixStore(f"{_HOME}/{name}", store), name, bool(again)


def _answer(home: Any, size: int, answer: str, seconds: float) -> dict[int, str]:
    """Tell every rank that asks, until all have come or `seconds` are over; return the hosts of all.

    An older start's question is answered, too.
    """
    name, end = answer.partition(" ")[0], time.monotonic() + seconds
    hosts, answered = {0: socket.gethostname()}, dict[int, bytes]()
    while len(hosts) < size and time.monotonic() < end:
        for rank in sorted(set(range(size)).difference(hosts)):
            if home.check([f"asks/{rank}"]):
                asked = home.get(f"asks/{rank}")
                if answered.get(rank) != asked:
                    home.set(f"answer/{asked.decode()}", answer)
                    answered[rank] = asked
            if home.check([f"{name}/here/{rank}"]):
                hosts[rank] = home.get(f"{name}/here/{rank}").decode()
        time.sleep(_GLANCE if len(hosts) < size else 0)
    return hosts


def _missing(hosts: Mapping[int, str], size: int) -> str:
    """Say which ranks did not come, and where those are that did; nothing where all came.

    The host of a rank that never came is not known, but which of the machines it was to be.
    """
    each = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    absent = sorted(set(range(size)).difference(hosts))
    if not absent:
        return ""
    where = {rank: f"machine {rank // each + 1} of {-(-size // each)}" for rank in absent}
    lost = _listed({rank: where[rank] if each < size else "" for rank in absent})
    return f"{lost} did not; here {'is' if len(hosts) == 1 else 'are'} {_listed(hosts)}"


def _listed(places: Mapping[int, str]) -> str:
    """Return ranks by place: `rank 0, 1 (node0), rank 3 (node1)`."""
    by_place: dict[str, list[str]] = {}
    for rank, place in sorted(places.items()):
        by_place.setdefault(place, []).append(str(rank))
    return ", ".join(
        f"rank {', '.join(ranks)}" + (f" ({place})" if place else "")
        for place, ranks in by_place.items()
    )
