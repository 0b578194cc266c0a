"""The meta-loss of a batch of tasks, with the gradient behind it."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from metafast.innerloop._arguments import name_nan
from metafast.innerloop._attach import Attach
from metafast.innerloop._call import Result

if TYPE_CHECKING:
    from metafast.data import TaskBatch


def meta_loss(
    losses: Tensor, share: Tensor | None, on_nan: str, batch: TaskBatch, *started: Tensor
) -> tuple[Tensor, list[int]]:
    """The weighted sum of the task losses `[T]`, and the tasks that were dropped from it.

    Args:
        losses, share, on_nan, batch: the losses, the weights of the tasks, what to do with NaN, and whose they are.
        started: the starts and the rates, for the error's text.

    Raises:
        ValueError: a loss that is not finite and may not be dropped.
    """
    loss = losses.mean() if share is None else (torch.where(share != 0, losses, 0) * share.to(losses.dtype)).sum()
    if on_nan == "ignore" or math.isfinite(loss.item()):
        return loss, []
    weights = torch.full_like(losses, 1 / len(losses)) if share is None else share.to(losses.dtype)
    wrong = ~losses.isfinite() & (weights != 0)
    dropped = [int(t) for t in wrong.nonzero().flatten()]
    if on_nan == "raise" or len(dropped) == len(losses):
        task = dropped[0]
        raise ValueError(
            f"task {task}: its query loss is {float(losses[task])}; {name_nan(batch, task, *started)} "
            f"({len(dropped)} of {len(losses)} tasks; on_nan='drop' leaves some out)"
        )
    kept = torch.where(wrong, 0, weights)
    return (torch.where(wrong, 0, losses) * kept).sum() * (weights.sum() / kept.sum()), dropped


def without(share: Tensor | None, dropped: list[int], tasks: int, device: torch.device) -> Tensor:
    """The task weights with some tasks left out, of the same sum."""
    share = torch.full((tasks,), 1 / tasks, dtype=torch.float64, device=device) if share is None else share.clone()
    total = share.sum()
    share[dropped] = 0.0
    return share * (total / share.sum())


def attach(
    loss: Tensor, result: Result, sizes: list[int], starts: list[Tensor], rates: Tensor, batch: TaskBatch
) -> Tensor:
    """The loss with its gradients behind it."""
    assert result.grad_weights is not None
    extra = [(source, grad) for source, grad in ((rates, result.grad_rates), (batch.support_x, result.grad_support_x),
             (batch.query_x, result.grad_query_x)) if grad is not None and source.requires_grad]  # fmt: skip
    shared = result.grad_weights.dim() == 1
    finish = partial(_views if shared and all(s.requires_grad for s in starts) else _parts, sizes, starts)
    attached: Tensor = Attach.apply(
        loss, finish, [result.grad_weights, *(grad for _, grad in extra)], *starts, *(source for source, _ in extra)
    )
    return attached


def _views(sizes: list[int], starts: list[Tensor], grad: Tensor, flat: Tensor, *rest: Tensor) -> list[Tensor | None]:
    """The gradients of the starts, as views of one tensor, and of the other inputs, times the incoming one."""
    return [*_unflatten_dense_tensors(flat * grad, starts), *(r * grad for r in rest)]


def _parts(sizes: list[int], starts: list[Tensor], grad: Tensor, flat: Tensor, *rest: Tensor) -> list[Tensor | None]:
    """The same, where some want none, or have a task dimension."""
    grads: list[Tensor | None] = []
    for part, start in zip((flat * grad).split(sizes, -1), starts, strict=True):
        if not start.requires_grad:
            grads.append(None)
        elif part.numel() != start.numel():  # a start that all tasks share, beside others of their own
            grads.append(part.sum(0).view(start.shape))
        else:
            grads.append(part.view(start.shape))
    return [*grads, *(r * grad for r in rest)]
