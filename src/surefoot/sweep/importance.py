"""Which settings matter, by Optuna. Importing this raises ImportError where it is not installed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from surefoot.sweep.space import Dimension, Point

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.study import StudyDirection

__all__ = ["shares"]


def shares(
    space: Sequence[Dimension], points: Sequence[tuple[Point, float]], goal: str
) -> Mapping[str, float]:
    """Return the importance of each setting, by path, from points and their values."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = StudyDirection.MINIMIZE if goal == "min" else StudyDirection.MAXIMIZE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction=direction)
        kinds = {dimension.path: _kind(dimension) for dimension in space}
        for point, value in points:
            params = {path: point[path] for path in kinds}
            trial = optuna.trial.create_trial(params=params, distributions=kinds, value=value)
            study.add_trial(trial)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _kind(dimension: Dimension) -> BaseDistribution:
    numbers = [
        v for v in dimension.values if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    if dimension.values and len(numbers) < len(dimension.values):
        return CategoricalDistribution(dimension.values)
    low, high = (min(numbers), max(numbers)) if numbers else (dimension.low, dimension.high)
    log = dimension.log or (low > 0 and high / low > 10)
    if dimension.whole or (numbers and all(isinstance(v, int) for v in numbers)):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
