"""What this machine tells about itself: its processor and memory through psutil, a GPU through NVIDIA's
library where that is installed, else through torch.

A reading is a plain dictionary; what a machine does not tell is not in it. Counters only grow, so
that the difference of two readings tells what was between them.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import psutil
import torch

from surefoot.engine.memory import available

__all__ = ["Gone", "Nvidia", "Processor", "Sensor", "sensors"]

CONTEXT = 500_000_000  # bytes of CUDA itself, where the driver does not say what a process holds
# Bits of NVIDIA's "clocks event reasons" that mean slower than asked for.
_HEAT, _POWER = 0x20 | 0x40, 0x4 | 0x8 | 0x80


class Gone(Exception):
    """A device that was there does not answer any more."""


class Sensor(Protocol):
    """Something that can be read again and again; raises Gone."""

    def read(self) -> dict[str, float]: ...


class Processor:
    """Counters `own_cpu_s` and `all_cpu_s`, `host_free_bytes`, and `cpu_mhz`, `cpu_celsius` where told."""

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())

    def read(self) -> dict[str, float]:
        """Return what the processor tells now; it takes half a millisecond."""
        own, whole = self._process.cpu_times(), psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        found = {
            "own_cpu_s": own.user + own.system,
            "all_cpu_s": sum(whole[:8]) - idle,  # guests are counted in `user` already
            "host_free_bytes": float(available()),
        }
        clock = _quietly(getattr(psutil, "cpu_freq", None))
        if clock is not None and clock.current:
            found["cpu_mhz"] = clock.current
        heat = _quietly(getattr(psutil, "sensors_temperatures", None)) or {}
        degrees = [each.current for group in heat.values() for each in group if each.current]
        if degrees:
            found["cpu_celsius"] = max(degrees)
        return found


class Nvidia:
    """One CUDA device: how busy it is, its memory and who holds it, heat, clock, power.

    Without NVIDIA's library (`why` then says so) only its memory is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self.why = device, ""
        self._library: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            name = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{name.removeprefix('GPU-')}")
            self._library = pynvml
        except ImportError:
            self.why = 'busy share, heat and clock are not known: pip install "surefoot[gpu]"'
        except Exception as error:  # no driver, or a part of a card that has no such name
            self.why = f"busy share, heat and clock are not known: {error}"

    def read(self) -> dict[str, float]:
        """Return what the device tells now. Raises Gone where it does not answer."""
        held = float(torch.cuda.memory_reserved(self._device))
        if self._library is None:
            try:
                free, whole = torch.cuda.mem_get_info(self._device)
            except RuntimeError as error:
                raise Gone(str(error).partition("\n")[0]) from error
            return {
                "gpu_free_bytes": free,
                "gpu_other_bytes": max(0, whole - free - held - CONTEXT),
            }
        try:
            return self._ask(self._library, held)
        except self._library.NVMLError as error:
            raise Gone(str(error)) from error

    def _ask(self, nvml: Any, held: float) -> dict[str, float]:
        handle, memory = self._handle, nvml.nvmlDeviceGetMemoryInfo(self._handle)
        found = {
            "gpu_free_bytes": float(memory.free),
            "gpu_other_bytes": float(max(0, memory.used - self._own(nvml, held))),
        }
        load = _told(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
        if load is not None:
            found |= {"gpu_busy": load.gpu / 100, "gpu_memory_busy": load.memory / 100}
        why = _told(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        if why is not None:
            found |= {"gpu_hot": float(bool(why & _HEAT)), "gpu_capped": float(bool(why & _POWER))}
        for key, call, scale in (
            (
                "gpu_celsius",
                lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU),
                1,
            ),
            ("gpu_mhz", lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM), 1),
            ("gpu_most_mhz", lambda h: nvml.nvmlDeviceGetMaxClockInfo(h, nvml.NVML_CLOCK_SM), 1),
            ("gpu_watt", nvml.nvmlDeviceGetPowerUsage, 1000),
            ("gpu_joule", nvml.nvmlDeviceGetTotalEnergyConsumption, 1000),
        ):
            value = _told(nvml, call, handle)
            if value is not None:
                found[key] = float(value) / scale
        return found

    def _own(self, nvml: Any, held: float) -> float:
        """Return the bytes of this process: the driver's word, else what torch holds and the context."""
        those = _told(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, self._handle) or []
        mine = [each.usedGpuMemory for each in those if each.pid == os.getpid()]
        return float(mine[0]) if mine and mine[0] else held + CONTEXT


class Apple:
    """The GPU of an Apple machine: what torch's driver holds, against what it may."""

    def read(self) -> dict[str, float]:
        """Return bytes that this process may still take."""
        most, held = torch.mps.recommended_max_memory(), torch.mps.driver_allocated_memory()
        return {"gpu_free_bytes": float(max(0, most - held)), "gpu_held_bytes": float(held)}


def sensors(device: torch.device) -> list[Sensor]:
    """Return what can be read of the machine that trains on `device`."""
    found: list[Sensor] = [Processor()]
    if device.type == "cuda":
        found.append(Nvidia(device))
    if device.type == "mps":
        found.append(Apple())
    return found


def _told(nvml: Any, call: Any, handle: Any) -> Any:
    """Return what a device tells, None for what it does not know. Raises NVMLError when it is lost."""
    try:
        return call(handle)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_UNKNOWN):
            raise
        return None


def _quietly(call: Any) -> Any:
    try:
        return None if call is None else call()
    except (OSError, RuntimeError):
        return None
