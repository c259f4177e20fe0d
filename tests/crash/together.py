"""One run in several forked processes, begun and begun again as torchrun does, of which one dies.

torchrun itself would take seconds for each trial; `tests/e2e/test_e2e_devices.py` has it. What is
imitated is what its agent does: a store that outlives the processes, their environment, SIGTERM to
all others when one has failed, and all anew.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from harness import KILL, save_in_step

from agent import agent_store

__all__ = ["settle_together", "together"]

PATIENCE = 300.0  # seconds for the others to end when one has ended


def settle_together(home: Path) -> None:
    """Load what ranks need, so that no trial pays for it; they beat faster than usual."""
    torch.set_num_threads(1)
    from surefoot.engine.ranks import beat

    import_module("surefoot.engine.ranks.shards")  # and with it torch's FSDP
    beat.BEAT, beat.SILENT, beat.GRACE = 0.1, 0.6, 0.5
    save_in_step()
    from plays import TOY

    from surefoot import api

    api.train(str(TOY), runs=home, quiet=True, max_steps=1, warmup_steps=0)
    gc.freeze()  # or each collection in a child would copy all of the parent's memory


def together(
    folder: str,
    words: Sequence[str],
    *,
    size: int = 2,
    kills: Sequence[Mapping[str, int]] = (),
    restarts: int = 0,
    terminate: bool = True,
) -> dict[str, Any]:
    """Run `surefoot WORDS` in `size` processes, and again as often as `restarts` says.

    In the first starts one rank dies as `kills` says: the `victim`, before the `call` of the rank
    `at` that changes anything in `folder`. Then the others are sent SIGTERM, or not (`terminate`),
    as those on another machine. Answers how the processes of each start ended (negative: by which
    signal; None: not within the patience), what ranks said, and how many calls each made.
    """
    here, ended = Path(tempfile.mkdtemp(dir=Path.cwd())), []
    os.chdir(here)  # others play at the same time
    with agent_store() as port:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        for number in range(restarts + 1):
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
            kill = kills[number] if number < len(kills) else None
            pids: dict[int, int] = {}
            for rank in reversed(range(size)):  # rank 0 must know the others
                pids[rank] = _fork(rank, size, folder, words, kill, pids)
            ended.append(_wait(pids, terminate))
            if not any(ended[-1].values()):
                break
    said = {r: (here / f"said-{r}").read_text(errors="replace")[-2000:] for r in range(size)}
    calls = {
        r: int((here / f"calls-{r}").read_text())
        for r in range(size)
        if not any(ended[-1].values())
    }
    os.chdir(here.parent)
    shutil.rmtree(here)
    return {"ended": ended, "said": said, "made": calls}


def _fork(
    rank: int,
    size: int,
    folder: str,
    words: Sequence[str],
    kill: Mapping[str, int] | None,
    pids: Mapping[int, int],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        # What main returns is how it ended, also when torchrun's signal comes as it has returned.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if size > 1:  # one alone is started without torchrun
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        library = ctypes.CDLL(os.environ["SUREFOOT_CRASHPOINT"])
        armed = kill is not None and kill["at"] == rank
        if armed and kill["victim"] != rank:
            library.crash_victim(pids[kill["victim"]])
        call, fault = (kill["call"], KILL) if armed else (0, 0)
        library.crash_arm(os.fsencode(folder), ctypes.c_long(call), ctypes.c_long(fault))
        from surefoot.cli import main

        code = main(list(words))
        Path(f"calls-{rank}").write_text(str(library.crash_count()))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pids: Mapping[int, int], terminate: bool) -> dict[int, int | None]:
    """Wait for all; when one has failed, for so long as the others may take to end."""
    ended: dict[int, int | None] = {}
    end = float("inf")
    while len(ended) < len(pids) and time.monotonic() < end:
        for rank, pid in pids.items():
            if rank not in ended and (found := os.waitpid(pid, os.WNOHANG))[0]:
                ended[rank] = os.waitstatus_to_exitcode(found[1])
                if ended[rank] and end == float("inf"):
                    end = time.monotonic() + PATIENCE
                    _terminate(pids, ended) if terminate else None
        time.sleep(0.005)
    for rank in pids.keys() - ended.keys():
        os.kill(pids[rank], signal.SIGKILL)
        os.waitpid(pids[rank], 0)
        ended[rank] = None
    return ended


def _terminate(pids: Mapping[int, int], ended: Mapping[int, Any]) -> None:
    for rank in pids.keys() - ended.keys():
        with suppress(ProcessLookupError):
            os.kill(pids[rank], signal.SIGTERM)
