"""MAML by `torch.func`: `vmap` over tasks of the task's gradient, a chunk of tasks at a time.

The derivative is taken inside `vmap`: taken outside, torch 2.13 loses a term of batch normalization.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .maml_problem import MetaGradient, Problem

Params = dict[str, Tensor]


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient."""
    return _build(problem, compiled=False)


def build_compiled(problem: Problem) -> MetaGradient:
    """The same under `torch.compile`, which takes minutes for convolutional models."""
    return _build(problem, compiled=True)


def _build(problem: Problem, compiled: bool) -> MetaGradient:
    start = {name: p.detach() for name, p in problem.model.named_parameters()}

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return problem.loss_fn(functional_call(problem.model, params, (x,)), y)

    def task_loss(params: Params, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        for _ in range(problem.steps):
            grads = grad(loss)(params, sx, sy)
            if problem.order == 1:
                grads = {name: g.detach() for name, g in grads.items()}
            params = {name: p - problem.lr * grads[name] for name, p in params.items()}
        return loss(params, qx, qy)

    def chunk_gradient(params: Params, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Params:
        per_task = vmap(grad(task_loss), in_dims=(None, 0, 0, 0, 0))(params, sx, sy, qx, qy)
        return {name: g.sum(0) for name, g in per_task.items()}

    function = torch.compile(chunk_gradient) if compiled else chunk_gradient
    data = (problem.support_x, problem.support_y, problem.query_x, problem.query_y)

    def meta_gradient() -> list[Tensor]:
        total = {name: torch.zeros_like(p) for name, p in start.items()}
        for first in range(0, problem.tasks, problem.chunk):
            part = function(start, *(d[first : first + problem.chunk] for d in data))
            for name, g in part.items():
                total[name] += g / problem.tasks
        return list(total.values())

    return meta_gradient
