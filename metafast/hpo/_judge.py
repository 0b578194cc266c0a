"""Which runs in progress are hopeless."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.hpo._space import Space
from metafast.hpo._types import Config, Observation

if TYPE_CHECKING:
    from metafast.hpo._predictor import Predictor


@dataclass(frozen=True)
class Judge:
    """Stops a run whose chance to end best is small; never the one that promises most.

    Args:
        predictor: what is asked.
        space: what is searched.
        told: keyword arguments of `Predictor.belief`: features, metric, direction, reference.
        threshold: the chance below which a run is stopped; 0 stops none.
    """

    predictor: Predictor
    space: Space
    told: dict[str, Any]
    threshold: float

    @property
    def stops(self) -> bool:
        """Whether any run may be stopped."""
        return self.threshold > 0

    def hopeless(self, configs: Sequence[Config], observed: Sequence[Observation]) -> list[int]:
        """Numbers of the configurations that are hardly going to end best.

        Args:
            configs: in progress.
            observed: parts of their curves, and what other runs have come to.
        """
        keys = [self.space.key(config) for config in configs]
        seen = {self.space.key(one.config): one.config for one in observed}
        others = [config for key, config in seen.items() if key not in set(keys)]
        if len(seen) < 2:
            return []
        belief = self.predictor.belief(self.space, [*configs, *others], observed, **self.told)
        best = int(np.argmax(np.where([self.space.key(c) in seen for c in [*configs, *others]], belief.merit, -np.inf)))
        sign = 1.0 if self.told["direction"] == "maximize" else -1.0
        found = []
        for row, key in enumerate(keys):
            if row == best or key not in seen:
                continue
            gap = sign * (belief.mean[row] - belief.mean[best])
            chance = 0.5 * math.erfc(-gap / (math.sqrt(2.0) * max(float(belief.std[row]), 1e-12)))
            if chance < self.threshold:
                found.append(row)
        return found
