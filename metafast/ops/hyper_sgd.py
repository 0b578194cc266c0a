"""SGD with a hypergradient where one pass of `sgd` is not enough (SGD-HD, Baydin et al. 2018, Algorithms 4 and 6).

    OBSERVE  only gives g·g, g·u and u·u of the kept direction u; the rate is then updated (`hyper_rate`) and `sgd` runs
    ELEMENT  one rate per element, r <- rule(r, g u_{t-1}), used in the same pass: exact by itself

1. Baydin, Cornish, Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _bucket, sgd
from ._define import define
from ._rounding import rounding_key
from .hyper_adam import ELEMENT, HYPER_OPTIONS, OBSERVE, RULES, element_rate

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


OP = define(SCHEMA, reference, sample_inputs)
