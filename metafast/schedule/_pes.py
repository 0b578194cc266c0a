"""Persistent evolution strategies: the meta-gradient of whole trainings, unbiased, from pieces of them.

Pairs of trainings are steered by theta + e and theta - e, with a new e for every piece. The difference of the losses of
a piece is credited to all that has been added to theta since the training began:

    xi <- xi + e;   grad = mean over pairs of xi (L+ - L-) / (2 sigma^2)

1. Vicol, Metz & Sohl-Dickstein, Unbiased gradient estimation in unrolled computation graphs with persistent evolution
   strategies, ICML 2021 (Algorithm 2, antithetic).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metafast.schedule import _policy
from metafast.schedule._suite import Draw
from metafast.schedule._tasks import Task
from metafast.schedule._trainings import Trainings, score


class PES:
    """Trainings of one task in pairs, and the estimate of the meta-gradient that they give.

    Args:
        task: what is trained.
        pairs: how many.
        per: "global" or "tensor".
        interval: steps between two decisions.
        seed: of everything.
        sigma: size of the perturbations.
        intervals: decisions in a piece.
        draw: makes the start of a training.
    """

    def __init__(
        self, task: Task, pairs: int, per: str, interval: int, seed: int, sigma: float, intervals: int, draw: Draw
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.draw, self.sigma, self.intervals, self.pairs = draw, sigma, intervals, pairs
        starts = [draw(self.generator) for _ in range(pairs)]
        self.trainings = Trainings(task, starts, 2, per, interval, seed + 1)
        # Their ends must not fall together: a first length of a random part.
        self.trainings.steps *= torch.rand(pairs, generator=self.generator).repeat_interleave(2).clamp(min=0.2)
        self.xi: Tensor | None = None
        # The usual size of a difference, so that no task outweighs the others; a floor, where nothing moves yet, keeps
        # noise from counting as much.
        self.size = torch.ones(())
        self.pieces = 0

    def gradient(
        self, shape: _policy.Shape, weights: Tensor, max_change: float, dropout: float
    ) -> tuple[Tensor, float]:
        """(estimate `[D]`, mean score) of one piece, at `weights` `[D]`."""
        t = self.trainings
        if self.xi is None:
            self.xi = torch.zeros(self.pairs, shape.numel)
        noise = self.sigma * torch.randn(self.pairs, shape.numel, generator=self.generator)
        self.xi = self.xi + noise
        perturbed = weights + torch.stack([noise, -noise], 1).flatten(0, 1)
        for _ in range(self.intervals):
            keep = None
            if dropout:
                mask = torch.rand(self.pairs, 1, shape.hidden, generator=self.generator) >= dropout
                keep = mask.repeat_interleave(2, 0) / (1 - dropout)
            t.run(shape, perturbed, max_change, keep)
        scores = score(t.validate(), t.first_loss).view(self.pairs, 2)
        # The end of a training counts as much as all of its way.
        ended = [place for place in range(self.pairs) if t.finished(place)]
        weight = torch.ones(self.pairs)
        length = self.intervals * t.interval
        for place in ended:
            weight[place] += float(t.steps[t.rows(place).start]) / length
        difference = (scores[:, 0] - scores[:, 1]) * weight
        spread = difference.square().mean().sqrt()
        self.pieces += 1
        share = max(0.05, 1 / self.pieces)
        self.size = (1 - share) * self.size + share * spread
        estimate = (self.xi * difference[:, None]).mean(0) / (2 * self.sigma**2) / self.size.clamp(min=0.1)
        for place in ended:
            t.begin(place, self.draw(self.generator))
            self.xi[place] = 0.0
        return estimate, float(scores.mean())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next piece depends on."""
        return {
            "trainings": self.trainings.state_dict(),
            "generator": self.generator.get_state(),
            "xi": torch.zeros(0) if self.xi is None else self.xi,
            "size": self.size,
            "pieces": self.pieces,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.trainings.load_state_dict(state["trainings"])
        self.generator.set_state(state["generator"])
        self.xi = state["xi"].clone() if state["xi"].numel() else None
        self.size, self.pieces = state["size"].clone(), state["pieces"]
