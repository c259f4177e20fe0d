"""`--devices N`: start the same words in N processes, by torchrun's own launcher.

torchrun sees to it that all begin again when one dies. What ends a run for good (done, wrong input,
stopped by a signal) must not begin again, so processes leave notes of it (`track/exits.py`); the
code in them is passed on here.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from surefoot.config.devices import enough
from surefoot.config.fields import Given
from surefoot.config.schema import Machine, RunConfig
from surefoot.config.units import parse_seconds
from surefoot.errors import ConfigError, RunError, Stopped
from surefoot.track import exits
from surefoot.track.lock import scratch

__all__ = ["asked", "every_rank", "flags", "follows", "launch", "wanted"]

_STOPPED = 75
T = TypeVar("T")
_CAME = "surefoot/came"  # names of machines, where several meet
_exit = os._exit
_LEVEL = "TORCH_CPP_LOG_LEVEL"
_STORE = 30  # seconds to reach the one who keeps the rendezvous


def flags(own: argparse.ArgumentParser) -> None:
    """Add the flags of several machines; `--devices` is a setting, machine.devices."""
    own.add_argument(
        "--nnodes", metavar="N", help="Machines, or a range like 1:2 (needs --devices)."
    )
    own.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="Where the machines meet.")
    own.add_argument(
        "--max-restarts", type=int, default=0, metavar="N",
        help="Begin again from the last checkpoint, N times, when a process or machine is lost.",
    )  # fmt: skip


def follows() -> bool:
    """Whether this process is one of several, and not the one that speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def every_rank(make: Callable[[], T]) -> T:
    """Return what is made here; where it fails in one of several processes, it fails in all."""
    if "RANK" not in os.environ:
        return make()
    from surefoot.engine import every_rank

    return every_rank(make)


def asked(config: RunConfig, given: Mapping[str, Given]) -> RunConfig:
    """Return the `config` of a run with the devices that are now asked for."""
    devices = given.get("machine.devices")
    if devices is None:
        return config
    machine = {**config.machine.model_dump(), "devices": devices.value}
    return config.model_copy(update={"machine": Machine.model_validate(machine)})


def wanted(machine: Machine, options: argparse.Namespace) -> bool:
    """Whether processes must be started here."""
    if "RANK" in os.environ:
        return False
    if machine.devices is None and options.nnodes is not None:
        raise ConfigError("--nnodes says how many machines, --devices how many devices on each")
    return (machine.devices or 1) > 1 or options.nnodes is not None


def launch(words: Sequence[str], config: RunConfig, options: argparse.Namespace) -> int:
    """Run `surefoot WORDS` in `machine.devices` processes on each node; return their exit code."""
    least, most = _nodes(options.nnodes or "1")
    if most > 1 and not options.rdzv_endpoint:
        raise ConfigError("several machines need a place to meet: --rdzv-endpoint HOST:PORT")
    if options.rdzv_endpoint:
        _place(options.rdzv_endpoint)
    if options.max_restarts < 0:
        raise ConfigError(f"--max-restarts {options.max_restarts}: expected 0 or more")
    machine = config.machine
    count = machine.devices or 1
    micro = machine.micro_batch_size
    enough(config, count * least, micro if isinstance(micro, int) else None)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with _plain():
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    values: dict[str, Any] = {
        "min_nodes": least, "max_nodes": most, "nproc_per_node": count,
        "run_id": "surefoot" if most > 1 else uuid.uuid4().hex, "rdzv_backend": "c10d",
        "rdzv_endpoint": options.rdzv_endpoint or "localhost:0",
        "rdzv_configs": {
            "join_timeout": math.ceil(parse_seconds(machine.hang_timeout)), "read_timeout": _STORE,
        },
        "max_restarts": options.max_restarts, "monitor_interval": 0.1,
        "signals_to_handle": "SIGHUP,SIGQUIT",
        "logs_specs": DefaultLogsSpecs(log_dir=os.devnull),  # or each start leaves a folder
    }  # fmt: skip
    known = {f.name for f in dataclasses.fields(LaunchConfig)}
    group = LaunchConfig(**{k: v for k, v in values.items() if k in known})
    with scratch() as notes:
        os.environ[exits.NOTES] = str(notes)
        with _passed_on(notes) as received, _announced(options.rdzv_endpoint) as came:
            code = _run(elastic_launch(group, sys.executable), words, values, came)
        return _ended(code, exits.left(notes), bool(received))


@contextmanager
def _plain() -> Iterator[None]:
    """Load torch so that errors are ours to report, without stack frames of its own."""
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "FATAL"
    try:
        yield
    finally:
        del os.environ[_LEVEL]  # the processes that train speak as usual


