"""Asynchronous successive halving: many trainings begin, and the best of each rung go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metafast._checks import integer
from metafast.tune.population._member import Leg
from metafast.tune.population._search import Search, leg_seed


class ASHA(Search):
    r"""Asynchronous successive halving, for what cannot change in the middle of a training, such as layers and widths.

    Trainings with configurations drawn from the space go to the first rung, `min_steps`. Whenever there is room, a
    training among the best \(1/\eta\) of those that have reached its rung goes on to the next, \(\eta\) times as far;
    where there is none, a new training begins. Rungs are at \(\text{min\_steps}\cdot\eta^k\), the last one at the end
    of the training.

    A training that fails counts as the worst of the rung that it did not reach. Its place in the draw is its number, so
    configurations and curves depend on the seed alone. Which ones are promoted depends on what has been seen so far:
    with `workers=0` on nothing but the seed, with more on which member was faster.

    Args:
        space: names to lists of choices, `Choice`, `IntRange` or `FloatRange`.
        trials: trainings to begin.
        min_steps: steps to the first rung.
        reduction: \(\eta\), at least 2. Default 4.
        mode: "min" if small values are good (a loss, default), "max" for an accuracy.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> import tempfile, torch
        >>> def train(member):
        ...     model = torch.nn.Linear(1, member.config["width"])
        ...     member.restore(model)
        ...     member.report(member.stop, 1 / member.config["width"] + 1 / member.stop)
        ...     member.save(model)
        >>> search = ASHA({"width": [1, 2, 4, 8, 16, 32, 64]}, trials=9, min_steps=1, reduction=3)
        >>> result = search.run(train, steps=9, output=tempfile.mkdtemp() + "/asha", progress=False)
        >>> [sum(leg.stop == stop for leg in result.legs) for stop in (1, 3, 9)], result.best.step
        ([9, 3, 1], 9)

    Source:
        L. Li et al., MLSys 2020, algorithm 2, with stop rate 0.
    """

    def __init__(
        self, space: Mapping[str, Any], trials: int, min_steps: int, *, reduction: int = 4, mode: str = "min"
    ) -> None:
        super().__init__(space, mode)
        self.trials = integer("trials", trials, minimum=1)
        self.min_steps = integer("min_steps", min_steps, minimum=1)
        self.reduction = integer("reduction", reduction, minimum=2)

    def settings(self) -> dict[str, Any]:
        """What the search was made with."""
        own = {"trials": self.trials, "min_steps": self.min_steps, "reduction": self.reduction}
        return {**super().settings(), **own}

    def check_steps(self, steps: int) -> None:
        """Raises where there is no room for the first rung."""
        if steps < self.min_steps:
            raise ValueError(f"steps must be at least min_steps={self.min_steps}, got {steps}")

    def rungs(self, steps: int) -> list[int]:
        """Steps at which trainings are compared; the last one is the end.

        Example:
            >>> ASHA({"layers": [1, 2]}, trials=8, min_steps=50, reduction=4).rungs(1000)
            [50, 200, 1000]
        """
        found = [self.min_steps]
        while found[-1] * self.reduction <= steps:
            found.append(found[-1] * self.reduction)
        found[-1] = steps
        return found

    def todo(self, done: Sequence[Leg], running: Sequence[Leg], free: int, steps: int, seed: int) -> list[Leg]:
        """As many legs as there is room for."""
        rungs, found = self.rungs(steps), list[Leg]()
        while len(found) < free:
            leg = self._next(done, [*running, *found], rungs, seed)
            if leg is None:
                break
            found.append(leg)
        return found

    def _next(self, done: Sequence[Leg], running: Sequence[Leg], rungs: list[int], seed: int) -> Leg | None:
        begun = [*done, *running]
        for number in reversed(range(len(rungs) - 1)):
            rung = [leg for leg in done if leg.number == number]
            good = sorted((leg for leg in rung if leg.error is None), key=lambda leg: (-self.score(leg), leg.member))
            promoted = {leg.member for leg in begun if leg.number == number + 1}
            for leg in good[: len(rung) // self.reduction]:
                if leg.member not in promoted:
                    seed_then = leg_seed(seed, leg.member, number + 1)
                    return Leg(leg.member, number + 1, rungs[number], rungs[number + 1], leg.config, seed_then)
        drawn = {leg.member for leg in begun}
        member = next((index for index in range(self.trials) if index not in drawn), None)
        if member is None:
            return None
        config = self.space.draw(np.random.default_rng([seed, member]))
        return Leg(member, 0, 0, rungs[0], config, leg_seed(seed, member, 0))
