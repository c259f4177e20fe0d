"""`surefoot doctor`: what this machine can do, each with one line of advice."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from surefoot.cli.options import parser

__all__ = ["run"]

Line = tuple[str, str, str]  # what, how it is, advice ("" where all is well)


def run(verb: str, argv: list[str]) -> int:
    """Run the verb and return its exit code."""
    own = parser("doctor", "Look at this machine.")
    own.add_argument("--measure", action="store_true", help="measure the ceilings anew")
    options = own.parse_args(argv)
    lines = list(_lines(options.runs, options.measure))
    if options.json:
        print(json.dumps({what: {"is": how, "advice": advice} for what, how, advice in lines}))
        return 0
    for what, how, advice in lines:
        print(f"{what:<10} {how}")
        if advice:
            print(f"{'':<10} -> {advice}")
    print("Ready. Try:  surefoot train charlm")
    return 0


def _lines(runs: str | None, fresh: bool) -> Iterator[Line]:
    from surefoot.track.folder import runs_dir
    from surefoot.track.machine import describe_machine
    from surefoot.version import __version__

    machine = describe_machine()
    yield "surefoot", f"{__version__}, Python {machine['python']}, {machine['os']}", ""
    yield from _torch_lines(fresh)
    memory = machine["memory"] / 1e9
    yield "processor", f"{machine['cpu']}, {machine['cores']} cores, {memory:.0f} GB", ""
    yield _memory_line()
    yield _compile_line()
    yield _disk_line(runs_dir(runs))
    yield _data_line()
    yield from _extras()


def _torch_lines(fresh: bool) -> Iterator[Line]:
    import torch

    from surefoot.engine.fit import usable_cores

    yield "torch", f"{torch.__version__}, {usable_cores()} threads", ""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        other = (total - free) / 1e9
        advice = f"other programs use {other:.1f} GB of it" if other > 1.0 else ""
        yield "device", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free", advice
        yield (
            "numbers",
            "bf16" if torch.cuda.is_bf16_supported(False) else "fp16 with loss scaling",
            "",
        )
    elif torch.backends.mps.is_available():
        yield "device", "Apple GPU (MPS)", ""
    else:
        yield "device", "cpu (no CUDA device, no MPS)", ""
        yield from _ceilings(fresh)


def _ceilings(fresh: bool) -> Iterator[Line]:
    """Say what one core reaches at most; it is what `surefoot plan` counts with."""
    from surefoot.data.fetch import cache_dir
    from surefoot.engine.ceilings import measured

    found = measured(cache_dir() / "ceilings.json", fresh)
    slow = found.half <= 1.3 * found.fp32
    how = f"fp32 {found.fp32 / 1e9:.0f}, bf16 {found.half / 1e9:.0f} GFLOP/s a core, measured"
    advice = "bf16 does not pay on this processor; auto uses fp32" if slow else ""
    yield "numbers", how, advice
    start = f"{found.start * 1e6:.1f} us to start an operation"
    yield "bandwidth", f"{found.bandwidth / 1e9:.0f} GB/s a core, {start}, measured", ""


def _memory_line() -> Line:
    import psutil

    from surefoot.engine.meter import allowed

    free, limit = psutil.virtual_memory().available, allowed()
    if limit is not None and limit < free:
        advice = "a control group limits this process; ask for more where jobs are started"
        return "memory", f"{limit / 1e9:.1f} of {free / 1e9:.1f} GB free are allowed", advice
    advice = "close other programs, or plan with --gpu" if free < 2e9 else ""
    return "memory", f"{free / 1e9:.1f} GB free", advice


def _compile_line() -> Line:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        return "compile", f"C++ compiler {Path(compiler).name}", ""
    return "compile", "no C++ compiler", "install g++ to let long runs compile; all else works"


def _disk_line(runs: Path) -> Line:
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    advice = "little room for checkpoints; choose another folder with --runs" if free < 2e9 else ""
    return "disk", f"{free / 1e9:.1f} GB free for {runs}", advice


def _data_line() -> Line:
    from surefoot.data.fetch import cache_dir, is_offline

    kept = cache_dir()
    network = "downloads are off ($SUREFOOT_OFFLINE)" if is_offline() else "downloads on first use"
    return "data", f"cache {kept}, {network}", ""


def _extras() -> Iterator[Line]:
    for name, module, what in (
        ("tb", "tensorboard", "look at TensorBoard events"),
        ("gpu", "pynvml", "see the GPU's temperature and other programs on it"),
    ):
        there = importlib.util.find_spec(module) is not None
        advice = "" if there else f'to {what}: pip install "surefoot[{name}]"'
        yield f"[{name}]", "installed" if there else "not installed", advice
