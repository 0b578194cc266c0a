"""Inner loops whose update is a function of the user: autograd goes through it, over the gradients of an engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metafast.innerloop._call import Call
from metafast.innerloop._layout import Layout
from metafast.innerloop._outcome import Outcome
from metafast.ops._dropout_hash import QUERY_STEP

if TYPE_CHECKING:
    from metafast.data import TaskBatch


def run_hook(engine: Any, call: Call, weights: Tensor, batch: TaskBatch, layout: Layout) -> Outcome:
    """The outcome of a call whose rule is a hook; its loss is an ordinary autograd result."""
    tasks = batch.tasks
    hook: Any = call.rule
    theta = weights.expand(tasks, -1)
    mask = layout.mask(theta.device)
    whole = bool(mask.all())
    state: Any = None
    wanted = call.query_weights.tolist()
    total = theta.new_zeros(tasks)
    support_losses: list[Tensor] = []
    query_losses: list[Tensor] = []
    logits = theta.new_zeros(0)
    adapted: dict[str, Tensor] | None = None

    def evaluate(which: str, step: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        x, y, m = (getattr(batch, f"{which}_{part}") for part in ("x", "y", "mask"))
        if which == "support" and call.batches is not None:
            chosen = call.batches[..., k, :].expand(tasks, -1)
            rows = torch.arange(tasks, device=x.device)[:, None]
            x, y, m = x[rows, chosen], y[rows, chosen], None if m is None else m[rows, chosen]
        stats = None if call.stats is None else call.stats[k if len(call.stats) > 1 else 0][None]
        result: tuple[Tensor, Tensor, Tensor] = engine.gradient(
            theta, x, y, m, batch.classes, stats, call.seed, step, call.first_task
        )
        return result

    with torch.set_grad_enabled(call.order > 0 and torch.is_grad_enabled()):
        for k in range(call.steps + 1):
            if wanted[k] != 0 or k == call.steps and call.want_logits:
                losses, logits, _ = evaluate("query", QUERY_STEP + k, k)
                if wanted[k] != 0:
                    total = total + wanted[k] * losses
                query_losses.append(losses.detach())
            else:
                query_losses.append(torch.full_like(total, math.nan).detach())
            if k == call.steps:
                break
            with torch.set_grad_enabled(torch.is_grad_enabled() and call.order == 2):
                losses, _, grads = evaluate("support", k, k)
            support_losses.append(losses.detach())
            moved, state = hook(k, theta, grads, losses, state)
            if not isinstance(moved, Tensor) or moved.shape != theta.shape:
                got = list(moved.shape) if isinstance(moved, Tensor) else type(moved).__name__
                raise ValueError(f"rule must return (params {list(theta.shape)}, state), got {got}")
            theta = moved if whole else torch.where(mask, moved, theta)
        share = call.task_weights
        loss = total.mean() if share is None else (torch.where(share != 0, total, 0) * share.to(total.dtype)).sum()
    if call.want_adapted:
        adapted = layout.unflatten(theta.detach())
    return Outcome(
        loss, total.detach(), torch.stack(support_losses, 1), torch.stack(query_losses, 1), logits.detach(), adapted
    )
