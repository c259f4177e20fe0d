"""A recipe whose process dies at a step of its own: whoever waits for the step may come too late."""

from __future__ import annotations

from pathlib import Path

__all__ = ["mortal"]

RECIPE = """
import os, signal
from dataclasses import replace
from pathlib import Path
from surefoot.recipes import find

charlm, marker = find("charlm"), Path({marker!r})

def build(config, world):
    job = charlm.build(config, world)
    learner, begun = job.learners["main"], []
    update = learner.update

    def update_or_die():
        begun.append(learner.step)
        if (begun[0], learner.step) == (0, 20) and marker.exists():
            marker.unlink()
            for pid in {victims}:
                os.kill(pid, signal.SIGKILL)
        return update()

    learner.update = update_or_die
    return job

recipe = replace(charlm, name="mortal", build=build)
"""


def mortal(folder: Path, *, parent: bool = False) -> tuple[Path, Path]:
    """Write the recipe, charlm but for its death; return its path, and that of its marker.

    While the marker is there, the first run that comes from its beginning to step 20 takes it away
    and kills its process, and before it the one that started it where `parent` says so.
    """
    recipe, marker = folder / "mortal.py", folder / "marker"
    victims = "(os.getppid(), os.getpid())" if parent else "(os.getpid(),)"
    recipe.write_text(RECIPE.format(marker=str(marker), victims=victims), encoding="utf-8")
    return recipe, marker
