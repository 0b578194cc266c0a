"""A pruner for Optuna that asks a predictor how a trial will end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

from metafast._checks import fraction, integer
from metafast.hpo._optuna_arguments import Arguments
from metafast.hpo._space import Space
from metafast.hpo._space_optuna import Distributions
from metafast.hpo._trials import Clock, observations, read_trials

if TYPE_CHECKING:
    from optuna.study import Study

    from metafast.hpo._predictor import Predictor

NORMAL_90 = 1.6448536269514722  # half the width of a normal distribution's 90 % interval, in standard deviations


class PredictorPruner(BasePruner):
    """Prunes a trial that will hardly end above the best finished one.

    The predictor sees what the trial has reported and all other trials, and says how the trial is likely to end. Where
    the probability of a new best is below `threshold`, the trial is pruned. Nothing is pruned before some trial has
    finished, nor where it cannot be told how far a training has come: give `n_steps`, or let a whole training be the
    first. A trial that reports NaN or infinity is pruned as soon as there is a finished one.

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

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop a trial."""
        keywords = self._arguments.told(study)
        step = trial.last_step
        if step is None or not self._is_due(step, trial):
            return False
        trials = study.get_trials(deepcopy=False)
        finished = [other for other in trials if other.state.name == "COMPLETE" and other.value is not None]
        if sum(math.isfinite(other.value) for other in finished if other.value is not None) < self._n_startup_trials:
            return False
        if not math.isfinite(trial.intermediate_values[step]):
            return True
        clock = Clock.of(trials, self._arguments.n_steps)
        passed = clock.fraction(step)
        if passed is None or passed >= 1 or not trial.distributions:
            return False
        space = self._space(trial)
        both = Distributions(trial.distributions if space is None else space.to_optuna(), space)
        config = both.config(trial.params)
        if config is None:
            return False
        maximize = keywords["direction"] == "maximize"
        told = read_trials(trials, both, maximize=maximize, total=clock.total, without=trial.number)
        if told.best is None:
            return False
        observed = [*told.observed, *observations(trial, config, clock)]
        belief = self._arguments.predictor.belief(both.space, [config], observed, **keywords)
        sign = 1.0 if maximize else -1.0
        ahead = sign * (told.best - float(belief.mean[0]))
        end = belief.high if maximize else belief.low
        std = sign * float(end[0] - belief.mean[0]) / NORMAL_90  # of the side on which the best is
        chance = 0.5 * math.erfc(ahead / max(std, 1e-12) / math.sqrt(2))
        return chance < self._threshold

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
