"""Small float64 problems with a regularizer each, and their hypergradients by finite differences of plain training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.tune import Tune
from metafast.tune.regularizers import L2, Augment, LabelSmoothingCrossEntropy, Mixup, replace_dropout
from tests.tune.tune_cases import SPACES

STEPS = 5


@dataclass
class Made:
    """A fresh model with a regularizer: its training loss by a batch, and what is tuned."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    tune: list[Tune]


def quantile_draw(a: Tensor, count: int) -> Tensor:
    """Samples of Beta(a, a) by quantiles, so that a may move while the noise stays; replaces `draw` of mixup."""
    special = pytest.importorskip("scipy.special", reason="the beta distribution of reference")
    probability = torch.rand(count, dtype=torch.float64).numpy()
    return torch.from_numpy(special.betaincinv(float(a), float(a), probability))


def make_l2(model: nn.Module) -> Made:
    penalty = L2(model, 0.05)
    return Made(model, lambda x, y: F.cross_entropy(model(x), y) + penalty(), penalty.tune())


def make_smoothing(model: nn.Module) -> Made:
    criterion = LabelSmoothingCrossEntropy(0.15).double()
    return Made(model, lambda x, y: criterion(model(x), y), criterion.tune())


def make_mixup(model: nn.Module) -> Made:
    mixup = Mixup(0.6, num_classes=3).double()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        mixed, targets = mixup(x, y)
        return F.cross_entropy(model(mixed), targets)

    return Made(model, loss, mixup.tune())


def make_dropout(model: nn.Module) -> Made:
    tune = replace_dropout(model, p=0.3, temperature=0.5)
    return Made(model.double(), lambda x, y: F.cross_entropy(model(x), y), tune)


def make_augment(model: nn.Module) -> Made:
    augment = Augment(
        shift=0.1, rotation=20.0, scale=0.2, shear=0.2, contrast=0.4, brightness=0.3, noise=0.2, cutout=0.4
    ).double()
    return Made(model, lambda x, y: F.cross_entropy(model(augment(x)), y), augment.tune())


MAKE = {
    "l2": make_l2,
    "smoothing": make_smoothing,
    "mixup": make_mixup,
    "dropout": make_dropout,
    "augment": make_augment,
}


class Problem:
    """Pictures of 3 by 4 in three classes; noise of each batch by a seed that is part of it.

    `convex`: a linear model with a ridge penalty.
    """

    def __init__(self, name: str, convex: bool = False) -> None:
        self.name, self.convex = name, convex
        self.settled: Tensor | None = None
        generator = torch.Generator().manual_seed(3)

        def pictures(count: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(count, 1, 3, 4, generator=generator, dtype=torch.float64)
            return x, torch.randint(3, (count,), generator=generator)

        self.batches = [(*pictures(6), seed) for seed in range(STEPS)]
        self.val = pictures(8)

    def make(self) -> Made:
        torch.manual_seed(0)
        first, second = (nn.Dropout(), nn.Dropout()) if self.name == "dropout" else (nn.Identity(), nn.Identity())
        hidden = [nn.Linear(12, 5), nn.Tanh(), second, nn.Linear(5, 3)]
        layers = [nn.Flatten(), first, *([nn.Linear(12, 3)] if self.convex else hidden)]
        return MAKE[self.name](nn.Sequential(*layers).double())

    def loss(self, made: Made, x: Tensor, y: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        ridge = sum(p.square().sum() for p in made.model.parameters()) if self.convex else 0.0
        return made.loss(x, y) + 0.1 * ridge

    def val_loss(self, model: nn.Module) -> Tensor:
        x, y = self.val
        return F.cross_entropy(model(x), y)


def move(made: Made, index: int, unit: int, shift: float) -> None:
    """Shifts one tuned value in its space."""
    spec = made.tune[index]
    raw, value = SPACES[spec.space]
    with torch.no_grad():
        flat = spec.what.view(-1)
        flat[unit] = value(raw(flat[unit]) + shift)


def units(made: Made) -> list[tuple[int, int]]:
    return [(index, unit) for index, spec in enumerate(made.tune) for unit in range(spec.what.numel())]


def differences(problem: Problem, end: Callable[[Made], float], h: float = 1e-4) -> dict[str, list[float]]:
    """d end / d value in its space, of every tuned value, to fourth order."""
    found: dict[str, list[float]] = {}
    for index, unit in units(problem.make()):
        values: dict[int, float] = {}
        for sign in (-2, -1, 1, 2):
            made = problem.make()
            move(made, index, unit, sign * h)
            values[sign] = end(made)
        slope = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)
        found.setdefault(str(made.tune[index].name), []).append(slope)
    return found


def settle(problem: Problem, made: Made) -> float:
    """Brings weights to the minimum of a convex training loss, by Newton; the validation loss there."""
    params = list(made.model.parameters())
    if problem.settled is not None:
        torch.nn.utils.vector_to_parameters(problem.settled, params)  # that of other magnitudes, nearby
    for _ in range(10):
        grads = torch.autograd.grad(problem.loss(made, *problem.batches[0]), params, create_graph=True)
        gradient = torch.cat([g.flatten() for g in grads])
        eye = torch.eye(len(gradient), dtype=gradient.dtype)
        hessian = torch.cat(
            [h.flatten(1) for h in torch.autograd.grad(gradient, params, eye, is_grads_batched=True)], 1
        )
        step = torch.linalg.solve(hessian, gradient.detach())
        problem.settled = torch.nn.utils.parameters_to_vector(params).detach() - step
        torch.nn.utils.vector_to_parameters(problem.settled, params)
        if step.abs().max() < 1e-8:  # convergence is quadratic
            break
    return validation(problem, made)


def validation(problem: Problem, made: Made) -> float:
    made.model.eval()
    with torch.no_grad():
        return problem.val_loss(made.model).item()


def plain_training(problem: Problem, make: Any, steps: int) -> Callable[[Made], float]:
    """The validation loss after some steps of a plain loop."""

    def end(made: Made) -> float:
        opt = make(made.model.parameters())
        for batch in problem.batches[:steps]:
            opt.zero_grad()
            problem.loss(made, *batch).backward()
            opt.step()
        return validation(problem, made)

    return end
