"""Learning rates that a meta-learner sets while a network trains.

`LRController` attaches to any optimizer; `meta_train` makes one, `LRController.adapt` fits it to a task by a few short
runs. `Hypergradient` and `MLRSNet` are other rules behind the same `attach`.
"""

from metafast.schedule._controller import LRController
from metafast.schedule._meta_train import PRESETS, Settings, meta_train
from metafast.schedule._rule import RateRule
from metafast.schedule._rules import Hypergradient, MLRSNet
from metafast.schedule._suite import training_suite, validation_suite
from metafast.schedule._tasks import Task
from metafast.schedule._watchdog import Watchdog

__all__ = [
    "PRESETS",
    "Hypergradient",
    "LRController",
    "MLRSNet",
    "RateRule",
    "Settings",
    "Task",
    "Watchdog",
    "meta_train",
    "training_suite",
    "validation_suite",
]
