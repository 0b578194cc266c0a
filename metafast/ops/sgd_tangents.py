"""SGD over lists of tensors, in one pass that also carries tangents of hyperparameters (`_tangents.py`).

The step is that of `sgd.py`. With a dot for the derivative by one value, and options lr, momentum (mu), dampening and
weight_decay (wd):

    g.  = ± dg/dh + wd p. + wd. p
    b.  = mu b. + mu. b + (1 - dampening) g. - dampening. g          (b. = g. at a tensor's first step)
    u.  = g. + mu b. + mu. b (Nesterov, with the new b), b. (momentum), or g.
    p.  = p. - lr. u - lr u.

1. Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in deep learning, ICML 2013,
   in the form of `torch.optim.SGD`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _tangents
from ._define import define
from .sgd import direction

OPTIONS = ("lr", "momentum", "dampening", "weight_decay")
SCHEMA = (
    "sgd_tangents(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffer, "
    f"{_tangents.TAIL}, bool nesterov, bool maximize) -> ()"
)


def step_of(
    primal: list[Tensor], grad: Tensor, options: list[float], step: float, *, nesterov: bool, maximize: bool
) -> tuple[list[Tensor], _tangents.Push]:
    """The new p and, with momentum, b; and the function that moves tangents."""
    p, lr, momentum, dampening, wd = primal[0], *options
    first, sign = step == 1, -1.0 if maximize else 1.0
    g = sign * grad + wd * p
    b = primal[1] if len(primal) > 1 else None
    u, b_new = direction(g, b, first, momentum, dampening, nesterov)

    def push(before: list[Tensor], moving: Tensor, speeds: list[float]) -> list[Tensor]:
        zp, lr_, momentum_, dampening_, wd_ = before[0], *speeds
        g_ = sign * moving + wd * zp + wd_ * p
        u_, states = g_, []
        if b is not None and b_new is not None:
            b_ = g_
            if not first:
                b_ = momentum * before[1] + momentum_ * b + (1.0 - dampening) * g_ - dampening_ * g
            u_, states = (g_ + momentum * b_ + momentum_ * b_new if nesterov else b_), [b_]
        return [zp - lr_ * u - lr * u_, *states]

    return [p - lr * u, *([] if b_new is None else [b_new])], push


@torch.no_grad()
def reference(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffer: list[Tensor],
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
    nesterov: bool,
    maximize: bool,
) -> None:
    """The step and the tangents in plain PyTorch, in the tensors' dtype; no buffers: no momentum."""
    call = _tangents.Tangents(
        tangents, grad_tangents, items, chunks, step, options, seeds, values, decay, fresh
    )  # fmt: skip
    states = (momentum_buffer,) if momentum_buffer else ()
    call.run(params, grads, states, partial(step_of, nesterov=nesterov, maximize=maximize))


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples that exercise the op, with momentum and without; float32 alone has tangents."""
    flags = ((False, False), (False, True), (True, True), (True, False))
    samples = _tangents.sample_inputs(1, [1e-2, 0.9, 0.1, 0.1], flags, device, seed)
    plain = _tangents.sample_inputs(0, [1e-2, 0.0, 0.0, 0.1], ((False, False),) * 4, device, seed)
    return [*samples, *((*sample[:2], [], *sample[2:]) for sample in plain)]


OP = define(SCHEMA, reference, sample_inputs)
