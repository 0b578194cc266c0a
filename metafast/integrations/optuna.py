"""A sampler and a pruner for Optuna that a predictor leads.

Example:
    >>> import optuna
    >>> from metafast.integrations.optuna import PredictorPruner, PredictorSampler
    >>> issubclass(PredictorSampler, optuna.samplers.BaseSampler)
    True
"""

from metafast.hpo._optuna_pruner import PredictorPruner
from metafast.hpo._optuna_sampler import PredictorSampler

__all__ = ["PredictorPruner", "PredictorSampler"]
