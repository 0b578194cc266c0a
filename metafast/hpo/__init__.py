"""Hyperparameters predicted from a few short runs, with what related tasks have taught."""

from metafast.hpo._types import Belief, MetaTask, Observation, Suggestion

__all__ = ["Belief", "MetaTask", "Observation", "Suggestion"]
