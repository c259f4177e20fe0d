"""Watch the machine while a run trains: how busy it is, who else is on it, whether it is hot or full.

A thread of its own reads sensors once a second, and each row of the record gets what came together
since the last one. Nothing here changes a number of the run. What goes wrong is said once, with advice.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from surefoot.config.schema import RunConfig
from surefoot.engine.job import Job
from surefoot.engine.memory import gpu
from surefoot.engine.plan import work
from surefoot.engine.watch.sensors import Gone, Sensor, sensors
from surefoot.engine.world import World
from surefoot.track.record import Record

__all__ = ["Monitor", "monitoring"]

EVERY = 1.0  # seconds between readings
WARM = 20.0  # seconds of steps before anything is judged: the first ones load and compile
_COUNTERS = ("own_cpu_s", "all_cpu_s", "gpu_joule")
_MEANS = ("gpu_busy", "gpu_memory_busy", "gpu_hot", "gpu_capped", "gpu_watt")
_WAITS, _IDLE, _OTHERS = 0.2, 0.5, 0.25  # shares of the time, of the device, of the cores
_FULL, _EATEN = 0.03, 0.1  # shares of memory: nearly full; taken by others since the start
_SLOW = 0.7  # a clock below this share of its most

Tell = Callable[[str], None]


class Monitor:
    """Reads sensors in the background, from the start of the block until its end.

    `threads` compute, `flops` is the work of a step and `ceiling` the FLOP/s that the device reaches at
    most, where they are known; `moved` are the bytes of a step and `bandwidth` those a second. `memory` is
    the size of the device's memory in bytes. Warnings go to `tell`.
    """

    def __init__(
        self,
        those: Sequence[Sensor],
        tell: Tell,
        *,
        threads: int = 1,
        flops: float | None = None,
        ceiling: float | None = None,
        moved: float | None = None,
        bandwidth: float | None = None,
        memory: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sensors, self._tell = list(those), tell
        self.threads, self.cores = threads, os.cpu_count() or 1
        self._memory = memory
        self._works = {  # what a step does, and how much of it the device does a second at most
            ("flop_s", "mfu"): (flops, ceiling), ("bytes_s", "mbu"): (moved, bandwidth)
        }  # fmt: skip
        self._clock, self._end, self._lock = clock, threading.Event(), threading.Lock()
        self._sums: dict[str, float] = {}
        self._count = 0
        self._last: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._begun = self._moment = clock()
        self._rivals = 0.0  # cores that other programs kept busy, on the mean, known at the end
        self._gone: list[str] = []
        self._said: set[str] = set()
        self._since: dict[str, float] = {}  # what the judgement looks at: sums of rows
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        for sensor in self._sensors:
            if why := getattr(sensor, "why", ""):
                self._tell(why)
        self.read()
        self._first, self._before, self._moment = dict(self._last), dict(self._last), self._clock()
        self._begun = self._moment
        self._sums, self._count = {}, 0  # what was before the first step does not count
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self.read()
        if "own_cpu_s" in self._first and "gpu_busy" not in self._last:
            own, every = (self._last[k] - self._first[k] for k in ("own_cpu_s", "all_cpu_s"))
            self._rivals = (every - own) / max(1e-9, self._clock() - self._begun)

    @property
    def crowded(self) -> bool:
        """Whether other programs took the cores that this one computes on, for a while or in all."""
        return "cores" in self._said or self._too_many(self._rivals)

    def _too_many(self, rivals: float) -> bool:
        """Whether other programs that keep `rivals` cores busy leave too few for our threads."""
        return rivals > self.cores - self.threads + _OTHERS * self.threads

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            self.read()

    def read(self) -> None:
        """Read every sensor once; one that is gone is never read again."""
        found: dict[str, float] = {}
        for sensor in list(self._sensors):
            try:
                found |= sensor.read()
            except Gone as error:
                self._sensors.remove(sensor)
                self._gone.append(str(error))
            except Exception as error:  # a sensor must never end a run
                self._sensors.remove(sensor)
                self._gone.append(f"{type(error).__name__}: {error}")
        with self._lock:
            self._last |= found
            for key in _MEANS:
                if key in found:
                    self._sums[key] = self._sums.get(key, 0.0) + found[key]
            self._count += 1

    def row(self, spent: Mapping[str, Any]) -> dict[str, float]:
        """Return what came together since the last row, and judge it.

        `spent` are the values of the same row: `steps` and seconds by what they were spent on.
        """
        for text in self._gone:
            self._say("gone", f"the GPU does not answer any more: {text}")
        moment = self._clock()
        with self._lock:
            seconds, last, count = moment - self._moment, dict(self._last), self._count
            means = {key: total / count for key, total in self._sums.items()} if count else {}
            if seconds < EVERY and not count:
                return {}
            self._sums, self._count, self._moment = {}, 0, moment
        since = {k: last[k] - self._before.get(k, last[k]) for k in _COUNTERS if k in last}
        self._before = last
        found = {key: value for key, value in last.items() if key not in (*_COUNTERS, *_MEANS)}
        found |= means
        if "gpu_joule" in since:
            found["gpu_joule"] = since["gpu_joule"]
        if count and seconds > 0 and "own_cpu_s" in since:
            found["busy"] = means.get(
                "gpu_busy", min(1.0, since["own_cpu_s"] / seconds / self.threads)
            )
            found["other_cores"] = max(0.0, since["all_cpu_s"] - since["own_cpu_s"]) / seconds
        found |= self._speed(spent)
        self._judge(spent, found, seconds)
        return {key: float(f"{value:.6g}") for key, value in found.items()}

    def _speed(self, spent: Mapping[str, Any]) -> dict[str, float]:
        """Return operations and bytes a second while computing, and their shares of what the device can."""
        seconds = spent.get("compute_s", 0.0) + spent.get("data_s", 0.0)
        found: dict[str, float] = {}
        for (name, share), (each, most) in self._works.items():
            if each and seconds and spent.get("steps"):
                found[name] = each * spent["steps"] / seconds
                found |= {share: found[name] / most} if most else {}
        return found

    def _judge(self, spent: Mapping[str, Any], found: Mapping[str, float], seconds: float) -> None:
        """Add up a window long enough to be judged, and say what is wrong in it."""
        window = self._since
        values = {**found, "data": spent.get("data_s", 0.0) / max(seconds, 1e-9)}
        for key, value in values.items():
            window[key] = window.get(key, 0.0) + value * seconds
        window["seconds"] = window.get("seconds", 0.0) + seconds
        if window["seconds"] < WARM:
            return
        whole = window.pop("seconds")
        means = {key: total / whole for key, total in window.items()}
        self._since = {}
        for topic, text in self._findings(means, found):
            self._say(topic, text)

    def _findings(
        self, means: Mapping[str, float], now: Mapping[str, float]
    ) -> Iterator[tuple[str, str]]:
        data, busy = means["data"], means.get("gpu_busy", 1.0)
        if data > _WAITS:
            yield "data", f"{data:.0%} of the time goes into waiting for data: --prefetch-threads 4"
        elif busy < _IDLE:
            yield (
                "idle",
                (
                    f"the GPU computes {busy:.0%} of the time and waits for the program otherwise: larger "
                    "pieces (--micro-batch-size) or --compile on"
                ),
            )
        if means.get("gpu_hot", 0.0) > _WAITS:
            text = f"the GPU slows down from heat, {now.get('gpu_celsius', 0):.0f} degrees: cool it"
            yield "hot", f"{text}, or limit its power (nvidia-smi -pl)"
        elif self._clocked_down(means):
            text = f"the GPU runs at {now['gpu_mhz']:.0f} of {now['gpu_most_mhz']:.0f} MHz"
            yield "capped", f"{text}: its power is limited (nvidia-smi -q -d PERFORMANCE says why)"
        yield from self._crowd(means, now)

    def _clocked_down(self, means: Mapping[str, float]) -> bool:
        capped = means.get("gpu_capped", 0.0) > _WAITS
        slow = means.get("gpu_mhz", 1.0) < _SLOW * means.get("gpu_most_mhz", 0.0)
        return capped and slow

    def _crowd(
        self, means: Mapping[str, float], now: Mapping[str, float]
    ) -> Iterator[tuple[str, str]]:
        """Yield what other programs take: memory of the GPU, memory, cores."""
        others, before = now.get("gpu_other_bytes", 0.0), self._first.get("gpu_other_bytes", 0.0)
        if self._memory and others - before > _EATEN * self._memory:
            grown = (others - before) / 1e9
            yield (
                "gpu memory",
                f"other programs took {grown:.1f} GB of the GPU's memory: nvidia-smi",
            )
        free, begun = now.get("host_free_bytes"), self._first.get("host_free_bytes", 0.0)
        if free is not None and begun and free < max(_FULL * begun, 2e8):
            text = f"memory is nearly full, {free / 1e9:.2f} GB are left: close other programs"
            yield "memory", f"{text}, or take a smaller --micro-batch-size"
        rivals = means.get("other_cores", 0.0)
        if self._too_many(rivals) and "gpu_busy" not in means:
            text = f"other programs keep {rivals:.1f} of {self.cores} cores busy"
            yield "cores", f"{text}: steps take longer, numbers stay the same"

    def _say(self, topic: str, text: str) -> None:
        if topic not in self._said:
            self._said.add(topic)
            self._tell(text)


@contextmanager
def monitoring(
    meta: Mapping[str, Any], config: RunConfig, job: Job, world: World, record: Record
) -> Iterator[Monitor | None]:
    """Watch the machine of the run whose run.json is `meta`, unless that is not wanted.

    Operations are those of all ranks, and a share is that of what all their devices can. Bytes are not
    shared out so evenly (each rank has its optimiser), so of several ranks they are not told.
    """
    if not (config.track.monitor and world.leads):
        yield None
        return

    def tell(text: str) -> None:
        record.note(text, "warning")

    plan, flops = meta.get("plan", {}), sum(work(job, config.train.batch_size).values())
    one, ceiling = world.size == 1, plan.get("ceiling")
    memory = gpu(world.device).get("gpu_memory")
    with Monitor(
        sensors(world.device), tell, threads=meta["pinned"]["threads"], flops=flops or None,
        ceiling=ceiling and ceiling * world.size, moved=plan.get("moved") if one else None,
        bandwidth=plan.get("bandwidth"),
        memory=memory,
    ) as found:  # fmt: skip
        yield found
