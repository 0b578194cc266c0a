"""Population-based bandits: weak members take over strong ones, with values that a Gaussian process chooses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metafast._checks import integer
from metafast.tune.population._bandit import GaussianProcess, standardized, upper_confidence_bound
from metafast.tune.population._member import Leg
from metafast.tune.population._search import Search, leg_seed
from metafast.tune.population._space import Config

EXPLORE = ("bandit", "perturb")
CANDIDATES = 1000
ROWS = 100  # of the most recent legs that the Gaussian process sees
FAILED = -2.0  # standard deviations below the mean: what a failed leg counts as


class PB2(Search):
    r"""Population-based bandits: a population trains side by side, and its hyperparameters follow a schedule.

    Every `interval` steps, all members are compared. Each of the lower `quantile` takes over weights, optimizer and
    whatever else was saved of one of the upper `quantile` (exploit), and goes on with new values (explore): those with
    the largest upper confidence bound on the improvement until the next comparison, by a Gaussian process over time,
    values and the place to start from. So a batch size grows or shrinks while the training goes on, and an
    `OnlineTuner` inside the training function tunes what has a gradient.

    A member that fails counts as the weakest and takes over another. Decisions depend on the seed and the values alone,
    not on the order in which members end: results are the same with any number of workers.

    Args:
        space: names to lists of choices, `Choice`, `IntRange` or `FloatRange`. What cannot change in the middle of a
            training is `fixed=True`: it is drawn at the start and taken over with the weights.
        size: members, at least 2. Default 4.
        interval: steps between two comparisons.
        quantile: share of the members that take over others, at most 0.5; at least one of them does. Default 0.25.
        explore: "bandit" (default), or "perturb", which is population-based training: a value is drawn anew with
            probability `resample`, or else multiplied by 0.8 or 1.2; an ordered choice moves to a neighbour.
        kappa: standard deviations in the upper confidence bound. Default 2.
        resample: for "perturb". Default 0.25.
        mode: "min" if small values are good (a loss, default), "max" for an accuracy.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> import tempfile, torch
        >>> def train(member):
        ...     weight = torch.nn.Linear(1, 1, bias=False)
        ...     member.restore(weight)
        ...     with torch.no_grad():
        ...         for step in member.steps:
        ...             weight.weight += member.config["speed"]
        ...     member.report(member.stop, weight.weight)
        ...     member.save(weight)
        >>> search = PB2({"speed": [1, 2, 3, 4]}, size=4, interval=5, mode="max")
        >>> result = search.run(train, steps=20, output=tempfile.mkdtemp() + "/pb2", progress=False)
        >>> len(result.lineage()), result.best.step
        (4, 20)

    Differences from the paper: improvements are divided by the root mean square of their round before all of them are
    standardized, because a training improves by less and less; unordered choices are part of the same Gaussian process,
    with the distance 1 between any two, where PB2-Mix has a bandit of their own for them.

    Source:
        J. Parker-Holder, V. Nguyen, S. Roberts, NeurIPS 2020; with mixed inputs, NeurIPS 2021. M. Jaderberg et al.,
        2017 (population-based training).
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        size: int = 4,
        *,
        interval: int,
        quantile: float = 0.25,
        explore: str = "bandit",
        kappa: float = 2.0,
        resample: float = 0.25,
        mode: str = "min",
    ) -> None:
        super().__init__(space, mode)
        self.size = integer("size", size, minimum=2)
        self.interval = integer("interval", interval, minimum=1)
        self.quantile = _number("quantile", quantile, most=0.5)
        if explore not in EXPLORE:
            raise ValueError(f'explore must be "bandit" or "perturb", got {explore!r}')
        self.explore = explore
        self.kappa = _number("kappa", kappa)
        self.resample = _number("resample", resample, most=1.0)

    def settings(self) -> dict[str, Any]:
        """What the search was made with."""
        names = "size", "interval", "quantile", "explore", "kappa", "resample"
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def check_steps(self, steps: int) -> None:
        """Raises where members would never be compared."""
        if steps < self.interval:
            raise ValueError(f"steps must be at least interval={self.interval}, got {steps}")

    def stops(self, steps: int) -> list[int]:
        """Steps at which members are compared; the last one is the end.

        Example:
            >>> PB2({"batch_size": [32, 64]}, interval=100).stops(350)
            [100, 200, 350]
        """
        return [*range(self.interval, steps - self.interval + 1, self.interval), steps]

    def total_steps(self, steps: int) -> int:
        """Steps of all members."""
        return self.size * steps

    def todo(self, done: Sequence[Leg], running: Sequence[Leg], free: int, steps: int, seed: int) -> list[Leg]:
        """The next round, once all members have ended theirs; what is left of it after an interruption."""
        if running:
            return []
        rounds = [
            sorted((leg for leg in done if leg.number == number), key=lambda leg: leg.member)
            for number in range(1 + max((leg.number for leg in done), default=-1))
        ]
        ended: set[int] = set()
        if rounds and len(rounds[-1]) < self.size:
            ended = {leg.member for leg in rounds.pop()}
        elif rounds and all(leg.error for leg in rounds[-1]):
            if len(rounds) > 1:  # or else nothing is found at all, which run() says
                last = rounds[-1][0]
                warnings.warn(
                    f"all members failed after step {last.start}, and the search ends there: {last.error}",
                    RuntimeWarning,
                    stacklevel=4,
                )
            return []
        elif rounds and rounds[-1][0].stop == steps:
            return []
        return [leg for leg in self._plan(rounds, steps, seed) if leg.member not in ended]

    def _plan(self, rounds: list[list[Leg]], steps: int, seed: int) -> list[Leg]:
        """The legs of the round after these."""
        number = len(rounds)
        rng = np.random.default_rng([seed, number])
        stops = self.stops(steps)
        start, stop = stops[number - 1] if number else 0, stops[number]
        if not rounds:
            configs: dict[int, Config] = dict(enumerate(self.space.spread(rng, self.size)))
            sources: dict[int, int] = {}
        else:
            sources = self._take_overs(rounds[-1], rng)
            configs = {leg.member: rounds[-1][sources.get(leg.member, leg.member)].config for leg in rounds[-1]}
            if self.explore == "perturb":
                for member in sources:
                    configs[member] = self.space.perturb(configs[member], rng, self.resample)
            else:
                self._choose(rounds, configs, sources, rng)
        return [
            Leg(member, number, start, stop, configs[member], leg_seed(seed, member, number), sources.get(member))
            for member in range(self.size)
        ]

    def _take_overs(self, last: list[Leg], rng: np.random.Generator) -> dict[int, int]:
        """Which member takes over which, by number."""
        ranked = sorted((leg for leg in last if leg.error is None), key=lambda leg: (-self.score(leg), leg.member))
        count = max(1, int(self.size * self.quantile))
        failed = [leg.member for leg in last if leg.error is not None]
        keep = max(1, min(len(ranked), self.size - count))
        weak = sorted(failed + [leg.member for leg in ranked[keep:]])
        strong = [leg.member for leg in ranked[: min(count, keep)]]
        return {member: strong[rng.integers(len(strong))] for member in weak}

    # ---- explore

    def _choose(
        self, rounds: list[list[Leg]], configs: dict[int, Config], sources: dict[int, int], rng: np.random.Generator
    ) -> None:
        """New values for the members that take over others, one after the other."""
        names = list(self.space.dimensions)
        unordered = torch.tensor([False, *(not self.space.dimensions[name].ordered for name in names)])
        points, targets = self._observations(rounds)
        gp = GaussianProcess(points, targets, unordered)
        place = _places(self._begins(rounds[-1], sources))

        def at(member: int, options: Sequence[Config]) -> Tensor:
            rows = [[float(len(rounds)), float(place[member]), *self.space.encode(config)] for config in options]
            return torch.tensor(rows, dtype=torch.float64)

        under_way = [at(member, [configs[member]]) for member in configs if member not in sources]
        for member in sources:
            options = self.space.candidates(configs[member], rng, CANDIDATES)
            bound = upper_confidence_bound(gp, at(member, options), torch.cat(under_way), self.kappa)
            configs[member] = options[int(bound.argmax())]
            under_way.append(at(member, [configs[member]]))

    def _observations(self, rounds: list[list[Leg]]) -> tuple[Tensor, Tensor]:
        """What the Gaussian process learns from: [n, 2 + values] points, and [n] improvements, standardized."""
        points: list[list[float]] = []
        gains: list[float] = []  # NaN where the leg failed
        before: list[Leg] | None = None
        for number, legs in enumerate(rounds):
            ends = torch.tensor([math.nan if leg.error else self.score(leg) for leg in legs], dtype=torch.float64)
            if before is None:  # where the members began is not known: as if at the end of the worst
                place, begins = torch.zeros_like(ends), ends[~ends.isnan()].min()
            else:
                begins = self._begins(before, {leg.member: leg.source for leg in legs if leg.source is not None})
                place = _places(begins)
            gain = ends - begins
            size = gain[~gain.isnan()].square().mean().sqrt()
            gains += (gain / size if size > 0 else gain).tolist()
            points += [
                [float(number), float(at), *self.space.encode(leg.config)] for leg, at in zip(legs, place, strict=True)
            ]
            before = legs
        targets = torch.tensor(gains[-ROWS:], dtype=torch.float64)
        good = ~targets.isnan()
        targets[good] = standardized(targets[good])
        return torch.tensor(points[-ROWS:], dtype=torch.float64), targets.nan_to_num(FAILED)

    def _begins(self, before: list[Leg], sources: Mapping[int, int]) -> Tensor:
        """[size]: the scores with which members begin a round, after those of the round before."""
        scores = [self.score(before[sources.get(leg.member, leg.member)]) for leg in before]
        return torch.tensor(scores, dtype=torch.float64)


def _places(begins: Tensor) -> Tensor:
    """Where members begin, among the others; on the scale of values in [0, 1]."""
    return standardized(begins) / 4


def _number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not (least <= value <= most and math.isfinite(value)):
        raise ValueError(
            f"{name} must be at least {least:g}{f' and at most {most:g}' if most < math.inf else ''}, got {value!r}"
        )
    return float(value)
