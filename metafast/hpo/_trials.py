"""Optuna's trials as observations: finished, pruned, failed and running ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metafast.hpo._guessed import with_conditions
from metafast.hpo._types import Config, Observation

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from metafast.hpo._space_optuna import Distributions

EARLIER = 2  # points of a curve before its last one that are told


@dataclass(frozen=True)
class Clock:
    """What part of a whole training a reported step is.

    Args:
        first: the number of the first step, 0 or 1.
        total: steps of a whole training; None: no finished trial has reported any, so that nothing is known.
    """

    first: int
    total: int | None

    @classmethod
    def of(cls, trials: Iterable[FrozenTrial], total: int | None = None) -> Clock:
        """The clock of a study, from `total` or the longest finished trial."""
        first, longest = 1, 0
        for trial in trials:
            if trial.intermediate_values:
                first = min(first, *trial.intermediate_values)
                if trial.state.name == "COMPLETE":
                    longest = max(longest, *trial.intermediate_values)
        first = max(first, 0)
        return cls(first, total or (longest - first + 1 if longest else None))

    def fraction(self, step: int) -> float | None:
        """In (0, 1]; None: not known."""
        if self.total is None:
            return None
        return min(max((step - self.first + 1) / self.total, 1e-3), 1.0)


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial broke none of its constraints."""
    return all(value <= 0 for value in trial.constraints.values())


def score(trial: FrozenTrial) -> float:
    """The value of a finished trial; NaN where it failed, broke a constraint, or is not finite."""
    if trial.state.name != "COMPLETE" or trial.value is None or not feasible(trial):
        return math.nan
    return trial.value if math.isfinite(trial.value) else math.nan


def observations(trial: FrozenTrial, config: Config, clock: Clock, *, curve: bool = False) -> list[Observation]:
    """What a trial tells.

    A finished one: its value, and points of its curve before if `curve`. A pruned or running one: its curve until
    now. One that failed: NaN, as far as it had come; a pruned one that reported nothing counts as failed.

    Args:
        trial: of a study with one objective.
        config: what it tried.
        clock: of the study.
        curve: whether the curve of a finished one is told.
    """
    state = trial.state.name
    seconds = trial.duration.total_seconds() if trial.duration is not None else None
    points = [
        (fraction, value if math.isfinite(value) else math.nan)
        for step, value in sorted(trial.intermediate_values.items())
        if (fraction := clock.fraction(step)) is not None
    ]
    if state == "COMPLETE":
        earlier = [point for point in points if point[0] < 1 and not math.isnan(point[1])] if curve else []
        return [*_thinned(config, earlier[:-1]), Observation(config, score(trial), 1.0, seconds)]
    if state == "FAIL":
        return [Observation(config, math.nan, points[-1][0] if points else 1.0, seconds)]
    if not points:
        return [Observation(config, math.nan, 1.0, seconds)] if state == "PRUNED" else []
    last = Observation(config, points[-1][1], points[-1][0], seconds)
    return [*_thinned(config, [point for point in points[:-1] if not math.isnan(point[1])]), last]


@dataclass(frozen=True)
class Told:
    """What the trials of a study say.

    Args:
        observed: of finished trials, and of running ones that have reported.
        pending: what running trials try, with the scores expected of them (None: not known).
        silent: how many other running trials have not said what they try.
        best: highest or lowest finite value of a finished trial; None: none yet.
    """

    observed: list[Observation]
    pending: list[tuple[Config, float | None]]
    silent: int
    best: float | None

    @property
    def tried(self) -> list[Config]:
        """All configurations that were or are being tried."""
        return [*(one.config for one in self.observed), *(config for config, _ in self.pending)]


def read_trials(
    trials: Sequence[FrozenTrial],
    both: Distributions,
    *,
    maximize: bool,
    total: int | None = None,
    without: int | None = None,
    planned: str = "",
) -> Told:
    """Reads the trials of a study with one objective.

    Args:
        trials: all of them.
        both: the searched distributions; trials that lie elsewhere are left out.
        maximize: whether higher is better.
        total: steps of a whole training; None: as many as the longest finished trial has.
        without: number of a trial that is not read.
        planned: system attribute under which running trials say what they are about to try.
    """
    clock = Clock.of(trials, total)
    unfinished = any(trial.intermediate_values and trial.state.name != "COMPLETE" for trial in trials)
    observed: list[Observation] = []
    pending: list[tuple[Config, float | None]] = []
    silent, scores = 0, []
    for trial in trials:
        if trial.number == without or trial.state.name == "WAITING":
            continue
        plan: dict[str, Any] = trial.system_attrs.get(planned) or {}
        config = both.config({**plan.get("params", {}), **trial.params})
        running = trial.state.name == "RUNNING"
        if config is None:
            silent += running and not trial.params
            continue
        observed += observations(trial, config, clock, curve=unfinished)
        if running:
            pending.append((config, plan.get("expected")))
        elif not math.isnan(value := score(trial)):
            scores.append(value)
    best = (max(scores) if maximize else min(scores)) if scores else None
    return Told(observed, pending, silent, best)


def _thinned(config: Config, points: list[tuple[float, float]]) -> list[Observation]:
    """Few points of a curve, evenly spread, its first one not among them where there are more."""
    if len(points) > EARLIER:
        points = [points[(index + 1) * len(points) // (EARLIER + 1)] for index in range(EARLIER)]
    return [Observation(config, value, fraction) for fraction, value in points]


def common(trials: Iterable[FrozenTrial]) -> Distributions | None:
    """What finished and pruned trials say about the space they come from; None: nothing.

    Distributions that differ between trials are left out, and so are hyperparameters that some trials do not have
    where no choice explains why.
    """
    from metafast.hpo._space_optuna import Distributions

    told = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED") and trial.params]
    found: dict[str, Any] = {}
    clash: set[str] = set()
    for trial in told:
        for name, distribution in trial.distributions.items():
            if found.setdefault(name, distribution) != distribution:
                clash.add(name)
    agreed = {name: distribution for name, distribution in found.items() if name not in clash}
    if not agreed:
        return None
    space = with_conditions(Distributions(agreed).space.dimensions, [trial.params for trial in told])
    return None if space is None else Distributions({name: agreed[name] for name in space.dimensions}, space)
