"""MAML by `higher` 0.2.1 (Grefenstette et al. 2019), a differentiable copy of the model for each task."""

from __future__ import annotations

import torch
from torch import Tensor

from .maml_problem import MetaGradient, Problem


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient."""
    import higher

    model, second = problem.model, problem.order == 2
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)

    def meta_gradient() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in model.parameters()]
        for index in range(problem.tasks):
            sx, sy, qx, qy = problem.task(index)
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, track_higher_grads=second) as (
                learner,
                inner,
            ):
                for _ in range(problem.steps):
                    inner.step(problem.loss_fn(learner(sx), sy))
                query = problem.loss_fn(learner(qx), qy) / problem.tasks
                # Untracked, the learner's last parameters are leaves: the first-order gradient is theirs.
                source = list(model.parameters()) if second else list(learner.parameters())
                for t, g in zip(total, torch.autograd.grad(query, source), strict=True):
                    t.add_(g)
        return total

    return meta_gradient
