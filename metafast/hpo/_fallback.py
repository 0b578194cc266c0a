"""What decides where nothing is known: Optuna's samplers on the same observations, or chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from metafast.hpo._encode import axes_of, distances, encode
from metafast.hpo._space import Space
from metafast.hpo._types import Config, Observation

FALLBACKS = ("gp", "tpe", "random")
_STARTUP = 4  # random runs before Optuna's models begin


def fall_back(
    name: str, space: Space, candidates: Sequence[Config], observed: Sequence[Observation], direction: str, seed: int
) -> tuple[int, str]:
    """The number of a candidate, and what chose it: `name`, or "random" where Optuna is missing or cannot.

    Args:
        name: "gp", "tpe" or "random".
        space: what is searched.
        candidates: not yet tried.
        observed: what is known; only ends of trainings count.
        direction: of the metric.
        seed: of the choice.
    """
    if name != "random":
        try:
            wanted = _asked(name, space, observed, direction, seed)
        except ImportError:
            wanted = None
        if wanted is not None:
            axes = axes_of(space)
            gaps = distances(list(axes.values()), encode(axes, [wanted]), encode(axes, candidates))[0]
            return int(gaps.argmin()), name
    return int(np.random.default_rng([seed, len(observed)]).integers(len(candidates))), "random"


def _asked(name: str, space: Space, observed: Sequence[Observation], direction: str, seed: int) -> Config | None:
    import optuna

    distributions = space.to_optuna()
    finished = [o for o in observed if o.fraction == 1.0 and not o.failed]
    if len(finished) < _STARTUP:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental
        sampler = (
            optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP, deterministic_objective=True)
            if name == "gp"
            else optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=not space.conditions)
        )
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction=direction, sampler=sampler)  # type: ignore[arg-type]
            for one in finished:
                if math.isfinite(one.score):
                    used = {key: distributions[key] for key in one.config if key in distributions}
                    params = {key: one.config[key] for key in used}
                    study.add_trial(optuna.trial.create_trial(params=params, distributions=used, value=one.score))
            return space.ask(study.ask())
        finally:
            optuna.logging.set_verbosity(level)
