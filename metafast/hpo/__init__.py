"""Hyperparameters predicted from a few short runs, with what related tasks have taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metafast._dimensions import Choice, FloatRange, IntRange
from metafast.hpo._batched import TrainedBatch, batched_train
from metafast.hpo._conditions import Condition, when
from metafast.hpo._external import svm_tasks, taskset_tasks
from metafast.hpo._features import task_features
from metafast.hpo._features_model import architecture_features
from metafast.hpo._grid_table import load_tasks, pack_tasks
from metafast.hpo._predictor import Predictor
from metafast.hpo._records import task_of_runs
from metafast.hpo._space import Space
from metafast.hpo._studies import observations_of_study, task_of_study
from metafast.hpo._synthetic import synthetic_tasks
from metafast.hpo._tables import task_of_table
from metafast.hpo._trainings import BatchedTask
from metafast.hpo._tune import TuneResult
from metafast.hpo._types import Belief, MetaTask, Observation, Suggestion

if TYPE_CHECKING:
    from metafast.hpo._optuna_pruner import PredictorPruner as PredictorPruner
    from metafast.hpo._optuna_sampler import PredictorSampler as PredictorSampler
    from metafast.hpo._ray import PredictorSearcher as PredictorSearcher

__all__ = [
    "BatchedTask",
    "Belief",
    "Choice",
    "Condition",
    "FloatRange",
    "IntRange",
    "MetaTask",
    "Observation",
    "Predictor",
    "Space",
    "Suggestion",
    "TrainedBatch",
    "TuneResult",
    "architecture_features",
    "batched_train",
    "load_tasks",
    "observations_of_study",
    "pack_tasks",
    "svm_tasks",
    "synthetic_tasks",
    "task_features",
    "task_of_runs",
    "task_of_study",
    "task_of_table",
    "taskset_tasks",
    "when",
]

_LAZY = {
    "PredictorPruner": ("_optuna_pruner", "optuna", "Optuna: pip install 'metafast[hpo]'"),
    "PredictorSampler": ("_optuna_sampler", "optuna", "Optuna: pip install 'metafast[hpo]'"),
    "PredictorSearcher": ("_ray", "ray", "Ray Tune: pip install 'ray[tune]'"),
}


def __getattr__(name: str) -> Any:
    """What builds on other libraries is imported where it is used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, library, needs = _LAZY[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != library:
            raise
        raise ImportError(f"{name} needs {needs}") from error
