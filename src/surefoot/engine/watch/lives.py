"""The learners of a run whose first steps are watched; see `life`. The numbers do not depend on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from surefoot.config.schema import RunConfig
from surefoot.data.batch import Data
from surefoot.engine.job import Job
from surefoot.engine.loop import Report
from surefoot.engine.state import TrainState
from surefoot.engine.watch.life import EXAMPLES, LATER, Life
from surefoot.engine.world import World
from surefoot.seeds import derive
from surefoot.track.record import Record

__all__ = ["Lives"]


class Lives:
    """Watches the young learners: on one process, and where it has whole weights."""

    def __init__(
        self, job: Job, config: RunConfig, world: World, state: TrainState, record: Record
    ) -> None:
        self.job, self.config, self.world, self.state = job, config, world, state
        self.record = record
        split = any(x.split for x in state.learners.values())
        wanted = config.track.life_check and world.leads and not split
        self._young = dict(self._watched()) if wanted else {}

    def _watched(self) -> Iterator[tuple[str, Life]]:
        """Yield the learners that are young, with those who look whether they live."""
        young = {n: x for n, x in self.state.learners.items() if x.updates < LATER}
        seed, size = self.config.train.seed, self.config.train.batch_size
        for name, learner in young.items():
            count = min(EXAMPLES, size, learner.micro or size)
            batch = Data(self.job.source, seed, size).batch(0, 0, count)
            life = Life(learner, self.world.to(batch), derive(seed, "life"))
            if self._try(name, life.watch) is not None:
                yield name, life

    def look(self, report: Report) -> None:
        """Say what is found to be dead."""
        for name in [n for n in report.readings if n in self._young]:
            found = self._try(name, self._young[name].findings)
            for text in found or ():
                self.record.note(f"{self._prefix(name)}step {report.step}: {text}", "warning")
            if found is None or self._young[name].done:
                del self._young[name]

    def _try(self, name: str, look: Callable[[], list[str]]) -> list[str] | None:
        try:
            return look()
        except Exception as error:  # a loss that only works in training, for example
            why = f"{type(error).__name__}: {error}"
            text = f"{self._prefix(name)}whether it lives is not known: {why}"
            self.record.note(text, "warning")
            return None

    def _prefix(self, learner: str) -> str:
        return "" if len(self.state.learners) == 1 else f"{learner}: "
