"""Which candidate to try next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metafast._dimensions import Choice
from metafast.hpo._posterior import Mixture
from metafast.hpo._space import Space
from metafast.hpo._types import Config

COST_POWER = 0.5  # of the cost that improvement is divided by: cheap runs are preferred, not all that counts
_SMALL = 0.08  # of a range: how far neighbours of a good candidate lie


def worth(beliefs: Mixture, best: float, log_seconds: np.ndarray | None) -> np.ndarray:
    """Expected improvement over `best`, for its cost where that is known. `[M]`.

    Where nothing can be improved as far as numbers show, the mean decides.
    """
    gain = beliefs.improvement(best)
    if not (gain > 1e-12 * max(1.0, abs(best))).any():
        mean = beliefs.mean
        gain = np.exp((mean - mean.max()) / max(float(beliefs.std.mean()), 1e-9))
    if log_seconds is not None:
        gain = gain * np.exp(-COST_POWER * (log_seconds - log_seconds.mean()))
    return gain


def neighbours(space: Space, configs: Sequence[Config], rng: np.random.Generator, count: int) -> list[Config]:
    """Configurations near some others: each differs in its numbers a little, in those that are no parents."""
    parents = {condition.parent for condition in space.conditions}
    found = []
    for number in range(count):
        config = dict(configs[number % len(configs)])
        for name, value in config.items():
            dimension, scale = space.dimensions[name], space.scales[name]
            if name in parents or not scale.numeric or isinstance(dimension, Choice):
                continue
            place = dimension.encode(value) + _SMALL * rng.standard_normal()
            config[name] = dimension.decode(float(np.clip(place, 0.0, 1.0)))
        found.append(config)
    return found
