"""Adam with a hypergradient where one pass of `adam` is not enough (AdamHD, Baydin et al. 2018, Algorithm 5).

    OBSERVE  moves the moments and gives g·u; the rate is then updated from all tensors (`hyper_rate`)
    APPLY    moves the parameters with that rate: together the exact form, in 36 bytes per parameter
    ELEMENT  one rate per element, r <- rule(r, g u_{t-1}), used in the same pass: exact by itself

For one element the cosine is a sign, so `normalized` and `sign` are the same rule there.

1. Baydin, Cornish, Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _bucket, _triton, adam
from ._define import define
from ._rounding import rounding_key
from ._triton import jit, tl
from .adam import triton_moments

OBSERVE, APPLY, ELEMENT = 0, 1, 2
RULES = ("additive", "multiplicative", "normalized", "sign")

HYPER_OPTIONS = "Tensor({}!)? rate, int phase, int hyper_rule, float hyper_lr, float lr_min, float lr_max"
SCHEMA = f"hyper_adam({adam.TENSORS}, {HYPER_OPTIONS.format('i')}, {adam.OPTIONS}) -> ()"


def exp(x: float) -> float:
    """e^x, infinite where Python's would raise."""
    return math.exp(x) if x < 709.0 else math.inf


def element_rate(rate: Tensor, gu: Tensor, hyper_rule: int, hyper_lr: float, lr_min: float, lr_max: float) -> Tensor:
    """The new rate of each element from its own product g u; a product that is not finite leaves it alone."""
    gu = torch.where(gu.isfinite(), gu, 0.0)
    rule = RULES[hyper_rule]
    if rule == "additive":
        rate = rate + hyper_lr * gu
    elif rule == "multiplicative":
        rate = rate * (1.0 + hyper_lr * gu.sign())
    else:
        rate = rate * torch.where(gu == 0, 1.0, torch.where(gu > 0, exp(hyper_lr), exp(-hyper_lr)).to(rate.dtype))
    return rate.clamp(lr_min, lr_max)


@torch.no_grad()
def reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
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
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The passes in plain PyTorch. `rate` is the arena of element rates; `lr` is used as in `adam`."""
    _bucket.check(params, grads, items)
    if _bucket.skipped(found_inf):
        return
    arenas = (exp_avg, exp_avg_sq, max_exp_avg_sq, rate)
    for param, grad, row in zip(params, grads, items.tolist(), strict=True):
        slot = row[0]
        step[slot] += phase != APPLY
        t = float(step[slot])
        s = _bucket.Segments(param, grad, arenas, master, row, None if seed < 0 else rounding_key(seed, slot, int(t)))
        m, v, vmax, r = s.states
        assert m is not None and v is not None
        scheduled = lr[slot if lr.numel() > 1 else 0].to(s.dtype) * lr_scale
        decay = weight_decay if decoupled else 0.0
        if phase == APPLY:
            k, e = adam.bias(t, beta1, beta2, eps)
            direction = k * m / ((v if vmax is None else vmax).sqrt() + e)
            _bucket.write_stats(stats, slot, None, None, s.p)
            s.store_param(s.p * (1.0 - scheduled * decay) - scheduled * direction)
            continue
        g = s.g * _bucket.gradient_scale(grad_scale, clip, maximize, param.device)
        coupled = not decoupled and weight_decay != 0
        if coupled:
            g = g + weight_decay * s.p
        u_old, u_new, m, v, vmax = adam.move_moments(g, m, v, vmax, t, beta1, beta2, eps)
        _bucket.write_stats(stats, slot, g, u_old, s.p if phase == ELEMENT or coupled else None)
        if phase == ELEMENT:
            assert r is not None
            r = element_rate(r, g * u_old, hyper_rule, hyper_lr, lr_min, lr_max)
            s.store_param(s.p - r * scheduled * (u_new + decay * s.p))
        s.store_states(m, v, vmax, r)


@jit
def triton_element_rate(
    rate: tl.tensor, gu: tl.tensor, additive: tl.tensor, up: tl.tensor, down: tl.tensor, lo: tl.tensor, hi: tl.tensor
) -> tl.tensor:
    """`element_rate`."""
    gu = tl.where(tl.abs(gu) <= 3.4028235e38, gu, 0.0)
    factor = tl.where(gu > 0.0, up, tl.where(gu < 0.0, down, 1.0))
    return tl.minimum(tl.maximum(rate * factor + additive * gu, lo), hi)


@jit
def triton_hyper(o: tl.tuple, FLAGS: tl.constexpr, t: tl.tensor, lr: tl.tensor, g_mul: tl.tensor) -> tl.tuple:
    """The scalars of one tensor at step t: those of Adam, then those of the element's rate."""
    k_old, e_old = _triton.adam_bias(t - 1.0, o[0], o[1], o[2])
    k_new, e_new = _triton.adam_bias(t, o[0], o[1], o[2])
    adam = (k_old, e_old, k_new, e_new, lr, g_mul, o[3], o[4], o[5], o[6], o[7])
    return adam, o[8], o[9], o[10], o[11], o[12]


