"""SGD with momentum, Nesterov momentum and coupled weight decay over a bucket of tensors, in one memory pass.

    g   = ± clip / grad_scale * grad + weight_decay * p
    b   = momentum b + (1 - dampening) g           (b = g at a tensor's first step)
    u_t = g + momentum b (Nesterov), b (momentum), or g
    p   = p - lr u_t
    stats = (g·g, g·u_{t-1}, u_{t-1}·u_{t-1}, p·p)  with the p before the update

u_{t-1} is the old b for plain momentum; otherwise it is known only where the arena `previous` keeps it, and else 0.

1. Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in deep learning, ICML 2013,
   in the form of `torch.optim.SGD`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _bucket, _triton
from ._define import define
from ._rounding import rounding_key
from ._triton import jit, tl

TENSORS = (
    "Tensor(a!)[] params, Tensor[] grads, Tensor(b!)? momentum_buffer, Tensor(c!)? previous, Tensor(d!)? master, "
    "Tensor(e!) step, Tensor(f!) stats, Tensor(g!) partials, Tensor items, Tensor chunks, "
    "Tensor lr, Tensor? grad_scale, Tensor? found_inf, Tensor? clip"
)
OPTIONS = (
    "float lr_scale, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, int seed=-1"
)
SCHEMA = f"sgd({TENSORS}, {OPTIONS}) -> ()"


def direction(
    g: Tensor, buffer: Tensor | None, first: bool, momentum: float, dampening: float, nesterov: bool
) -> tuple[Tensor, Tensor | None]:
    """(u_t, b_t)."""
    if buffer is None:
        return g, None
    buffer = g if first else momentum * buffer + (1.0 - dampening) * g
    return (g + momentum * buffer if nesterov else buffer), buffer


@torch.no_grad()
def reference(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffer: Tensor | None,
    previous: Tensor | None,
    master: Tensor | None,
    step: Tensor,
    stats: Tensor,
    partials: Tensor,
    items: Tensor,
    chunks: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
    lr_scale: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The step in plain PyTorch: fp32 maths whatever the storage dtype, float64 for float64 parameters."""
    _bucket.check(params, grads, items)
    if _bucket.skipped(found_inf):
        return
    for param, grad, row in zip(params, grads, items.tolist(), strict=True):
        slot = row[0]
        step[slot] += 1
        t = float(step[slot])
        key = None if seed < 0 else rounding_key(seed, slot, int(t))
        s = _bucket.Segments(param, grad, (momentum_buffer, previous), master, row, key)
        buffer, u_old = s.states
        g = s.g * _bucket.gradient_scale(grad_scale, clip, maximize, param.device)
        if weight_decay != 0:
            g = g + weight_decay * s.p
        if u_old is None:
            u_old = torch.zeros_like(g) if buffer is None else buffer
        u_new, buffer = direction(g, buffer, t == 1, momentum, dampening, nesterov)
        rate = lr[slot if lr.numel() > 1 else 0].to(s.dtype) * lr_scale
        _bucket.write_stats(stats, slot, g, u_old, s.p)
        s.store_param(s.p - rate * u_new)
        s.store_states(buffer, u_new)


@jit
def triton_hyper(o: tl.tuple, FLAGS: tl.constexpr, t: tl.tensor, lr: tl.tensor, g_mul: tl.tensor) -> tl.tuple:
    """The scalars of one tensor at step t: at its first step the buffer becomes the gradient."""
    first = t <= 1.0
    return tl.where(first, 0.0, o[0]), tl.where(first, 1.0, o[1]), lr, g_mul, o[2], o[0]


@jit
def triton_direction(
    h: tl.tuple, FLAGS: tl.constexpr, g: tl.tensor, buffer: tl.tensor, previous: tl.tensor
) -> tl.tuple:
    """(u_{t-1}, u_t, b_t, kept u_t) for FLAGS = (momentum, previous, nesterov)."""
    u_old = previous if FLAGS[1] else buffer
    u_new = g
    if FLAGS[0]:
        buffer = h[0] * buffer + h[1] * g
        u_new = g + h[5] * buffer if FLAGS[2] else buffer
    if FLAGS[1]:
        previous = u_new
    return u_old, u_new, buffer, previous


@jit
def triton_step(
    h: tl.tuple,
    FLAGS: tl.constexpr,
    g: tl.tensor,
    p: tl.tensor,
    buffer: tl.tensor,
    previous: tl.tensor,
    spare: tl.tensor,
    rate: tl.tensor,
) -> tl.tuple:
    """One element: (g, u_{t-1}, p, buffer, previous, -, -)."""
    g = g * h[3] + h[4] * p
    u_old, u_new, buffer, previous = triton_direction(h, FLAGS, g, buffer, previous)
    p = p - h[2] * u_new
    return g, u_old, p, buffer, previous, spare, rate


def run_triton(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffer: Tensor | None,
    previous: Tensor | None,
    master: Tensor | None,
    step: Tensor,
    stats: Tensor,
    partials: Tensor,
    items: Tensor,
    chunks: Tensor,
    lr: Tensor,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    clip: Tensor | None,
    lr_scale: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The step by Triton."""
    states = (0 if momentum_buffer is None else _triton.S0) | (0 if previous is None else _triton.S1)
    _triton.run(
        triton_hyper, triton_step, (momentum_buffer is not None, previous is not None, nesterov),
        (momentum, 1.0 - dampening, weight_decay), _triton.P | _triton.G | states, _triton.P | states,
        params, grads, (momentum_buffer, previous), master, step, stats, partials, items,
        chunks, lr, grad_scale, found_inf, clip, lr_scale, maximize, seed,
    )  # fmt: skip


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples that exercise the op: plain, momentum, Nesterov with a kept direction, masters, scaling."""
    numels = (0, 1, 63, 4097)
    samples = []
    for momentum, nesterov, kept, master, scaled in (
        (0.0, False, False, False, False),
        (0.9, False, False, False, False),
        (0.9, True, True, False, False),
        (0.0, False, True, True, True),
    ):
        params, grads, arenas, layout = _bucket.sample_bucket(numels, 3, seed=seed, device=device, dtype=dtype)
        step = torch.tensor([0.0, 1.0, 0.0, 1000.0], device=device)
        stats = torch.zeros(len(numels), 4, dtype=torch.float64, device=device)
        rates = torch.linspace(0.5, 1.0, len(numels)) if master else torch.ones(1)
        lr = rates.to(device, torch.float64)
        extra = [torch.tensor(value, device=device) if scaled else None for value in (8.0, 0.0, 0.5)]
        samples.append(
            (params, grads, arenas[0] if momentum else None, arenas[1] if kept else None, arenas[2] if master else None)
            + (step, stats, layout.partials, layout.items, layout.chunks, lr, *extra)
            + (1e-2, momentum, 0.1 if momentum and not nesterov else 0.0, 1e-2, nesterov, scaled, -1)
        )
    return samples


OP = define(SCHEMA, reference, sample_inputs, triton=run_triton)
