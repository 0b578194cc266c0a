"""Hyperparameters tuned while training, by hypergradients of a validation loss.

`OnlineTuner` moves options of the optimizer, and any tensor that the loss depends on, during one training run.
`METHODS` lists the ways to the hypergradient by name. `Snapshots` saves a training and rolls it back;
`metafast.tune.regularizers` has regularizers to tune, `metafast.tune.population` searches for what has no gradient.
"""

from metafast.tune._forward import Forward
from metafast.tune._holdout import holdout
from metafast.tune._implicit import Implicit, OneStep
from metafast.tune._methods import Method
from metafast.tune._record import Tuned
from metafast.tune._reverse import Reverse
from metafast.tune._sama import SAMA
from metafast.tune._snapshots import RollBack, Snapshots
from metafast.tune._tune import Tune
from metafast.tune._tuner import OnlineTuner

METHODS: dict[str, type[Method]] = {
    "forward": Forward,
    "reverse": Reverse,
    "implicit": Implicit,
    "one_step": OneStep,
    "sama": SAMA,
}

__all__ = [
    "METHODS",
    "SAMA",
    "Forward",
    "Implicit",
    "Method",
    "OneStep",
    "OnlineTuner",
    "Reverse",
    "RollBack",
    "Snapshots",
    "Tune",
    "Tuned",
    "holdout",
]