@jit
def triton_step(
    h: tl.tuple,
    FLAGS: tl.constexpr,
    g: tl.tensor,
    p: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    vmax: tl.tensor,
    rate: tl.tensor,
) -> tl.tuple:
    """One element in the phase FLAGS[1]: (g, u_{t-1}, p, m, v, max v, rate)."""
    a = h[0]
    u_old = g
    if FLAGS[1] == 1:
        p = p * (1.0 - a[4] * a[10]) - a[4] * (a[2] * m / (tl.sqrt(vmax if FLAGS[0] else v) + a[3]))
    else:
        g = g * a[5] + a[9] * p
        u_old, u_new, m, v, vmax = triton_moments(a, FLAGS[0], g, m, v, vmax)
        if FLAGS[1] == 2:
            rate = triton_element_rate(rate, g * u_old, h[1], h[2], h[3], h[4], h[5])
            p = p - rate * a[4] * (u_new + a[10] * p)
    return g, u_old, p, m, v, vmax, rate


def triton_rate_options(hyper_rule: int, hyper_lr: float, lr_min: float, lr_max: float) -> tuple[float, ...]:
    """What `triton_element_rate` reads after the rate and g u."""
    rule = RULES[hyper_rule]
    if rule == "additive":
        return (hyper_lr, 1.0, 1.0, lr_min, lr_max)
    if rule == "multiplicative":
        return (0.0, 1.0 + hyper_lr, 1.0 - hyper_lr, lr_min, lr_max)
    return (0.0, exp(hyper_lr), exp(-hyper_lr), lr_min, lr_max)


def run_triton(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
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
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The passes by Triton."""
    states = _triton.S0 | _triton.S1 | (_triton.S2 if max_exp_avg_sq is not None else 0)
    if phase == ELEMENT:
        states |= _triton.S3
    moves_p = phase != OBSERVE
    reads_p = _triton.P if moves_p or (not decoupled and weight_decay != 0) else 0
    _triton.run(
        triton_hyper, triton_step, (max_exp_avg_sq is not None, phase),
        adam.triton_options(beta1, beta2, eps, weight_decay, decoupled)
        + triton_rate_options(hyper_rule, hyper_lr, lr_min, lr_max),
        states | reads_p | (0 if phase == APPLY else _triton.G),
        (0 if phase == APPLY else states) | (_triton.P if moves_p else 0),
        params, grads, (exp_avg, exp_avg_sq, max_exp_avg_sq, rate), master, step, stats, partials, items,
        chunks, lr, grad_scale, found_inf, clip, lr_scale, maximize, seed,
        has_stats=phase != APPLY, counts_step=phase != APPLY,
    )  # fmt: skip


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Every phase on every sample of `adam`, and every element rule."""
    samples = []
    for phase, hyper_rule in ((OBSERVE, 0), (APPLY, 0), *((ELEMENT, rule) for rule in range(len(RULES)))):
        for args in adam.sample_inputs(device, dtype, seed):
            rate = torch.full_like(args[2], 1e-2) if phase == ELEMENT else None
            if phase == APPLY:
                args[6].add_(1)  # the step that OBSERVE has counted
            samples.append((*args[:15], rate, phase, hyper_rule, 0.02, 1e-8, 10.0, *args[15:]))
    return samples


OP = define(SCHEMA, reference, sample_inputs, triton=run_triton)
