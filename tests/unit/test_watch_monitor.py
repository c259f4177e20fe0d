"""What is said about the machine, with sensors and a clock that the test turns."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import surefoot as package
from surefoot.config.schema import RunConfig
from surefoot.engine import World
from surefoot.engine.ranks.team import Team
from surefoot.engine.watch import monitor
from surefoot.engine.watch import sensors as seen
from surefoot.engine.watch.monitor import Monitor
from surefoot.engine.watch.sensors import Gone, Nvidia, Processor

GPU = {
    "own_cpu_s": 0.0, "all_cpu_s": 0.0, "host_free_bytes": 8e9, "gpu_busy": 0.95,
    "gpu_memory_busy": 0.4, "gpu_hot": 0.0, "gpu_capped": 0.0, "gpu_celsius": 70.0,
    "gpu_mhz": 1900.0, "gpu_most_mhz": 2000.0, "gpu_free_bytes": 6e9, "gpu_other_bytes": 0.0,
    "gpu_joule": 0.0,
}  # fmt: skip


class Machine:
    """A sensor and a clock; every reading is a second of training."""

    def __init__(self, **values: float) -> None:
        self.now, self.values = 0.0, dict(GPU) | values
        self.broken: Exception | None = None

    def read(self) -> dict[str, float]:
        if self.broken is not None:
            raise self.broken
        return dict(self.values)

    def clock(self) -> float:
        return self.now


class Told(list[str]):
    """What was said, and whether other programs took the cores."""

    crowded = False


def train(machine: Machine, seconds: int = 50, data: float = 0.0, **after: float) -> Told:
    """Train so many seconds with a row every ten; `after` is what the machine shows from the start on."""
    told = Told()
    monitor = Monitor(
        [machine], told.append, flops=1e9, ceiling=1e10, moved=4e9, bandwidth=1e10, memory=8e9,
        clock=machine.clock,
    )  # fmt: skip
    monitor._watch = lambda: None  # type: ignore[method-assign]  # the test is the thread
    monitor._thread._target = monitor._watch  # type: ignore[attr-defined]
    with monitor:
        machine.values |= after
        for second in range(1, seconds + 1):
            machine.now += 1.0
            machine.values["own_cpu_s"] += 0.9
            machine.values["all_cpu_s"] += 0.9 + machine.values.get("rivals", 0.0)
            machine.values["gpu_joule"] += 50.0
            monitor.read()
            if second % 10 == 0:
                compute = 10.0 * (1 - data)
                told.row = monitor.row({"steps": 20, "compute_s": compute, "data_s": 10.0 * data})  # type: ignore[attr-defined]
    told.crowded = monitor.crowded
    return told


def test_a_sound_machine_is_described_and_not_complained_about() -> None:
    told = train(Machine())
    assert told == [] and not told.crowded
    row: dict[str, float] = told.row  # type: ignore[attr-defined]
    assert row["busy"] == row["gpu_busy"] == 0.95
    assert row["flop_s"] == 2e9 and row["mfu"] == 0.2
    assert row["bytes_s"] == 8e9 and row["mbu"] == 0.8
    assert row["gpu_joule"] == 500.0 and row["gpu_celsius"] == 70.0
    assert "own_cpu_s" not in row


@pytest.mark.parametrize(
    ("cause", "said", "advice"),
    [
        ({"data": 0.4}, "40% of the time goes into waiting for data", "--prefetch-threads"),
        ({"gpu_busy": 0.3}, "the GPU computes 30% of the time", "--micro-batch-size"),
        ({"gpu_hot": 1.0, "gpu_celsius": 91.0}, "slows down from heat, 91 degrees", "cool"),
        ({"gpu_capped": 1.0, "gpu_mhz": 900.0}, "runs at 900 of 2000 MHz", "nvidia-smi"),
        ({"gpu_other_bytes": 2e9}, "other programs took 2.0 GB of the GPU's memory", "nvidia-smi"),
        ({"host_free_bytes": 1e8}, "memory is nearly full, 0.10 GB", "--micro-batch-size"),
    ],
    ids=["data", "idle", "hot", "capped", "gpu memory", "memory"],
)
def test_a_cause_is_named_once_with_advice(cause: dict[str, float], said: str, advice: str) -> None:
    told = train(Machine(), seconds=100, **cause)  # type: ignore[arg-type]
    (text,) = told
    assert said in text and advice in text


def test_other_programs_on_a_processor_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    machine = Machine(rivals=1.5)
    machine.values = {k: v for k, v in machine.values.items() if not k.startswith("gpu")} | {
        "gpu_joule": 0.0
    }
    (text,) = told = train(machine)
    assert "other programs keep 1.5 of 2 cores busy" in text and told.crowded


@pytest.mark.parametrize("rivals", [0.0, 1.0, 1.9])
def test_a_run_too_short_for_a_warning_knows_that_it_was_not_alone(
    monkeypatch: pytest.MonkeyPatch, rivals: float
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    values = {key: value for key, value in GPU.items() if not key.startswith("gpu")}
    machine = Machine(rivals=rivals)
    machine.values = {**values, "rivals": rivals, "gpu_joule": 0.0}
    told = train(machine, seconds=5)
    assert told == [] and told.crowded is (rivals > 1.25)


def test_a_share_is_that_of_what_all_devices_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of several ranks is shared out, so its operations are those of all of them."""
    monkeypatch.setattr(monitor, "work", lambda *_: {"main": 4e9})
    monkeypatch.setattr(monitor, "sensors", lambda _: [])
    plan = {"ceiling": 1e10, "moved": 4e9, "bandwidth": 1e10}
    spent = {"steps": 10, "compute_s": 10.0}
    shares = []
    for size in (1, 4):
        team = Team(0, size, 0, torch.device("cpu")) if size > 1 else None
        world = World(torch.device("cpu"), team)
        meta = {"plan": plan, "pinned": {"threads": 1}}
        with monitor.monitoring(meta, RunConfig(), None, world, None) as found:  # type: ignore[arg-type]
            assert found is not None
            shares.append(found._speed(spent))
    one, four = shares
    assert (one["flop_s"], one["mfu"], one["mbu"]) == (4e9, 0.4, 0.4)
    assert four == {"flop_s": 4e9, "mfu": 0.1}


