"""Predictors that have not seen what is left out, made once in a process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metafast.experiments.hp_prediction._suites import Fold, split, tables

if TYPE_CHECKING:
    from metafast.hpo import Predictor

_made: dict[tuple[Any, ...], Predictor] = {}


def without(fold: Fold, path: Path | None, tune: bool = False, **settings: Any) -> Predictor:
    """A predictor that knows the other data sets of the suite.

    Args:
        fold: what it must not know.
        path: folder of the collected tasks.
        tune: whether the settings of the model are found on those data sets too.
        settings: of the model, that are others than usual.
    """
    key = (fold, path, tune, *settings.items())
    if key not in _made:
        _made[key] = _whole(fold.suite, path, settings).without(*fold.datasets)
        if tune:
            _, sources = split(fold, path)
            _made[key].fit([table.task for table in sources], tune=True)
    return _made[key]


def _whole(suite: str, path: Path | None, settings: Mapping[str, Any]) -> Predictor:
    """That knows all of the suite; others are made of it without learning anything again."""
    from metafast.hpo import Predictor

    key = (suite, path, *settings.items())
    if key not in _made:
        usual = Predictor().settings
        _made[key] = Predictor([table.task for table in tables(suite, path)], replace(usual, **settings))
    return _made[key]


def measured(fold: Fold, path: Path | None) -> dict[str, Any]:
    """Size of a predictor, and how long a belief about the candidates of a task takes it after five runs."""
    from metafast.hpo import Observation

    predictor = without(fold, path)
    task = next(table.task for table in tables(fold.suite, path) if table.task.name == fold.targets[0])
    some = range(0, len(task.configs), max(1, len(task.configs) // 5))[:5]
    observed = [Observation(task.configs[row], float(task.final[row])) for row in some]
    about: dict[str, Any] = {
        "features": dict(task.features),
        "metric": task.metric,
        "direction": task.direction,
        "reference": task.reference,
    }
    times = []
    for _ in range(12):
        began = time.perf_counter()
        predictor.belief(task.space, task.configs, observed, **about)
        times.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictor.safetensors"
        predictor.save(file)
        size = file.stat().st_size
    return {
        "milliseconds": 1000 * sorted(times)[len(times) // 2],
        "candidates": len(task.configs),
        "bytes": size,
        "numbers": getattr(predictor, "numel", None),
    }
