"""A pruner for Optuna that asks a predictor how a trial will end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner, MedianPruner
from optuna.trial import FrozenTrial

from metafast._checks import fraction, integer
from metafast.hpo._optuna_arguments import Arguments
from metafast.hpo._space import Space
from metafast.hpo._space_optuna import Distributions
from metafast.hpo._trials import Clock, observations, read_trials, score
from metafast.hpo._types import Config, Observation

if TYPE_CHECKING:
    from optuna.study import Study

    from metafast.hpo._predictor import Predictor

NORMAL_90 = 1.6448536269514722  # half the width of a normal distribution's 90 % interval, in standard deviations
MEDIAN_STARTUP = 5  # finished trials that Optuna's rule of the median needs

_log = logging.getLogger(__name__)


class PredictorPruner(BasePruner):
    """Prunes a trial that will hardly end above the best finished one.

    The predictor sees what the trial has reported and all other trials, and says how the trial is likely to end. Where
    the probability of a new best is below `threshold`, the trial is pruned. Nothing is pruned before some trial has
    finished, nor where it cannot be told how far a training has come: give `n_steps`, or let a whole training be the
    first; nor what leads the best one at the same step. A trial that reports NaN or infinity is pruned as soon as there
    is a finished one. On a task unlike all that the predictor knows, Optuna's `MedianPruner` decides, which is logged.

    Args:
        predictor: a `Predictor`, "default", or the path of one.
        task: features of data set and architecture by name; None: not known.
        n_steps: steps that a whole training reports; None: as many as the longest finished trial has reported.
        threshold: probability below which a trial is pruned. Default 0.05.
        n_startup_trials: finished trials before anything is pruned, at least 1.
        n_warmup_steps: trials are not pruned before this step.
        interval_steps: steps between two checks; the first is at `n_warmup_steps`.
        space: what is searched; None: what the trial itself has been given.
        metric: as in `PredictorSampler`.
        reference: likewise.

    Raises:
        TypeError, ValueError: an argument of the wrong type, or out of its range. In a study: a metric the wrong way
            round.

    Example:
        >>> pruner = PredictorPruner(n_steps=10)  # doctest: +SKIP
        >>> study = optuna.create_study(direction="maximize", pruner=pruner)  # doctest: +SKIP
    """

    def __init__(
        self,
        predictor: Predictor | str = "default",
        *,
        task: Mapping[str, float] | None = None,
        n_steps: int | None = None,
        threshold: float = 0.05,
        n_startup_trials: int = 1,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        space: Space | None = None,
        metric: str | None = None,
        reference: float | None = None,
    ) -> None:
        self._arguments = Arguments(predictor, task, space, metric, reference, n_steps)
        self._threshold = fraction("threshold", threshold)
        self._n_startup_trials = integer("n_startup_trials", n_startup_trials, minimum=1)
        self._n_warmup_steps = integer("n_warmup_steps", n_warmup_steps, minimum=0)
        self._interval_steps = integer("interval_steps", interval_steps, minimum=1)
        self._median = MedianPruner(max(n_startup_trials, MEDIAN_STARTUP), n_warmup_steps, interval_steps)
        self._known = (-1, True)
        self._said = False

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop a trial."""
        keywords = self._arguments.told(study)
        step = trial.last_step
        if step is None or not self._is_due(step, trial):
            return False
        trials = study.get_trials(deepcopy=False)
        finished = [other for other in trials if math.isfinite(score(other))]
        if len(finished) < self._n_startup_trials:
            return False
        if not math.isfinite(trial.intermediate_values[step]):
            return True
        clock = Clock.of(trials, self._arguments.n_steps)
        passed = clock.fraction(step)
        if passed is None or passed >= 1 or not trial.distributions:
            return False
        sign = 1.0 if keywords["direction"] == "maximize" else -1.0
        best = max(finished, key=lambda other: sign * score(other))
        if _leads(trial, best, step, sign):
            return False
        space = self._space(trial)
        both = Distributions(trial.distributions if space is None else space.to_optuna(), space)
        config = both.config(trial.params)
        if config is None:
            return False
        told = read_trials(trials, both, maximize=sign > 0, total=clock.total, without=trial.number)
        observed = [*told.observed, *observations(trial, config, clock)]
        if not self._knows(both.space, config, observed, len(finished), keywords):
            return self._median.prune(study, trial)
        belief = self._arguments.predictor.belief(both.space, [config], observed, **keywords)
        ahead = sign * (score(best) - float(belief.mean[0]))
        end = belief.high if sign > 0 else belief.low
        std = sign * float(end[0] - belief.mean[0]) / NORMAL_90  # of the side on which the best is
        chance = 0.5 * math.erfc(ahead / max(std, 1e-12) / math.sqrt(2))
        return chance < self._threshold

    def _knows(
        self, space: Space, config: Config, observed: list[Observation], finished: int, keywords: dict[str, Any]
    ) -> bool:
        """Whether the predictor would suggest something itself; asked anew whenever a trial has finished."""
        if self._known[0] != finished:
            suggestion = self._arguments.predictor.suggest(
                space, observed, candidates=[config], fallback="random", **keywords
            )
            self._known = finished, suggestion.source != "random"
            if not self._known[1] and not self._said:
                self._said = True
                _log.warning("PredictorPruner: %s: Optuna's MedianPruner decides", suggestion.reason)
        return self._known[1]

    def _is_due(self, step: int, trial: FrozenTrial) -> bool:
        """Whether a check is due, and has not been done for an earlier step of its interval."""
        since = step - self._n_warmup_steps
        if since < 0:
            return False
        begin = step - since % self._interval_steps
        return not any(begin <= other < step for other in trial.intermediate_values)

    def _space(self, trial: FrozenTrial) -> Space | None:
        space = self._arguments.space
        return space if space is not None and space.dimensions.keys() >= trial.distributions.keys() else None


def _leads(trial: FrozenTrial, best: FrozenTrial, step: int, sign: float) -> bool:
    """Whether a trial is at least where the best one was at this step, or the last one before."""
    before = [other for other in best.intermediate_values if other <= step]
    if not before:
        return False
    return sign * (trial.intermediate_values[step] - best.intermediate_values[max(before)]) >= 0
