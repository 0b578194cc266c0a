"""Settings of the model by leaving out one data set after the other: those that predict the rest of it best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from metafast.hpo._known import Family, Known
from metafast.hpo._surrogate import Query, Settings, Surrogate

TRIED: dict[str, tuple[Any, ...]] = {
    "alike": (0.0, 0.5, 0.9),
    "smooth": (0.01, 0.02, 0.1),
    "strength": (0.8, 1.2, 2.0),
    "new_length": (0.1, 0.14, 0.25),
    "noise": (0.01, 0.02, 0.05),
    "trust": (0.5, 1.0, 2.0),
}
CONTEXTS = (0, 2, 6)  # observations that are told
POINTS = 100  # that are predicted
MOST = 40  # tasks that are left out; of more, every second or third


def tuned(surrogate: Surrogate, progress: Callable[[str], None] | None = None, seed: int = 0) -> Settings:
    """The best settings, found one after the other.

    Args:
        surrogate: what is known, and settings to begin with.
        progress: called with a line for each that is settled.
        seed: of which configurations are told and asked for.
    """
    best = surrogate.settings
    if len({task.dataset for family in surrogate.families for task in family.tasks}) < 2:
        return best
    lowest = surprise(Surrogate(surrogate.families, best), seed)
    for name, values in TRIED.items():
        for value in values:
            if value == getattr(best, name):
                continue
            settings = replace(best, **{name: value})
            found = surprise(Surrogate(surrogate.families, settings), seed)
            if found < lowest:
                best, lowest = settings, found
        if progress is not None:
            progress(f"{name} = {getattr(best, name)}: {lowest:.4f} nats per configuration that was left out")
    return best


def surprise(surrogate: Surrogate, seed: int = 0) -> float:
    """Mean negative log density of configurations of tasks whose data sets are forgotten, in the tasks' own units."""
    pairs = [(family, task) for family in surrogate.families for task in family.tasks]
    pairs = pairs[:: math.ceil(len(pairs) / MOST)]
    total = []
    for number, (family, task) in enumerate(pairs):
        rest = surrogate.without({task.dataset})
        if not rest.families:
            continue
        rng = np.random.default_rng([seed, number])
        for count in CONTEXTS:
            rows = rng.permutation(len(family.codes))[: count + POINTS]
            mixture, _ = rest.believe(_query(family, task, rows, min(count, len(rows))))
            values = task.centre + task.spread * task.curves[rows, -1].astype(np.float64)
            density = mixture.log_density(values)[count:] + math.log(task.spread)
            total.append(-np.maximum(density, -20.0).mean() if len(density) else 0.0)
    return float(np.mean(total)) if total else math.inf


def _query(family: Family, task: Known, rows: np.ndarray, count: int) -> Query:
    values = task.centre + task.spread * task.curves[rows[:count], -1].astype(np.float64)
    reference = task.centre + task.spread * task.reference
    return Query(family.axes, family.codes[rows], np.ones(len(rows)), values, task.scores, reference, task.features)
