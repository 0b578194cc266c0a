"""How good a controller is on trainings that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metafast.schedule import _policy
from metafast.schedule._tasks import Task
from metafast.schedule._trainings import Start, Trainings, score

RATES = (1e-5, 3e-4, 1e-3, 1e-2)


class Judge:
    """Whole trainings of some tasks from several starting rates, always the same ones.

    Args:
        tasks: what is trained.
        rates: where it starts.
        seeds: trainings from each rate.
        interval: steps between two decisions.
        per: "global" or "tensor".
        steps: of a training; None: the task's own.
        seed: of everything.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        rates: Sequence[float] = RATES,
        seeds: int = 3,
        interval: int = 10,
        per: str = "global",
        steps: int | None = 400,
        seed: int = 1 << 20,
    ) -> None:
        self.tasks, self.rates, self.seeds = tasks, rates, seeds
        self.interval, self.per, self.steps, self.seed = interval, per, steps, seed

    def score(self, shape: _policy.Shape, weights: Tensor, max_change: float) -> float:
        """The mean of what meta-training lowers, at the end of every training.

        With a `max_change` of 1e-9 the rates stay where they start.
        """
        ends = []
        for task in self.tasks:
            steps = self.steps or task.steps
            starts = [Start(self.seed + s, rate, steps) for rate in self.rates for s in range(self.seeds)]
            trainings = Trainings(task, starts, 1, self.per, self.interval, self.seed)
            for _ in range(steps // self.interval):
                trainings.run(shape, weights, max_change)
            losses = torch.stack([trainings.validate() for _ in range(8)]).mean(0)
            ends.append(score(losses, trainings.first_loss))
        return float(torch.stack(ends).mean())
