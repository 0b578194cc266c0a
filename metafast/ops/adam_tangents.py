"""Adam and AdamW over lists of tensors, in one pass that also carries tangents of hyperparameters (`_tangents.py`).

The step is that of `adam.py`. With a dot for the derivative by one value, s = sqrt(v), and options lr, beta1, beta2,
eps and weight_decay (wd):

    g.  = ± dg/dh + [coupled] (wd p. + wd. p)
    m.  = m. + (1 - beta1) (g. - m.) - beta1. (g - m)
    v.  = beta2 v. + 2 (1 - beta2) g g. + beta2. (v - g²)
    d.  = v. / (2 s) + e.                        (0 instead of v. / (2 s) where s is 0)
    u.  = (k. m + k m. - u d.) / d
    p.  = (1 - [decoupled] lr wd) p. - [decoupled] (lr. wd + lr wd.) p - lr. u - lr u.

with the m and v before the step in the first two lines, after it below; k. and e. are the derivatives of the two
scalars by which Adam corrects its bias.

1. Kingma & Ba, Adam, ICLR 2015 (Algorithm 1).
2. Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019 (Algorithm 2).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _tangents
from ._define import define
from .adam import bias

OPTIONS = ("lr", "beta1", "beta2", "eps", "weight_decay")
SCHEMA = (
    "adam_tangents(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq, "
    f"{_tangents.TAIL}, bool decoupled, bool maximize) -> ()"
)


def bias_speed(
    step: float, beta1: float, beta2: float, eps: float, beta1_speed: float, beta2_speed: float, eps_speed: float
) -> tuple[float, float]:
    """(k., e.): how `bias` moves."""
    root, rest = math.sqrt(1.0 - beta2**step), 1.0 - beta1**step
    root_speed = -step * beta2 ** (step - 1.0) * beta2_speed / (2.0 * root)
    k_speed = (root_speed + root * step * beta1 ** (step - 1.0) * beta1_speed / rest) / rest
    return k_speed, eps_speed * root + eps * root_speed


def step_of(
    primal: list[Tensor], grad: Tensor, options: list[float], step: float, *, decoupled: bool, maximize: bool
) -> tuple[list[Tensor], _tangents.Push]:
    """The new p, m and v, and the function that moves tangents."""
    (p, m, v), (lr, beta1, beta2, eps, wd) = primal, options
    coupled, own = (0.0, 1.0) if decoupled else (1.0, 0.0)
    sign = -1.0 if maximize else 1.0
    k, e = bias(step, beta1, beta2, eps)
    g = sign * grad + coupled * wd * p
    m_new = m + (1.0 - beta1) * (g - m)
    v_new = beta2 * v + (1.0 - beta2) * g * g
    s = v_new.sqrt()
    d = s + e
    u = k * m_new / d

    def push(before: list[Tensor], moving: Tensor, speeds: list[float]) -> list[Tensor]:
        (zp, zm, zv), (lr_, beta1_, beta2_, eps_, wd_) = before, speeds
        k_, e_ = bias_speed(step, beta1, beta2, eps, beta1_, beta2_, eps_)
        g_ = sign * moving + coupled * (wd * zp + wd_ * p)
        m_ = zm + (1.0 - beta1) * (g_ - zm) - beta1_ * (g - m)
        v_ = beta2 * zv + 2.0 * (1.0 - beta2) * g * g_ + beta2_ * (v - g * g)
        d_ = torch.where(s > 0, v_ / (2.0 * s), 0.0) + e_
        u_ = (k_ * m_new + k * m_ - u * d_) / d
        p_ = (1.0 - own * lr * wd) * zp - own * (lr_ * wd + lr * wd_) * p - lr_ * u - lr * u_
        return [p_, m_, v_]

    return [(1.0 - own * lr * wd) * p - lr * u, m_new, v_new], push


@torch.no_grad()
def reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    tangents: Tensor,
    grad_tangents: list[Tensor],
    items: Tensor,
    chunks: Tensor,
    step: Tensor,
    options: Tensor,
    seeds: Tensor,
    values: int,
    decay: float,
    fresh: bool,
    decoupled: bool,
    maximize: bool,
) -> None:
    """The step and the tangents in plain PyTorch, in the tensors' dtype."""
    call = _tangents.Tangents(
        tangents, grad_tangents, items, chunks, step, options, seeds, values, decay, fresh
    )  # fmt: skip
    call.run(params, grads, (exp_avg, exp_avg_sq), partial(step_of, decoupled=decoupled, maximize=maximize))


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples that exercise the op; float32 alone has tangents."""
    flags = ((True, False), (False, False), (False, True), (True, True))
    return _tangents.sample_inputs(2, [1e-2, 0.9, 0.99, 1e-3, 0.1], flags, device, seed)


OP = define(SCHEMA, reference, sample_inputs)