def _ended(code: int, noted: Sequence[int], told: bool) -> int:
    """Return the code of a group: what its processes noted, else what torchrun found.

    When a process dies, torchrun sends the others SIGTERM. That they stopped is then no reason,
    unless it was `told` to stop them.
    """
    reasons = [c for c in noted if c != _STOPPED or told or not code]
    if reasons:
        return reasons[0] if told else next((c for c in reasons if c != _STOPPED), _STOPPED)
    return _STOPPED if told and code and code not in exits.FINAL else code


def _run(
    start: Callable[..., Any],
    words: Sequence[str],
    group: Mapping[str, Any],
    came: Callable[[], list[str]],
) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    try:
        start("-m", "surefoot", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was ended by {name}", file=sys.stderr)
        print(
            "  help:  surefoot resume goes on; --max-restarts 3 does so by itself", file=sys.stderr
        )
        # Told to stop before it could listen, it had nothing to save.
        return _STOPPED if failure.exitcode == -signal.SIGTERM else 1
    except SignalException:
        return _STOPPED
    except (RendezvousError, ConnectionError, TimeoutError) as error:
        raise RunError(
            f"the machines do not meet: {_apart(error, group, came())}",
            where=str(group["rdzv_endpoint"]),
            fix="the same --nnodes and --rdzv-endpoint everywhere, a port that nobody else uses",
        ) from error
    return 0


def _apart(error: Exception, group: Mapping[str, Any], came: Sequence[str]) -> str:
    """Return why no group came about; torch does not say so where machines are missing."""
    if type(error).__name__ == "RendezvousConnectionError":
        return "nobody keeps the meeting there, or another program listens"
    if text := str(error).partition("\n")[0]:
        return text
    patience = f"within {group['rdzv_configs']['join_timeout']} s"
    if came:
        return f"of {group['min_nodes']} machines only {', '.join(came)} came {patience}"
    return f"not all of {group['min_nodes']} came {patience}"


@contextmanager
def _announced(endpoint: str | None) -> Iterator[Callable[[], list[str]]]:
    """Leave the name of this machine where several meet; yield how to see who came."""
    found: list[Any] = []

    def say(host: str, port: int) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        with suppress(Exception):  # of which the launcher itself will speak
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_STORE))
            store.append(_CAME, f"{socket.gethostname()}\n")  # type: ignore[attr-defined]
            found.append(store)

    def came() -> list[str]:
        try:
            return sorted(set(found[0].get(_CAME).decode().split()))
        except Exception:  # the one who kept it has left
            return []

    def call(host: str, port: int) -> None:
        """End where something listens but never answers: torch would wait for ever."""
        if _listens(host, port):
            caller = threading.Thread(target=say, args=(host, port), daemon=True)
            caller.start()
            caller.join(_STORE)
            if caller.is_alive():
                print(f"error: another program listens at {endpoint}", file=sys.stderr)
                print("  help:  another --rdzv-endpoint", file=sys.stderr, flush=True)
                _exit(RunError.exit_code)

    host, _, port = (endpoint or "").rpartition(":")
    if port.isdecimal():
        threading.Thread(target=call, args=(host, int(port)), daemon=True).start()
    yield came


def _listens(host: str, port: int) -> bool:
    """Wait until somebody listens there, as the one who keeps the rendezvous will; not for ever."""
    end = time.monotonic() + _STORE
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        time.sleep(0.1)
    return False


@contextmanager
def _passed_on(notes: Path) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the processes, which then save and end; yield what came.

    Those that do not listen yet find it in the `notes`; where there are none, all ends here.
    """
    import psutil

    received: list[int] = []

    def forward(number: int, _: object) -> None:
        received.append(number)
        exits.tell(notes)
        children = psutil.Process().children()
        for child in children:
            with suppress(psutil.Error):
                child.send_signal(number)
        if not children:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped("stopped by SIGTERM; the same command goes on")

    before = [(n, signal.signal(n, forward)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield received
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _nodes(text: str) -> tuple[int, int]:
    parts = text.split(":")
    sound = len(parts) <= 2 and all(part.isdecimal() and int(part) for part in parts)
    if not sound or int(parts[0]) > int(parts[-1]):
        raise ConfigError(f"--nnodes {text}: expected a number, or a range like 1:2")
    return int(parts[0]), int(parts[-1])


def _place(text: str) -> None:
    host, _, port = text.rpartition(":")
    name = re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", host)
    if not name or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--rdzv-endpoint {text}: expected HOST:PORT")
