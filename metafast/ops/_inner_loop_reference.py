"""The inner-loop ops in PyTorch, on task-batched tensors of any float dtype; the formulas stand in the op files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._dropout_hash import QUERY_STEP
from ._program import Program, decode
from ._rules_reference import Rule
from ._tape_reference import TAPE, Tape


def _row(rows: Tensor | None, k: int) -> Tensor | None:
    """Row k of a table that has one row for all steps, or one each."""
    return None if rows is None else rows[k if rows.shape[0] > 1 else 0]


def _expand(rate: Tensor, program: Program) -> Tensor:
    """`[P]` of a row of rates: one, one for each parameter, or all."""
    if rate.numel() == 1:
        return rate.expand(program.numel)
    if rate.numel() == len(program.params):
        return rate.repeat_interleave(torch.tensor([p.numel for p in program.params], device=rate.device))
    return rate


def _gather(rate_bar: Tensor, program: Program, width: int) -> Tensor:
    """The sum of `[P]` over the elements that share a rate."""
    if width == 1:
        return rate_bar.sum().view(1)
    if width == len(program.params):
        return torch.stack([part.sum() for part in rate_bar.split([p.numel for p in program.params])])
    return rate_bar


def _pick(data: Tensor, index: Tensor | None) -> Tensor:
    """The examples `index` `[T, B]` of `[T, S, ...]`."""
    if index is None:
        return data
    return data[torch.arange(data.shape[0], device=data.device)[:, None], index]


@torch.no_grad()
def task_grad(
    program: Tensor,
    attributes: Tensor,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    classes: Tensor | None,
    stats: Tensor | None,
    seed: int,
    step: int,
    first_task: int,
    losses: Tensor,
    logits: Tensor | None,
    grads: Tensor | None,
    grad_x: Tensor | None,
) -> None:
    """`task_grad.py`."""
    parsed = decode(program, attributes)
    weights = weights.expand(x.shape[0], parsed.numel)
    tape = TAPE.get()(parsed, weights, x, y, mask, classes, _row(stats, 0), seed, step, first_task)
    losses.copy_(tape.losses)
    if logits is not None:
        logits.copy_(tape.logits)
    if grads is not None or grad_x is not None:
        gradient, dx = tape.gradient()
        if grads is not None:
            grads.copy_(gradient)
        if grad_x is not None and dx is not None:
            grad_x.copy_(dx)


@torch.no_grad()
def task_hvp(
    program: Tensor,
    attributes: Tensor,
    weights: Tensor,
    x: Tensor,
    y: Tensor,
    mask: Tensor | None,
    classes: Tensor | None,
    stats: Tensor | None,
    seed: int,
    step: int,
    first_task: int,
    tangents: Tensor,
    hvp: Tensor,
    mixed_x: Tensor | None,
) -> None:
    """`task_hvp.py`."""
    parsed = decode(program, attributes)
    weights = weights.expand(x.shape[0], parsed.numel)
    tape = TAPE.get()(parsed, weights, x, y, mask, classes, _row(stats, 0), seed, step, first_task)
    tape.gradient()
    product, mixed = tape.hvp(tangents)
    hvp.copy_(product)
    if mixed_x is not None:
        mixed_x.copy_(mixed if mixed is not None else torch.zeros_like(mixed_x))


@torch.no_grad()
def inner_loop(
    program: Tensor,
    attributes: Tensor,
    weights: Tensor,
    rates: Tensor,
    support_x: Tensor,
    support_y: Tensor,
    support_mask: Tensor | None,
    query_x: Tensor,
    query_y: Tensor,
    query_mask: Tensor | None,
    classes: Tensor | None,
    batches: Tensor | None,
    stats: Tensor | None,
    query_weights: Tensor,
    task_weights: Tensor | None,
    steps: int,
    order: int,
    rule: int,
    momentum: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    prox: float,
    seed: int,
    first_task: int,
    memory_budget: int,
    task_losses: Tensor,
    support_losses: Tensor | None,
    query_losses: Tensor | None,
    logits: Tensor | None,
    grad_weights: Tensor | None,
    grad_rates: Tensor | None,
    grad_support_x: Tensor | None,
    grad_query_x: Tensor | None,
    adapted: Tensor | None,
    batch_stats: Tensor | None,
) -> None:
    """`inner_loop.py`; stores every step, whatever the memory budget."""
    parsed = decode(program, attributes)
    tasks = support_x.shape[0]
    start = weights.expand(tasks, parsed.numel)
    steady = torch.cat([torch.full((p.numel,), p.adapted, device=weights.device) for p in parsed.params])
    optimizer = Rule(rule, momentum, beta2, eps, weight_decay, prox)
    wanted = [float(w) for w in query_weights]
    if task_weights is None:
        share = torch.full((tasks,), 1 / tasks, dtype=weights.dtype, device=weights.device)
    else:
        share = task_weights.to(weights.dtype)
    active = (share != 0)[:, None]
    statistics = []

    def query(theta: Tensor, k: int) -> Tape:
        data = (query_x, query_y, query_mask, classes, _row(stats, k))
        return TAPE.get()(parsed, theta, *data, seed, QUERY_STEP + k, first_task)

    def examples(k: int) -> Tensor | None:
        if batches is None:
            return None
        rows = batches[..., k, :]
        return rows.expand(tasks, -1)

    def support(theta: Tensor, k: int) -> Tape:
        index = examples(k)
        mask = None if support_mask is None else _pick(support_mask, index)
        data = (_pick(support_x, index), _pick(support_y, index), mask, classes, _row(stats, k))
        return TAPE.get()(parsed, theta, *data, seed, k, first_task, index)

    rate = [torch.where(steady, _expand(rates[k if rates.shape[0] > 1 else 0], parsed), 0) for k in range(steps)]
    theta, tapes, updates, queries = start, [], [], {}
    total = weights.new_zeros(tasks)
    for k in range(steps + 1):
        if wanted[k] != 0 or (k == steps and (logits is not None or batch_stats is not None)):
            tape = query(theta, k)
            if wanted[k] != 0:
                queries[k] = tape
                total += wanted[k] * tape.losses
            if query_losses is not None:
                query_losses[:, k] = tape.losses
            if k == steps:
                if logits is not None:
                    logits.copy_(tape.logits)
                statistics.append(tape.batch_stats())
        elif query_losses is not None:
            query_losses[:, k] = math.nan
        if k == steps:
            break
        tape = support(theta, k)
        statistics.append(tape.batch_stats())
        if support_losses is not None:
            support_losses[:, k] = tape.losses
        tapes.append(tape)
        updates.append(optimizer.update(tape.gradient()[0], theta, start))
        theta = theta - rate[k] * updates[k]
    task_losses.copy_(total)
    if adapted is not None:
        adapted.copy_(theta)
    if batch_stats is not None:
        mean = torch.stack(statistics) / active.sum().clamp(min=1)
        batch_stats.copy_(torch.where(active, mean, 0).sum(1))
    for output in (grad_weights, grad_rates, grad_support_x, grad_query_x):
        if output is not None:
            output.zero_()
    if order == 0:
        return

    bar = torch.zeros_like(start)
    start_bar = torch.zeros_like(start)
    for k in range(steps, -1, -1):
        if k in queries:
            gradient, dx = queries[k].gradient()
            bar = bar + (share * wanted[k])[:, None] * gradient
            if grad_query_x is not None and dx is not None:
                weight = (share * wanted[k]).view(-1, *[1] * (dx.dim() - 1))
                grad_query_x.add_(torch.where(weight != 0, weight * dx, 0))
        if k == 0:
            break
        if grad_rates is not None:
            rate_bar = -torch.where(active & steady, updates[k - 1] * bar, 0).sum(0)
            grad_rates[k - 1 if rates.shape[0] > 1 else 0] += _gather(rate_bar, parsed, rates.shape[1])
        d_bar = optimizer.backward(-rate[k - 1] * bar)
        bar = bar + (weight_decay + prox) * d_bar
        start_bar = start_bar - prox * d_bar
        if order == 2:
            product, mixed = tapes[k - 1].hvp(d_bar)
            bar = bar + product
            if grad_support_x is not None and mixed is not None:
                mixed = torch.where(active.view(-1, *[1] * (mixed.dim() - 1)), mixed, 0)
                index = examples(k - 1)
                if index is None:
                    grad_support_x.add_(mixed)
                else:
                    rows = torch.arange(tasks, device=mixed.device)[:, None].expand_as(index)
                    grad_support_x.index_put_((rows, index), mixed, accumulate=True)
    if grad_weights is not None:
        total_bar = torch.where(active, bar + start_bar, 0)
        grad_weights.copy_(total_bar if weights.dim() == 2 else total_bar.sum(0))
