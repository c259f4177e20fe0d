"""Groups of real processes over gloo: torch is loaded once, and every rank is a fork of that.

`python group.py FOLDER PLAY SIZE...` runs every check of the play in a group of each size and leaves
`SIZE.json` in FOLDER: check -> what each rank found.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # DDP loads it, and so would every rank
import torch.distributed.fsdp

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

LIMIT = 900  # seconds that a group may take; then it is ended, and says so
Check = Callable[[Any, Path], Any]


def run(folder: Path, checks: dict[str, Check], size: int) -> dict[str, list[Any]]:
    """Run the checks in `size` forks; return what each rank found, by check."""
    from agent import agent_store

    with agent_store() as port:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(size),
        }  # fmt: skip
        pids = [_fork(rank, folder, checks) for rank in range(size)]
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert not any(ends), f"ranks ended with {ends}"
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(size)]
    return {name: [f.get(name, "not reached") for f in found] for name in checks}


def _fork(rank: int, folder: Path, checks: dict[str, Check]) -> int:
    pid = os.fork()
    if pid:
        return pid
    found: dict[str, Any] = {}
    faulthandler.dump_traceback_later(LIMIT - 10)  # where it waits, before it is ended
    signal.alarm(LIMIT)
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        torch.set_num_threads(1)
        from surefoot.engine.world import open_world

        world = open_world("cpu")
        for name, check in checks.items():
            if os.environ.get("LOUD"):
                print(rank, name, file=sys.stderr, flush=True)
            found[name] = check(world, folder)
            world.team.gather(None)
    except BaseException:
        found["error"] = traceback.format_exc()
        print(found["error"], file=sys.stderr, flush=True)
    finally:
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))
        os._exit(0)


def main() -> None:
    import plays

    folder, play = Path(sys.argv[1]), getattr(plays, sys.argv[2])
    for size in map(int, sys.argv[3:]):
        found = run(folder, play(size), size)
        (folder / f"{size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
