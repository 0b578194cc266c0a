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

from . import _bucket, adam
from ._define import define
from ._rounding import rounding_key

OBSERVE, APPLY, ELEMENT = 0, 1, 2
RULES = ("additive", "multiplicative", "normalized", "sign")

HYPER_OPTIONS = "Tensor({}!)? rate, int phase, int hyper_rule, float hyper_lr, float lr_min, float lr_max"
SCHEMA = f"hyper_adam({adam.TENSORS}, {HYPER_OPTIONS.format('i')}, {adam.OPTIONS}) -> ()"


def element_rate(rate: Tensor, gu: Tensor, hyper_rule: int, hyper_lr: float, lr_min: float, lr_max: float) -> Tensor:
    """The new rate of each element from its own product g u; a product that is not finite leaves it alone."""
    gu = torch.where(gu.isfinite(), gu, 0.0)
    rule = RULES[hyper_rule]
    if rule == "additive":
        rate = rate + hyper_lr * gu
    elif rule == "multiplicative":
        rate = rate * (1.0 + hyper_lr * gu.sign())
    else:
        rate = rate * torch.where(
            gu == 0, 1.0, torch.where(gu > 0, math.exp(hyper_lr), math.exp(-hyper_lr)).to(rate.dtype)
        )
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


OP = define(SCHEMA, reference, sample_inputs)
