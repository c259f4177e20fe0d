"""Whether a recipe reports what a sweep is to be judged by, found out before anything is trained."""

from __future__ import annotations

from surefoot.config.fields import changed
from surefoot.config.suggest import nearest, one_of
from surefoot.errors import ConfigError, SurefootError
from surefoot.sweep.plan import Plan

__all__ = ["refuse"]


def refuse(plan: Plan) -> None:
    """Evaluate the untrained model of the first point once, on the processor.

    Raises ConfigError for a metric or a learner that is not there. Where the model cannot be built
    here, nothing is said: the first run will tell.
    """
    import tempfile
    from pathlib import Path

    from surefoot.engine import World
    from surefoot.engine.look import look_at

    with tempfile.TemporaryDirectory() as scratch:
        config = plan.settle(plan.point(0), plan.seeds[0], Path(scratch), "sweep").config
    config = changed(config, {"machine.device": "cpu"})
    try:
        import torch

        job = plan.found.build(config, World(torch.device("cpu")))
    except SurefootError:
        return
    names = list(job.learners)
    if plan.learner not in names:
        one_learner = plan.learner == "main"
        what = (
            f"{plan.found.name} has {len(names)} learners"
            if one_learner
            else f"there is no learner {plan.learner}"
        )
        shown = one_of([f"--metric {name}/{plan.metric}" for name in names])
        raise ConfigError(what, fix=f"say which is judged: {shown}")
    found: dict[str, float] = {}
    for evaluation in job.evals.values():
        found |= look_at(job.learners[plan.learner], 0, evaluation)
    if plan.metric not in found:
        near = nearest(plan.metric, found)
        fix = f"did you mean {near}?" if near else f"it reports {one_of(sorted(found), 'and')}"
        raise ConfigError(f"{plan.found.name} reports no {plan.metric}", fix=fix)
