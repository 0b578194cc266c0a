"""SGD with a hypergradient where one pass of `sgd` is not enough (SGD-HD, Baydin et al. 2018, Algorithms 4 and 6).

    OBSERVE  only gives g·g, g·u and u·u of the kept direction u; the rate is then updated (`hyper_rate`) and `sgd` runs
    ELEMENT  one rate per element, r <- rule(r, g u_{t-1}), used in the same pass: exact by itself

1. Baydin, Cornish, Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _bucket, _triton, sgd
from ._define import define
from ._rounding import rounding_key
from ._triton import jit, tl
from .hyper_adam import ELEMENT, HYPER_OPTIONS, OBSERVE, RULES, element_rate, triton_element_rate, triton_rate_options
from .sgd import triton_direction

SCHEMA = f"hyper_sgd({sgd.TENSORS}, {HYPER_OPTIONS.format('h')}, {sgd.OPTIONS}) -> ()"


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
    rate: Tensor | None,
    phase: int,
    hyper_rule: int,
    hyper_lr: float,
    lr_min: float,
    lr_max: float,
    lr_scale: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The passes in plain PyTorch. One of `momentum_buffer` and `previous` has to be there."""
    _bucket.check(params, grads, items)
    if _bucket.skipped(found_inf):
        return
    arenas = (momentum_buffer, previous, None, rate)
    for param, grad, row in zip(params, grads, items.tolist(), strict=True):
        slot = row[0]
        step[slot] += phase == ELEMENT
        t = float(step[slot])
        s = _bucket.Segments(param, grad, arenas, master, row, None if seed < 0 else rounding_key(seed, slot, int(t)))
        buffer, u_old, _, r = s.states
        u_old = buffer if u_old is None else u_old
        g = s.g * _bucket.gradient_scale(grad_scale, clip, maximize, param.device)
        if weight_decay != 0:
            g = g + weight_decay * s.p
        _bucket.write_stats(stats, slot, g, u_old, s.p if phase == ELEMENT or weight_decay != 0 else None)
        if phase == OBSERVE:
            continue
        assert r is not None and u_old is not None
        u_new, buffer = sgd.direction(g, buffer, t == 1, momentum, dampening, nesterov)
        r = element_rate(r, g * u_old, hyper_rule, hyper_lr, lr_min, lr_max)
        scheduled = lr[slot if lr.numel() > 1 else 0].to(s.dtype) * lr_scale
        s.store_param(s.p - r * scheduled * u_new)
        s.store_states(buffer, u_new, None, r)


@jit
def triton_hyper(o: tl.tuple, FLAGS: tl.constexpr, t: tl.tensor, lr: tl.tensor, g_mul: tl.tensor) -> tl.tuple:
    """The scalars of one tensor at step t: those of SGD, then those of the element's rate."""
    first = t <= 1.0
    sgd = (tl.where(first, 0.0, o[0]), tl.where(first, 1.0, o[1]), lr, g_mul, o[2], o[0])
    return sgd, o[3], o[4], o[5], o[6], o[7]


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
    """One element in the phase FLAGS[3]: (g, u_{t-1}, p, buffer, previous, -, rate)."""
    s = h[0]
    g = g * s[3] + s[4] * p
    u_old = previous if FLAGS[1] else buffer
    if FLAGS[3] == 2:
        u_old, u_new, buffer, previous = triton_direction(s, FLAGS, g, buffer, previous)
        rate = triton_element_rate(rate, g * u_old, h[1], h[2], h[3], h[4], h[5])
        p = p - rate * s[2] * u_new
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
    rate: Tensor | None,
    phase: int,
    hyper_rule: int,
    hyper_lr: float,
    lr_min: float,
    lr_max: float,
    lr_scale: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The passes by Triton."""
    states = (0 if momentum_buffer is None else _triton.S0) | (0 if previous is None else _triton.S1)
    element = phase == ELEMENT
    observed = _triton.S0 if previous is None else _triton.S1
    reads_p = _triton.P if element or weight_decay != 0 else 0
    _triton.run(
        triton_hyper, triton_step, (momentum_buffer is not None, previous is not None, nesterov, phase),
        (momentum, 1.0 - dampening, weight_decay, *triton_rate_options(hyper_rule, hyper_lr, lr_min, lr_max)),
        _triton.G | reads_p | (states | _triton.S3 if element else observed),
        _triton.P | states | _triton.S3 if element else 0,
        params, grads, (momentum_buffer, previous, None, rate), master, step, stats, partials, items,
        chunks, lr, grad_scale, found_inf, clip, lr_scale, maximize, seed,
        counts_step=element,
    )  # fmt: skip


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Both modes on every sample of `sgd` that keeps a direction, and every element rule."""
    samples = []
    for phase, hyper_rule in ((OBSERVE, 0), *((ELEMENT, rule) for rule in range(len(RULES)))):
        for args in sgd.sample_inputs(device, dtype, seed):
            if args[2] is None and args[3] is None:
                continue
            rate = torch.full((args[0][-1].numel() + 256,), 1e-2, device=device) if phase == ELEMENT else None
            samples.append((*args[:14], rate, phase, hyper_rule, 0.02, 1e-8, 10.0, *args[14:]))
    return samples


OP = define(SCHEMA, reference, sample_inputs, triton=run_triton)
