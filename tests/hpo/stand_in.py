"""A small predictor without a past: a Gaussian process in the units of the space."""

import numpy as np

from metafast.hpo import Belief, Suggestion


class StandIn:
    """Has the methods of `Predictor`; remembers what it was asked."""

    def __init__(self, source="model"):
        self.source = source
        self.asked = []

    def belief(self, space, candidates, observed=(), *, features=None, metric, direction, reference=None, fraction=1.0):
        self.asked.append({"observed": list(observed), "metric": metric, "direction": direction, "features": features})
        sign = 1.0 if direction == "maximize" else -1.0
        scores = np.array([sign * o.score for o in observed if not o.failed] or [0.0])
        centre, scale = scores.mean(), scores.std() or 1.0
        values = np.array([-2.0 if o.failed else (sign * o.score - centre) / scale for o in observed])
        new = np.array([code(space, config) for config in candidates])
        mean, var = np.zeros(len(new)), np.ones(len(new))
        if len(values):
            old = np.array([[*code(space, o.config), 0.3 * o.fraction] for o in observed])
            new = np.column_stack([new, np.full(len(new), 0.3 * fraction)])
            cross = kernel(new, old)
            solved = np.linalg.solve(kernel(old, old) + 1e-3 * np.eye(len(old)), np.column_stack([values, cross.T]))
            mean, var = cross @ solved[:, 0], np.maximum(1 - (cross * solved[:, 1:].T).sum(1), 1e-6)
        std = scale * np.sqrt(var)
        mean = sign * (centre + scale * mean)
        return Belief(mean, std, mean - 1.645 * std, mean + 1.645 * std, sign * mean + std, np.full(len(mean), np.nan))

    def suggest(self, space, observed=(), *, candidates=None, seed=0, per_cost=True, fallback="gp", **keywords):
        candidates = candidates or space.candidates(np.random.default_rng(seed), 64)
        belief = self.belief(space, candidates, observed, **keywords)
        best = int(np.argmax(belief.merit))
        interval = (float(belief.low[best]), float(belief.high[best]))
        return Suggestion(candidates[best], float(belief.mean[best]), interval, np.nan, self.source, "by a stand-in")


def code(space, config):
    """A point; what is not active lies apart."""
    units = space.units(config)
    return [units.get(name, -1.0) for name in space.dimensions]


def kernel(one, other):
    return np.exp(-0.5 * ((one[:, None] - other[None]) ** 2).sum(-1) / 0.3**2)
