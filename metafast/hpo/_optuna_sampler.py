"""A sampler for Optuna that asks a predictor."""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from metafast._checks import integer
from metafast._dimensions import Choice, Dimension
from metafast.hpo._asking import ask_predictor
from metafast.hpo._optuna_arguments import Arguments
from metafast.hpo._space import Space
from metafast.hpo._space_optuna import Distributions
from metafast.hpo._trials import common, read_trials
from metafast.hpo._types import Suggestion

if TYPE_CHECKING:
    from optuna.study import Study

    from metafast.hpo._predictor import Predictor

PLAN = "metafast:plan"  # system attribute: what a trial is about to try, and why
FALLBACKS = ("gp", "tpe")
MOST_SILENT = 8  # running trials that have not said what they try and are thought for
SILENT_SECONDS = 60.0  # after which such a trial counts as dead
LONGEST_ATTRIBUTE = 2045  # that Optuna's RDB storage holds

_log = logging.getLogger(__name__)


class PredictorSampler(BaseSampler):
    """Trials that a `Predictor` suggests.

    Finished trials, the curves of pruned and of running ones, and failed ones are what it goes by; a trial that breaks
    a constraint (`trial.set_constraint`) counts as failed. What other workers are trying is not suggested twice, and
    a finite space is searched without repetition until all of it has been tried. A task unlike all that the predictor
    knows, in its view, goes to Optuna's GP or TPE, and so do several objectives to its TPE; either is logged once, and
    `trial.system_attrs["metafast:plan"]` says where a trial came from.

    Best give `space`. Without it the sampler learns what is searched from the trials: in the first one it chooses value
    after value as they are asked for, and conditions are guessed from which trials have what. Hyperparameters that are
    not in the space, or whose ranges change, are left to TPE.

    Args:
        predictor: a `Predictor`, "default", or the path of one.
        task: features of data set and architecture by name, from `task_features` and `architecture_features`; None:
            not known.
        space: what is searched; None: what the trials of the study have in common.
        metric: name of the objective; None: the study's metric name, or "accuracy" if it is maximized, else "loss".
        reference: the score of a predictor that has learned nothing, such as the share of the largest class.
        n_steps: steps that a whole training reports; None: as many as the longest finished trial has reported.
        n_startup_trials: trials that are random before the predictor is asked. Default 0.
        fallback: "gp" or "tpe": which of Optuna's samplers takes over where the predictor knows nothing; always TPE
            once trials have been pruned, which Optuna's GP leaves out of account.
        seed: of everything random; None: from the system.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown fallback. In a study: a metric the wrong way round, or a study with another space.

    Example:
        >>> from metafast.hpo import Space
        >>> space = Space(lr=[1e-3, 1e-2, 1e-1], layers=[2, 3, 4])
        >>> sampler = PredictorSampler(space=space, seed=0)  # doctest: +SKIP
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)  # doctest: +SKIP
        >>> study.optimize(lambda trial: train(**space.ask(trial)), n_trials=5)  # doctest: +SKIP
    """

    def __init__(
        self,
        predictor: Predictor | str = "default",
        *,
        task: Mapping[str, float] | None = None,
        space: Space | None = None,
        metric: str | None = None,
        reference: float | None = None,
        n_steps: int | None = None,
        n_startup_trials: int = 0,
        fallback: str = "gp",
        seed: int | None = None,
    ) -> None:
        self._arguments = Arguments(predictor, task, space, metric, reference, n_steps)
        self._n_startup_trials = integer("n_startup_trials", n_startup_trials, minimum=0)
        if fallback not in FALLBACKS:
            raise ValueError(f"fallback must be one of {FALLBACKS}, got {fallback!r}")
        seed = None if seed is None else integer("seed", seed, minimum=0)
        self._rng = np.random.default_rng(seed)
        self._tpe = optuna.samplers.TPESampler(seed=seed)
        self._fallback: BaseSampler = self._tpe
        if fallback == "gp":
            self._fallback = optuna.samplers.GPSampler(seed=seed, n_startup_trials=4)
        self._intersection = optuna.search_space.IntersectionSearchSpace(include_pruned=True)
        self._said: set[str] = set()

    def reseed_rng(self) -> None:
        """New random numbers for each worker."""
        self._rng = np.random.default_rng()
        self._tpe.reseed_rng()
        self._fallback.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The given space, or what the trials of the study have in common."""
        if study._is_multi_objective():
            self._say("several objectives: Optuna's TPE decides, as the predictor knows one objective only")
            return self._tpe.infer_relative_search_space(study, trial)
        self._arguments.told(study)
        if self._arguments.space is None:
            found = common(study.get_trials(deepcopy=False))
            return {} if found is None else {n: d for n, d in found.distributions.items() if not d.single()}
        distributions = self._arguments.space.to_optuna()
        self._check_study(study, distributions)
        return distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """All values of a trial together."""
        if study._is_multi_objective():
            return self._tpe.sample_relative(study, trial, search_space)
        if not search_space:
            return {}
        trials = study.get_trials(deepcopy=False)
        if sum(other.state.is_finished() for other in trials) < self._n_startup_trials:
            return {}
        both = Distributions(search_space, self._space(search_space, trials))
        keywords = self._arguments.told(study)
        told = read_trials(
            trials,
            both,
            maximize=keywords["direction"] == "maximize",
            total=self._arguments.n_steps,
            without=trial.number,
            planned=PLAN,
        )
        suggestion = ask_predictor(
            self._arguments.predictor,
            both.space,
            told.observed,
            told.pending,
            self._rng,
            best=told.best,
            silent=_silent(trials, trial) if told.silent else 0,
            keywords={**keywords, "fallback": "random"},
        )
        params, source = both.params(suggestion.config), suggestion.source
        if source in (*FALLBACKS, "random"):
            fallback = self._fallback_for(trials)
            self._say(f"{suggestion.reason}: Optuna's {type(fallback).__name__} decides")
            theirs = self._ask_fallback(fallback, study, trial, search_space)
            drawn = {name: dim.decode(self._rng.random()) for name, dim in both.space.dimensions.items()}
            config = both.config({**both.params(drawn), **params, **theirs})
            tried = {both.space.key(other) for other in told.tried}
            if theirs and config is not None and (both.space.size is None or both.space.key(config) not in tried):
                params, source = both.params(config), "tpe" if fallback is self._tpe else "gp"
        self._plan(study, trial, params, replace(suggestion, source=source))
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value that is not part of the common space, by TPE; in the first trial by the predictor, one by one."""
        first = trial.number == 0 and self._n_startup_trials == 0 and self._arguments.space is None
        if first and not study._is_multi_objective() and not param_distribution.single():
            value = self._first_value(study, trial, param_name, param_distribution)
            if value is not None:
                return value
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing is kept between trials: all is read from the storage."""
        self._tpe.after_trial(study, trial, state, values)

    def _first_value(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """What the predictor would try first, given the values that the trial has; None: it knows nothing."""
        one = Distributions({name: distribution})
        chosen = Distributions(trial.distributions).config(trial.params) if trial.params else {}
        fixed: dict[str, Dimension] = {other: Choice([value]) for other, value in (chosen or {}).items()}
        suggestion = self._arguments.predictor.suggest(
            Space({**fixed, name: one.space.dimensions[name]}),
            (),
            seed=int(self._rng.integers(2**31)),
            fallback="random",
            **self._arguments.told(study),
        )
        if suggestion.source in (*FALLBACKS, "random"):
            return None
        return one.params({name: suggestion.config[name]})[name]

    def _fallback_for(self, trials: Sequence[FrozenTrial]) -> BaseSampler:
        """TPE once trials have been pruned: Optuna's GP would not know of them, and suggest them again and again."""
        return self._tpe if any(other.state == TrialState.PRUNED for other in trials) else self._fallback

    def _ask_fallback(
        self, fallback: BaseSampler, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What it makes of the hyperparameters that all trials have."""
        shared = self._intersection.calculate(study)
        several = {name: d for name, d in search_space.items() if not d.single() and shared.get(name) == d}
        return fallback.sample_relative(study, trial, several) if several else {}

    def _space(self, search_space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]) -> Space | None:
        """The given or guessed space, as far as it is asked for: a sampler around this one may fix some of it."""
        space = self._arguments.space
        if space is None:
            found = common(trials)
            space = None if found is None else found.space
        if space is None or not set(search_space) <= set(space.dimensions):
            return None
        conditions = [c for c in space.conditions if {c.parent, *c.children} <= set(search_space)]
        return Space({name: space.dimensions[name] for name in search_space}, conditions=conditions)

    def _check_study(self, study: Study, distributions: Mapping[str, BaseDistribution]) -> None:
        """Raises where trials have been suggested from another space."""
        for trial in study.get_trials(deepcopy=False):
            for name, distribution in trial.distributions.items():
                ours = distributions.get(name, distribution)
                if type(ours) is not type(distribution) or getattr(ours, "choices", 0) != getattr(
                    distribution, "choices", 0
                ):
                    raise ValueError(
                        f"space[{name!r}] is {ours}, but trial {trial.number} of study {study.study_name!r} has "
                        f"{distribution}; use space.ask(trial) in the objective, or Space.from_optuna"
                    )
            if trial.distributions and not trial.distributions.keys() & distributions.keys():
                raise ValueError(
                    f"study {study.study_name!r} searches {sorted(trial.distributions)}, none of them in the space: "
                    f"{sorted(distributions)}"
                )

    def _plan(self, study: Study, trial: FrozenTrial, params: dict[str, Any], suggestion: Suggestion) -> None:
        """Says to other workers what is about to be tried."""
        expected = suggestion.expected if math.isfinite(suggestion.expected) else None
        plan = {"params": params, "expected": expected, "source": suggestion.source, "reason": suggestion.reason}
        for less in ("reason", "params"):
            if len(json.dumps(plan, default=str)) > LONGEST_ATTRIBUTE:
                del plan[less]
        study._storage.set_trial_system_attr(trial._trial_id, PLAN, plan)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s: %s", type(self).__name__, text)


def _silent(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """How many trials that began shortly before this one have not said what they try."""
    now = datetime.datetime.now()
    found = 0
    for other in trials:
        if other.state == TrialState.RUNNING and other.number < trial.number and not other.params:
            young = other.datetime_start is None or (now - other.datetime_start).total_seconds() < SILENT_SECONDS
            found += young and PLAN not in other.system_attrs
    return min(found, MOST_SILENT)
