"""torch's compiler: what it needs here, and how its code is kept for later processes.

torch finds kept code by what it was made from: the graph, shapes, settings, its own sources. Four more
things decide bits. The processor and the C++ compiler are not part of that: they name the folder,
so that code is taken only where the same would be made. Our own operations, whose gradients
torch may know by name alone, and the number of threads, which torch before 2.13 forgets, are in
the mark that it adds to every key.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash

from surefoot.data.fetch import cache_dir

__all__ = ["compiler", "compiler_version", "keep_code", "set_threads"]

_PLACE = "TORCHINDUCTOR_CACHE_DIR"
_SHAPES = 1024  # that one function may meet in a process; torch's own limit is 8
_ABANDONED = 60 * 86_400  # seconds since code of another torch or compiler was last used
_MARKED = ["model name", "flags", "Features", "CPU part", "uarch", "isa"]  # of /proc/cpuinfo
_PARTS = ("torch._dynamo.config", "torch._functorch.config", "torch._inductor.compile_fx")

_marking = False


def compiler(device: str) -> str | None:
    """Return the compiler that torch needs for `device`, or None where there is none."""
    if device.startswith("cuda"):
        return "triton" if importlib.util.find_spec("triton") else None
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def compiler_version(device: str) -> str:
    """Return what the compiler for `device` calls itself; empty where it does not say."""
    name = compiler(device)
    if name == "triton":
        return f"triton {importlib.import_module('triton').__version__}"
    if name is None:
        return ""
    try:
        done = subprocess.run([name, "--version"], capture_output=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()


def keep_code(device: str = "") -> None:
    """Let torch keep compiled code in our cache, for each shape and for however many.

    A place that $TORCHINDUCTOR_CACHE_DIR names stays. Graphs with gradients of their own
    (`autograd.Function`) are kept as well, whose gradients torch takes into the graph and so into
    the key. At its limit of shapes torch would go on without compiling and bits would depend on
    what ran before, so the limit is far away, and an error. `device` is its type where all code
    is for one.
    """
    global _marking
    usual, ours = _usual_place(), cache_dir().absolute() / "compiled"
    chosen = not os.environ.get(_PLACE, usual).startswith((usual, str(ours)))
    place = None if chosen else _keep_in(ours)
    if device == "cpu":
        os.environ.setdefault("TORCH_WARM_POOL", "0")  # processes that compile for Triton alone
    with _nothing_collected():
        shapes, gradients, _ = map(importlib.import_module, _PARTS)
    settings: Any = shapes
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(settings, name, max(_SHAPES, getattr(settings, name)))
    settings.fail_on_recompile_limit_hit = True
    settings = gradients
    settings.autograd_cache_allow_custom_autograd_functions = True
    if device == "cpu" and place is not None:
        _try_vectors_once(place)
    _marking = True
    _mark()


def set_threads(count: int) -> None:
    """Compute on `count` threads from now on."""
    torch.set_num_threads(count)
    if _marking:
        _mark()


def _usual_place() -> str:
    """Return how the folder begins that torch takes itself, where any user may put files."""
    return str(Path(tempfile.gettempdir()) / "torchinductor_")


def _keep_in(folder: Path) -> Path | None:
    """Let torch read and write its code there, in a folder of this machine and its compiler."""
    mine = folder / _machine()
    try:
        mine.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(mine)
        if hasattr(os, "ST_NOEXEC") and os.statvfs(mine).f_flag & os.ST_NOEXEC:
            return None  # no code could be run from there
        for other in folder.iterdir():
            if time.time() - other.stat().st_mtime > _ABANDONED:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None  # a cache is a convenience: torch's own place will do
    os.environ[_PLACE] = str(mine)
    return mine


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Look for no garbage: thousands of modules come, and a quarter of the time would be for that."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _try_vectors_once(place: Path) -> None:
    """Let torch try vector instructions once for this processor and compiler, not at every start.

    It starts an interpreter for each kind, which takes most of a second. Where all work that the
    processor claims to have, it is told so from then on.
    """
    code: Any = importlib.import_module("torch._inductor.config")
    kinds: Any = importlib.import_module("torch._inductor.cpu_vec_isa")
    if code.cpp.vec_isa_ok is not None:
        return
    tried = place / "vectors"
    works = None if tried.exists() else list(map(str, kinds.valid_vec_isa_list()))
    code.cpp.vec_isa_ok = True
    kinds.valid_vec_isa_list.cache_clear()
    if works is None:
        return
    if works != list(map(str, kinds.valid_vec_isa_list())):
        code.cpp.vec_isa_ok = None
        kinds.valid_vec_isa_list.cache_clear()
        return
    with suppress(OSError):
        tried.write_text(", ".join(works))


@lru_cache(maxsize=1)
def _machine() -> str:
    """Return a name for what machine code depends on besides torch's own keys."""
    facts: list[Any] = [torch.__version__, sys.version_info[:2], platform.machine(), _features()]
    for name in (compiler("cpu"), shutil.which("ld")):
        if name is not None:
            about = Path(name).stat()
            facts.append((Path(name).resolve(), about.st_size, about.st_mtime_ns))
    return xxhash.xxh3_64_hexdigest(repr(facts).encode())


def _features() -> list[str]:
    """Return what the processor is called and can do."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return [platform.processor()]
    first = text.split("\n\n")[0].splitlines()
    return [line for line in first if line.partition(":")[0].strip() in _MARKED]


def _mark() -> None:
    """Put into the key of all code from now on what it may depend on and torch leaves out."""
    settings: Any = importlib.import_module("torch.compiler.config")
    settings.cache_key_tag = f"surefoot {_operations()} {torch.get_num_threads()}"


@lru_cache(maxsize=1)
def _operations() -> str:
    """Return a hash of our operations as they are written."""
    state = xxhash.xxh3_64()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        state.update(path.read_bytes())
    return state.hexdigest()
