"""The settings of the best trial as a file that `surefoot train -c` takes."""

from __future__ import annotations

from surefoot import api
from surefoot.config.fields import flatten
from surefoot.config.files import heading, settings
from surefoot.sweep.plan import SEED
from surefoot.sweep.results import Results

__all__ = ["settings_of"]


def settings_of(made: Results) -> str:
    """Return YAML with every setting of the best trial that is not its preset's or a default.

    The seed is left out where the trial stands for several.
    """
    sweep, best = made.sweep, made.ranked[0]
    plan = sweep.plan
    wanted = plan.settle(best.trial.point, plan.seeds[0], sweep.path, f"sweep {sweep.name}")
    preset, base = wanted.preset, api.settle(plan.found, wanted.preset, (), {}).config
    mine, theirs = flatten(wanted.config), flatten(base)
    told = {p: v for p, v in mine.items() if v != theirs[p] or p in best.trial.point}
    if plan.repeated:
        told.pop(SEED, None)
    many = f" of {len(best.values)} seeds" if len(best.values) > 1 else ""
    lines = [
        f"# The best of sweep {sweep.name}: trial {best.trial.number + 1} of {plan.count}, "
        f"{plan.metric} {best.text()}{many}.",
        *heading(plan.found.name, preset, plan.found.location),
        *settings(told, {p: s for p, s in wanted.sources.items() if p in told}),
    ]
    return "\n".join(lines) + "\n"
