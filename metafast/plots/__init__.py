"""Plots of runs: loss, learning rates, rates of layers, how far a result depends on the starting rate,
meta-learning, adaptation, tuning, and how well hyperparameters are predicted.

Every function returns a matplotlib `Figure` that belongs to nobody else (no pyplot state); `save` writes PNG and SVG.
Needs matplotlib: `pip install 'metafast[plots]'`.
"""

from metafast.plots._adapt import accuracy_bars, accuracy_by_time
from metafast.plots._figures import accuracy_by_rate, learning_rates, loss_curves
from metafast.plots._heat import rate_heatmap
from metafast.plots._hpo import RegretCurve, calibration_curves, predicted_and_true, regret_curves, share_bars
from metafast.plots._maml import adaptation_curves, meta_learning_curves
from metafast.plots._schedule import meta_training_curve
from metafast.plots._style import save, style
from metafast.plots._tune import CostPanel, hyperparameter_trajectories, metric_by_cost, population_schedules

__all__ = [
    "CostPanel",
    "RegretCurve",
    "accuracy_bars",
    "accuracy_by_rate",
    "accuracy_by_time",
    "adaptation_curves",
    "calibration_curves",
    "hyperparameter_trajectories",
    "learning_rates",
    "loss_curves",
    "meta_learning_curves",
    "meta_training_curve",
    "metric_by_cost",
    "population_schedules",
    "predicted_and_true",
    "rate_heatmap",
    "regret_curves",
    "save",
    "share_bars",
    "style",
]
