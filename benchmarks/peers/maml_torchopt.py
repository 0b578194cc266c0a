"""MAML by torchopt's differentiable optimizer `MetaSGD` (Ren et al. 2022); it has no first-order form."""

from __future__ import annotations

import torch
from torch import Tensor

from .maml_problem import MetaGradient, Problem


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient.

    Raises:
        ValueError: first order.
    """
    import torchopt

    if problem.order != 2:
        raise ValueError("torchopt's MetaSGD always differentiates through its steps: order must be 2")
    model = problem.model
    start = list(model.parameters())
    inner = torchopt.MetaSGD(model, lr=problem.lr)

    def meta_gradient() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in start]
        before = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        for index in range(problem.tasks):
            sx, sy, qx, qy = problem.task(index)
            for _ in range(problem.steps):
                inner.step(problem.loss_fn(model(sx), sy))
            query = problem.loss_fn(model(qx), qy) / problem.tasks
            for t, g in zip(total, torch.autograd.grad(query, start), strict=True):
                t.add_(g)
            torchopt.recover_state_dict(model, before)
            torchopt.recover_state_dict(inner, state)
        return total

    return meta_gradient