def test_a_gpu_that_disappears_is_said_once_and_the_rest_goes_on() -> None:
    machine, told = Machine(), []
    monitor = Monitor([Processor(), machine], told.append, clock=machine.clock)
    with monitor:
        machine.broken = Gone("GPU is lost")
        monitor.read()
        machine.now += 5
        row = monitor.row({"steps": 1, "compute_s": 5.0})
        machine.now += 5
        monitor.read()
        monitor.row({"steps": 1, "compute_s": 5.0})
    assert told == ["the GPU does not answer any more: GPU is lost"]
    assert row["host_free_bytes"] > 0


def test_without_nvidias_library_it_says_once_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 10**9, 8 * 10**9))
    found = Nvidia(torch.device("cuda"))
    assert "surefoot[gpu]" in found.why
    assert found.read() == {"gpu_free_bytes": 2e9, "gpu_other_bytes": 5e9 - seen.CONTEXT}
    told: list[str] = []
    with Monitor([found], told.append):
        pass
    assert told == [found.why]


def test_without_a_driver_it_says_so() -> None:
    pytest.importorskip("pynvml")
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    assert "not known" in Nvidia(torch.device("cuda")).why


class Library:
    """NVIDIA's library, of a driver that forgets its card after some questions."""

    NVML_ERROR_GPU_IS_LOST, NVML_ERROR_UNKNOWN = 15, 999
    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = 0

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__("GPU is lost")
            self.value = value

    def __init__(self, readings: int) -> None:
        self.readings = readings

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        self.readings -= 1
        if self.readings < 0:
            raise self.NVMLError(15)
        return SimpleNamespace(free=6e9, used=2e9)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=90, memory=40)

    def __getattr__(self, name: str) -> Any:
        """Answer every other question like a card that does not know."""

        def unknown(*_: Any) -> Any:
            raise self.NVMLError(3)

        return unknown


def test_a_driver_that_forgets_its_card_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card: Any = object.__new__(Nvidia)
    card._device, card.why, card._handle, card._library = None, "", None, Library(2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 10**9)
    row = Monitor.row

    def read_and_row(self: Monitor, spent: Any) -> dict[str, float]:
        for _ in range(3):  # as often as its thread would, were it given a core
            self.read()
        return row(self, spent)

    monkeypatch.setattr(Monitor, "row", read_and_row)
    monkeypatch.setattr("surefoot.engine.watch.monitor.EVERY", 3600.0)
    monkeypatch.setattr("surefoot.engine.watch.monitor.sensors", lambda _: [Processor(), card])
    text = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
    result = package.train(
        "charlm", preset="tiny", path=text, runs=tmp_path, quiet=True, max_steps=30, new=True,
        **{"track.report": False, "track.tensorboard": False},
    )  # fmt: skip
    assert result.status == "done" and result.step == 30
    said = (result.folder / "log.txt").read_text()
    assert said.count("the GPU does not answer any more: GPU is lost") == 1
    last = json.loads((result.folder / "system.jsonl").read_text().splitlines()[-1])
    assert last["host_free_bytes"] > 0 and last["step"] == 30


def test_watching_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surefoot.engine.watch.monitor.EVERY", 0.0001)
    text = str(Path(__file__).parents[1] / "fixtures" / "shakespeare.txt")
    rows, weights = [], []
    for wanted in (True, False):
        result = package.train(
            "charlm", preset="tiny", path=text, runs=tmp_path, quiet=True, monitor=wanted,
            max_steps=20, new=True, **{"track.report": False, "track.tensorboard": False},
        )  # fmt: skip
        lines = (result.folder / "system.jsonl").read_text().splitlines()
        rows.append(json.loads(lines[-1]))
        last = max(result.folder.glob("checkpoints/step-*"))
        weights.append((last / "main.model.safetensors").read_bytes())
    watched, alone = rows
    assert weights[0] == weights[1]
    assert watched["host_free_bytes"] > 0 and watched["flop_s"] > 0
    assert not {"host_free_bytes", "flop_s", "busy"} & alone.keys()
    assert "monitor" not in [thread.name for thread in threading.enumerate()]
