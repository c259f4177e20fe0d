"""Which settings matter, by Optuna's PED-ANOVA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surefoot.sweep.library import load, quiet
from surefoot.sweep.space import Dimension, Point

__all__ = ["shares"]


def shares(
    space: Sequence[Dimension], points: Sequence[tuple[Point, float]], goal: str
) -> Mapping[str, float]:
    """Return the importance of each setting, by path, from points and their values.

    Raises ImportError where Optuna is not installed.
    """
    optuna = load()
    direction = "minimize" if goal == "min" else "maximize"
    with quiet():
        study = optuna.create_study(direction=direction)
        kinds = {dimension.path: _kind(dimension) for dimension in space}
        for point, value in points:
            params = {path: point[path] for path in kinds}
            trial = optuna.trial.create_trial(params=params, distributions=kinds, value=value)
            study.add_trial(trial)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    return found


def _kind(dimension: Dimension) -> Any:
    kinds = load().distributions
    numbers = [
        v for v in dimension.values if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    if dimension.values and len(numbers) < len(dimension.values):
        return kinds.CategoricalDistribution(dimension.values)
    low, high = (min(numbers), max(numbers)) if numbers else (dimension.low, dimension.high)
    log = dimension.log or (low > 0 and high / low > 10)
    if dimension.whole or (numbers and all(isinstance(v, int) for v in numbers)):
        return kinds.IntDistribution(int(low), int(high), log=log)
    return kinds.FloatDistribution(low, high, log=log)
