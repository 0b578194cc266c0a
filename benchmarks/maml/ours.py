"""metafast's meta-gradient, through the public `InnerLoop`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.peers.maml_problem import MetaGradient, Problem
from metafast.data import TaskBatch
from metafast.innerloop import InnerLoop


def build(problem: Problem) -> MetaGradient:
    """The compiled engine; activations of a step are stored."""
    return _build(problem, engine="compiled")


def build_recomputing(problem: Problem) -> MetaGradient:
    """The compiled engine in the least memory."""
    return _build(problem, engine="compiled", memory_budget=0)


def build_loop(problem: Problem) -> MetaGradient:
    """The generic path, one task after the other."""
    return _build(problem, engine="loop")


def build_vmap(problem: Problem) -> MetaGradient:
    """The generic path, tasks side by side."""
    return _build(problem, engine="vmap")


def _build(problem: Problem, **options: Any) -> MetaGradient:
    model = problem.model
    inner = InnerLoop(
        model, loss=problem.loss, steps=problem.steps, order=problem.order, batch_norm="batch", **options
    )  # fmt: skip
    batch = TaskBatch(problem.support_x, problem.support_y, problem.query_x, problem.query_y)
    params = list(model.parameters())

    def meta_gradient() -> list[Tensor]:
        for p in params:
            p.grad = None
        inner(batch, rates=problem.lr).loss.backward()
        return [p.grad for p in params if p.grad is not None]

    return meta_gradient
