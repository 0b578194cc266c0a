"""Hyperparameters predicted from a few short runs, with what related tasks have taught."""

from metafast._dimensions import Choice, FloatRange, IntRange
from metafast.hpo._conditions import Condition, when
from metafast.hpo._features import task_features
from metafast.hpo._features_model import architecture_features
from metafast.hpo._space import Space
from metafast.hpo._types import Belief, MetaTask, Observation, Suggestion

__all__ = [
    "Belief",
    "Choice",
    "Condition",
    "FloatRange",
    "IntRange",
    "MetaTask",
    "Observation",
    "Space",
    "Suggestion",
    "architecture_features",
    "task_features",
    "when",
]
