"""Asking a predictor for the next configuration while others are being tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metafast.hpo._space import Space
from metafast.hpo._types import Config, Observation, Suggestion

MOST_LISTED = 2048  # spaces up to this size are given to the predictor as a list, without what has been tried


def ask_predictor(
    predictor: Any,
    space: Space,
    observed: Sequence[Observation],
    pending: Sequence[tuple[Config, float | None]],
    rng: np.random.Generator,
    *,
    best: float | None,
    silent: int = 0,
    keywords: Mapping[str, Any],
) -> Suggestion:
    """The next configuration, as if all that is being tried had come out as expected.

    Args:
        predictor: what is asked.
        space: what is searched.
        observed: of finished and running ones.
        pending: what is being tried, and the scores expected of it; None: the best one so far is expected.
        rng: of the predictor's seeds.
        best: score so far; None: none.
        silent: how many others are being tried that nobody has heard of: they get the suggestions before this one.
        keywords: for `suggest`.
    """
    told = list(observed)
    taken = [observation.config for observation in observed]
    for config, expected in pending:
        taken.append(config)
        lie = best if expected is None else expected
        if lie is not None and math.isfinite(lie):
            told.append(Observation(config, lie))
    size = space.size
    listed = space.grid(size) if size is not None and size <= MOST_LISTED else None
    while True:
        candidates = None
        if listed is not None and taken:
            keys = {space.key(config) for config in taken}
            candidates = [config for config in listed if space.key(config) not in keys] or listed
        seed = int(rng.integers(2**31))
        suggestion: Suggestion = predictor.suggest(space, told, candidates=candidates, seed=seed, **keywords)
        if silent == 0:
            return suggestion
        silent -= 1
        taken.append(suggestion.config)
        if math.isfinite(suggestion.expected):
            told.append(Observation(suggestion.config, suggestion.expected))
