"""`surefoot doctor`: what this machine can do, each with one line of advice."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.cli.folded import hanging
from surefoot.cli.options import parser
from surefoot.track.durable import sync

__all__ = ["run"]

_WRITTEN = 32  # megabytes, to see how fast the disk is
_EXTRAS = (
    ("tb", "tensorboard", "look at TensorBoard events"),
    ("gpu", "pynvml", "see a GPU's busy share, heat and other programs on it"),
    ("code", "peft", "tune a pretrained model on code"),
    ("sweep", "optuna", "search settings"),
    ("export", "gguf", "write GGUF files"),
    ("onnx", "onnx", "write ONNX files"),
    ("llama", "llama_cpp", "let llama.cpp write"),
    ("zst", "zstandard", "read .zst texts"),
    ("remote", "s3fs", "read data from elsewhere"),
)
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
        print(hanging(f"{what:<10} {how}", 11))
        if advice:
            print(hanging(f"{'':<10} -> {advice}", 14))
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
    yield _threads_line()
    yield _memory_line()
    yield _disk_line(runs_dir(runs))
    yield _data_line()
    yield from _extras()


def _torch_lines(fresh: bool) -> Iterator[Line]:
    import torch

    from surefoot.engine import open_world
    from surefoot.engine.world import why_no_card

    device = open_world("auto").device
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for processors only"
    yield "torch", f"{torch.__version__}, {built}", ""
    if device.type == "cuda":
        yield from _cards()
    elif device.type == "mps":
        yield "device", "Apple GPU (MPS)", ""
    else:
        yield "device", "cpu (no CUDA device, no MPS)", why_no_card()
    yield _numbers_line(device)
    yield _compile_line(str(device))
    yield from _ceilings(fresh, device)


def _cards() -> Iterator[Line]:
    """Yield a line for each card: driver, memory, who else is on it."""
    import torch

    sizes = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        sizes.append(total)
        other = (total - free) / 1e9
        advice = f"other programs use {other:.1f} GB of it: nvidia-smi" if other > 1.0 else ""
        if index and abs(total - sizes[0]) > 0.05 * sizes[0]:
            advice = f"of another size than the first: --device cuda:{index} takes it alone"
        name = f"{torch.cuda.get_device_name(index)}, {_driver()}"
        label = "device" if not index else f"device {index}"
        yield label, f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free", advice


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return f"driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # not installed, or it has nothing to say
        return 'driver not known (pip install "surefoot[gpu]")'


def _numbers_line(device: Any) -> Line:
    """Say which kinds of numbers the device multiplies, by trying."""
    from surefoot.lab.ability import numbers

    found = numbers(device)
    base = found["fp32"] or 1.0
    told = ", ".join(
        f"{name} {rate / base:.2g} x" if rate else f"no {name}"
        for name, rate in found.items() if name != "fp32"
    )  # fmt: skip
    slow = device.type == "cpu" and (found["bf16"] or 0.0) <= 1.3 * base
    advice = "bf16 does not pay on this processor; auto uses fp32" if slow else ""
    if device.type == "cuda" and not found["bf16"]:
        advice = "no bf16: auto trains in fp16 with loss scaling"
    return "numbers", f"as fast as fp32, by probe: {told}", advice


def _ceilings(fresh: bool, device: Any) -> Iterator[Line]:
    """Say what the device reaches at most; it is what `surefoot plan` counts with."""
    from surefoot.data.fetch import cache_dir
    from surefoot.engine.auto.ceilings import measured

    found = measured(cache_dir() / "ceilings.json", fresh, device)
    a = " a core" if device.type == "cpu" else ""
    how = f"fp32 {_rate(found.fp32)}, bf16 {_rate(found.half)}{a}; kept, --measure does it again"
    yield "products", how, ""
    start = f"{found.start * 1e6:.0f} us to start an operation of a model"
    yield "bandwidth", f"{found.bandwidth / 1e9:.0f} GB/s{a}, {start}", ""


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:.0f} GFLOP/s"


def _threads_line() -> Line:
    from surefoot.engine.auto.fit import usable_cores

    told, load = os.environ.get("OMP_NUM_THREADS"), os.getloadavg()[0]
    how = f"{usable_cores()} to compute with" + (f" (OMP_NUM_THREADS is {told})" if told else "")
    busy = load > 0.5 * (os.cpu_count() or 1)
    advice = f"the load is {load:.1f}: other programs make steps take longer" if busy else ""
    return "threads", how, advice


def _memory_line() -> Line:
    import psutil

    from surefoot.engine.memory import allowed

    free, limit = psutil.virtual_memory().available, allowed()
    if limit is not None and limit < free:
        advice = "a control group limits this process; ask for more where jobs are started"
        return "memory", f"{limit / 1e9:.1f} of {free / 1e9:.1f} GB free are allowed", advice
    advice = "close other programs, or plan with --gpu" if free < 2e9 else ""
    return "memory", f"{free / 1e9:.1f} GB free", advice


def _compile_line(device: str) -> Line:
    """Say whether models can be compiled for the device."""
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    name = f"C++ compiler {Path(found).name}" if found else "no C++ compiler"
    triton = importlib.util.find_spec("triton") is not None
    if device.startswith("cuda") and not triton:
        return (
            "compile",
            f"{name}, no Triton",
            "pip install triton, so that models compile; all else works",
        )
    if not found and not device.startswith("cuda"):
        return "compile", name, "install g++ to let long runs compile; all else works"
    return "compile", f"{name}, {'Triton' if triton else 'no Triton (for GPUs)'}", ""


def _disk_line(runs: Path) -> Line:
    place = runs.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    advice = "little room for checkpoints; choose another folder with --runs" if free < 2e9 else ""
    speed = _disk_speed(place)
    if not advice and speed is not None and speed < 50e6:
        advice = "slow: checkpoints are written beside training, but large ones take their time"
    told = f", {speed / 1e6:.0f} MB/s written and synced" if speed else ", not writable"
    return "disk", f"{free / 1e9:.1f} GB free for {runs}{told}", advice


def _disk_speed(place: Path) -> float | None:
    """Return bytes a second that reach the disk; None where nothing can be written."""
    data = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            begun = time.perf_counter()
            for _ in range(_WRITTEN):
                file.write(data)
            file.flush()
            sync(file.fileno())
            return _WRITTEN * len(data) / (time.perf_counter() - begun)
    except OSError:
        return None


def _data_line() -> Line:
    from surefoot.data.fetch import cache_dir, is_offline

    kept = cache_dir()
    network = "downloads are off ($SUREFOOT_OFFLINE)" if is_offline() else "downloads on first use"
    return "data", f"cache {kept}, {network}", ""


def _extras() -> Iterator[Line]:
    for name, module, what in _EXTRAS:
        there = importlib.util.find_spec(module) is not None
        advice = "" if there else f'to {what}: pip install "surefoot[{name}]"'
        yield f"[{name}]", "installed" if there else "not installed", advice
