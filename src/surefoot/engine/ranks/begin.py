"""Before the first step: do all ranks mean the same run, and who holds what of it?"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from surefoot.config.schema import RunConfig
from surefoot.engine.job import Job
from surefoot.engine.memory import available
from surefoot.engine.ranks.team import Team
from surefoot.engine.world import World
from surefoot.errors import ConfigError, Problem, RunError
from surefoot.track.ranks import BOARD

__all__ = ["alike", "clear", "mode", "spread", "visible"]

TOKEN = ".ranks"  # a file of the run's folder, for as long as it takes all ranks to read it
_SHOWN = 12  # differences between ranks
_ROOM = 0.8  # share of what is free that a replica may take
_ALIKE = 0.95  # share of the largest room that the least has, where devices are of one size


def alike(team: Team, facts: Mapping[str, Any]) -> None:
    """Raise RunError on all ranks unless `facts` are the same on all; it says whose differ."""
    found = team.gather({"host": socket.gethostname(), **facts})
    wrong = [
        f"  rank {rank} ({other['host']}): {key} {other.get(key)}, {found[0].get(key)} on rank 0"
        for rank, other in enumerate(found)
        for key in {**found[0], **other}
        if key != "host" and other.get(key) != found[0].get(key)
    ]
    if wrong:
        if len(wrong) > _SHOWN:
            wrong = [*wrong[:_SHOWN], f"  and {len(wrong) - _SHOWN} more"]
        raise RunError(
            "\n".join(["the ranks do not agree, nothing was trained:", *wrong]),
            fix="the same version, settings and data on every machine",
        )


def visible(team: Team, folder: Path) -> None:
    """Raise RunError on all ranks unless all see the same `folder` as rank 0."""
    token = team.told(secrets.token_hex(8) if team.leads else "")
    path = folder / f"{TOKEN}-{token}"
    if team.leads:
        path.write_text(token)
    team.gather(None)  # it is written now
    try:
        seen = path.is_file() and path.read_text() == token
    except OSError:
        seen = False
    found = team.gather((seen, socket.gethostname()))
    if team.leads:
        path.unlink(missing_ok=True)
    blind = [f"rank {rank} ({host})" for rank, (sees, host) in enumerate(found) if not sees]
    if blind:
        raise RunError(
            f"the run's folder is not shared: {', '.join(blind)} cannot see it",
            where=f"{folder} on {found[0][1]}",
            fix="--runs on a disk that all nodes mount at the same path",
        )


def clear(folder: Path) -> None:
    """Remove what a group that was killed has left in the folder of a run, whose lock is held."""
    board = folder / BOARD
    for path in (*folder.glob(f"{TOKEN}-*"), board, board.with_name(f".{BOARD}.new")):
        if path.exists():
            with suppress(OSError):
                path.unlink()


def mode(config: RunConfig, world: World, memory: int) -> tuple[str, str]:
    """Return how parameters are held, and why; `memory` bytes are what a whole replica takes.

    The rank with the least room decides for all.
    """
    asked, size = config.machine.parallel, world.size
    if asked != "auto":
        return asked, "asked for"
    if world.team is None or size == 1:
        return "none", "one process"
    rooms = _rooms(world.team)
    room, most = min(rooms), max(rooms)
    need, have = f"{memory / 1e6:.0f} MB", f"{room / 1e9:.1f} GB a device"
    if room < _ALIKE * most:
        have = f"{room / 1e9:.1f} GB on rank {rooms.index(room)}, the least; others have up to {most / 1e9:.1f} GB"
    if memory <= _ROOM * room:
        return "ddp", f"a replica takes {need} of {have}"
    return "fsdp2", f"a replica would take {need} of {have}"


def _rooms(team: Team) -> list[int]:
    """Return the bytes that a replica may take on each rank: its device, or a share of its host."""
    if team.device.type == "cuda":
        return list(team.gather(torch.cuda.get_device_properties(team.device).total_memory))
    found = team.gather((socket.gethostname(), available()))
    hosts = [host for host, _ in found]
    return [free // hosts.count(host) for host, free in found]


def spread(job: Job, world: World, how: str, reduce: str) -> None:
    """Let the learners of `job` compute together with those of the other ranks."""
    from surefoot.engine.ranks.exchange import Exchange

    team = world.team or Team(0, 1, 0, world.device)
    if how == "none" and (world.size > 1 or reduce != "tree"):
        if world.size > 1:
            fix = "auto, ddp or fsdp2, or one process"
            raise ConfigError(
                [Problem(f"parallel=none with {world.size} ranks", "machine.parallel", fix)]
            )
        return
    for learner in job.learners.values():
        alone = team.size == 1 or (how == "hsdp" and team.neighbours == 1)  # nothing to split
        if how in ("fsdp2", "hsdp") and not alone:
            from surefoot.engine.ranks.shards import Shards

            learner.exchange = Shards(learner, world, team, reduce, how)
        else:
            wrapped = team.size > 1 or (how == "ddp" and world.team is not None)
            learner.exchange = Exchange(learner, world, team, reduce, wrapped)
    # Before 2.11 torch makes a folder on import, for what we never use: a kill would leave it.
    made = getattr(sys.modules.get("torch.distributed.nn.jit.instantiator"), "_TEMP_DIR", None)
    if made is not None:
        made.cleanup()
