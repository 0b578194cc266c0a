"""Adam, AdamW and AMSGrad over a bucket of tensors, in one memory pass that also returns the statistics.

With `k = sqrt(1 - beta2^t) / (1 - beta1^t)` and `e = eps sqrt(1 - beta2^t)`:

    g   = ± clip / grad_scale * grad + [coupled] weight_decay * p
    m   = m + (1 - beta1) (g - m)
    v   = beta2 v + (1 - beta2) g²
    u_t = k m / (sqrt(v) + e)                      (amsgrad: the running maximum of v instead of v)
    p   = (1 - lr [decoupled] weight_decay) p - lr u_t
    stats = (g·g, g·u_{t-1}, u_{t-1}·u_{t-1}, p·p)  with the p before the update

1. Kingma & Ba, Adam, ICLR 2015 (Algorithm 1).
2. Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019 (Algorithm 2).
3. Reddi, Kale & Kumar, On the convergence of Adam and beyond, ICLR 2018.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _bucket, _triton
from ._define import define
from ._rounding import rounding_key
from ._triton import jit, tl

TENSORS = (
    "Tensor(a!)[] params, Tensor[] grads, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? max_exp_avg_sq, "
    "Tensor(e!)? master, Tensor(f!) step, Tensor(g!) stats, Tensor(h!) partials, Tensor items, Tensor chunks, "
    "Tensor lr, Tensor? grad_scale, Tensor? found_inf, Tensor? clip"
)
OPTIONS = (
    "float lr_scale, float beta1, float beta2, float eps, float weight_decay, bool decoupled, bool maximize, "
    "int seed=-1"
)
SCHEMA = f"adam({TENSORS}, {OPTIONS}) -> ()"

MIN_EPS = 1e-18  # keeps the product of two denominators a normal float


def bias(step: float, beta1: float, beta2: float, eps: float) -> tuple[float, float]:
    """(k, e): the scale of the direction and the eps of step t = 1, 2, …; before the first, a direction of zero."""
    if step < 1:
        return 0.0, 1.0
    root = math.sqrt(1.0 - beta2**step)
    return root / (1.0 - beta1**step), max(eps * root, MIN_EPS)


def move_moments(
    g: Tensor, m: Tensor, v: Tensor, vmax: Tensor | None, step: float, beta1: float, beta2: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(u_{t-1}, u_t, m, v, max v) at step t."""
    k_old, e_old = bias(step - 1, beta1, beta2, eps)
    k_new, e_new = bias(step, beta1, beta2, eps)
    u_old = k_old * m / ((v if vmax is None else vmax).sqrt() + e_old)
    m = m + (g - m) * (1.0 - beta1)
    v = beta2 * v + (1.0 - beta2) * g * g
    if vmax is not None:
        vmax = torch.maximum(v, vmax)
    u_new = k_new * m / ((v if vmax is None else vmax).sqrt() + e_new)
    return u_old, u_new, m, v, vmax


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
    lr_scale: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The step in plain PyTorch: fp32 maths whatever the storage dtype, float64 for float64 parameters."""
    _bucket.check(params, grads, items)
    if _bucket.skipped(found_inf):
        return
    arenas = (exp_avg, exp_avg_sq, max_exp_avg_sq)
    for param, grad, row in zip(params, grads, items.tolist(), strict=True):
        slot = row[0]
        step[slot] += 1
        t = float(step[slot])
        s = _bucket.Segments(param, grad, arenas, master, row, None if seed < 0 else rounding_key(seed, slot, int(t)))
        m, v, vmax = s.states
        assert m is not None and v is not None
        g = s.g * _bucket.gradient_scale(grad_scale, clip, maximize, param.device)
        if not decoupled and weight_decay != 0:
            g = g + weight_decay * s.p
        u_old, u_new, m, v, vmax = move_moments(g, m, v, vmax, t, beta1, beta2, eps)
        rate = lr[slot if lr.numel() > 1 else 0].to(s.dtype) * lr_scale
        p = s.p * (1.0 - rate * weight_decay) if decoupled else s.p
        _bucket.write_stats(stats, slot, g, u_old, s.p)
        s.store_param(p - rate * u_new)
        s.store_states(m, v, vmax)


@jit
def triton_hyper(o: tl.tuple, FLAGS: tl.constexpr, t: tl.tensor, lr: tl.tensor, g_mul: tl.tensor) -> tl.tuple:
    """The scalars of one tensor at step t, from `triton_options`."""
    k_old, e_old = _triton.adam_bias(t - 1.0, o[0], o[1], o[2])
    k_new, e_new = _triton.adam_bias(t, o[0], o[1], o[2])
    return k_old, e_old, k_new, e_new, lr, g_mul, o[3], o[4], o[5], o[6], o[7]


@jit
def triton_moments(
    h: tl.tuple, AMSGRAD: tl.constexpr, g: tl.tensor, m: tl.tensor, v: tl.tensor, vmax: tl.tensor
) -> tl.tuple:
    """`move_moments`."""
    u_old = h[0] * m / (tl.sqrt(vmax if AMSGRAD else v) + h[1])
    m = m + (g - m) * h[6]
    v = v * h[7] + h[8] * g * g
    if AMSGRAD:
        vmax = tl.maximum(v, vmax)
    u_new = h[2] * m / (tl.sqrt(vmax if AMSGRAD else v) + h[3])
    return u_old, u_new, m, v, vmax


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
    """One element: (g, u_{t-1}, p, m, v, max v, rate)."""
    g = g * h[5] + h[9] * p
    u_old, u_new, m, v, vmax = triton_moments(h, FLAGS[0], g, m, v, vmax)
    p = p * (1.0 - h[4] * h[10]) - h[4] * u_new
    return g, u_old, p, m, v, vmax, rate


def triton_options(beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool) -> tuple[float, ...]:
    """What `triton_hyper` reads."""
    logs = (_triton.log_beta(beta1), _triton.log_beta(beta2))
    decay = (0.0, weight_decay) if decoupled else (weight_decay, 0.0)
    return (*logs, eps, 1.0 - beta1, beta2, 1.0 - beta2, *decay)


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
    lr_scale: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    seed: int = -1,
) -> None:
    """The step by Triton."""
    states = _triton.S0 | _triton.S1 | (_triton.S2 if max_exp_avg_sq is not None else 0)
    _triton.run(
        triton_hyper, triton_step, (max_exp_avg_sq is not None,),
        triton_options(beta1, beta2, eps, weight_decay, decoupled), _triton.P | _triton.G | states, _triton.P | states,
        params, grads, (exp_avg, exp_avg_sq, max_exp_avg_sq), master, step, stats, partials, items,
        chunks, lr, grad_scale, found_inf, clip, lr_scale, maximize, seed,
    )  # fmt: skip


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples that exercise the op: plain, amsgrad with coupled decay, masters, per-slot rates, scaling."""
    numels = (0, 1, 63, 4097)
    samples = []
    for amsgrad, master, decoupled, scaled in (
        (False, False, True, False),
        (True, False, False, False),
        (False, True, True, True),
    ):
        params, grads, arenas, layout = _bucket.sample_bucket(numels, 4, seed=seed, device=device, dtype=dtype)
        arenas[0] = arenas[0].sqrt() - 0.5  # m has both signs
        step = torch.tensor([0.0, 1.0, 5.0, 1000.0], device=device)
        stats = torch.zeros(len(numels), 4, dtype=torch.float64, device=device)
        rates = torch.linspace(0.5, 1.0, len(numels)) if master else torch.ones(1)
        lr = rates.to(device, torch.float64)
        extra = [torch.tensor(value, device=device) if scaled else None for value in (8.0, 0.0, 0.5)]
        samples.append(
            (params, grads, arenas[0], arenas[1], arenas[2] if amsgrad else None, arenas[3] if master else None, step)
            + (stats, layout.partials, layout.items, layout.chunks, lr, *extra)
            + (1e-2, 0.9, 0.999, 1e-8, 1e-2, decoupled, scaled, -1)
        )
    return samples


OP = define(SCHEMA, reference, sample_inputs, triton=run_triton)
