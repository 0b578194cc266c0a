"""MAML as one writes it in plain PyTorch: a loop over tasks, `torch.autograd.grad` and `functional_call`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.func import functional_call

from .maml_problem import MetaGradient, Problem

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient."""
    names = [name for name, _ in problem.model.named_parameters()]
    start = list(problem.model.parameters())
    second = problem.order == 2

    def loss(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return problem.loss_fn(functional_call(problem.model, dict(zip(names, params, strict=True)), (x,)), y)

    def meta_gradient() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in start]
        for index in range(problem.tasks):
            sx, sy, qx, qy = problem.task(index)
            params = start
            for _ in range(problem.steps):
                grads = torch.autograd.grad(loss(params, sx, sy), params, create_graph=second)
                params = [p - problem.lr * g for p, g in zip(params, grads, strict=True)]
            grads = torch.autograd.grad(loss(params, qx, qy) / problem.tasks, start)
            for t, g in zip(total, grads, strict=True):
                t.add_(g)
        return total

    return meta_gradient


def build_tuned(problem: Problem) -> MetaGradient:
    """The same in a process whose malloc keeps what is freed: large tensors then cost no page faults."""
    tune_malloc()
    return build(problem)


def tune_malloc() -> None:
    """No trimming and no mmap, for the whole process and for good.

    Raises:
        OSError: the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(M_MMAP_MAX, 0) != 1 or mallopt(M_TRIM_THRESHOLD, -1) != 1:
        raise OSError("malloc cannot be tuned here: mallopt of glibc is missing or refused")
