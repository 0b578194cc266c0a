"""Autograd around gradients that are already there, and around the ops of one gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ONCE = (
    b"the gradient of an inner loop is computed eagerly, so it cannot be differentiated again: call backward() or "
    b"torch.autograd.grad() without create_graph=True. For derivatives of your own use InnerLoop.gradient"
)


def _once(grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What a backward pass returns: an error waits for those who differentiate it once more."""
    if not torch.is_grad_enabled():
        return tuple(grads)
    delayed = torch._C._functions.DelayedError(_ONCE, 1)
    return tuple(None if g is None else delayed(g.detach().requires_grad_()) for g in grads)


class Attach(torch.autograd.Function):
    """`attach(value, gradients, *inputs)`: a value whose derivative to each input is known."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, finish: Callable[[Tensor], list[Tensor | None]], kept: list[Tensor], *inputs: Tensor
    ) -> Tensor:
        ctx.finish = finish
        ctx.save_for_backward(*kept)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, None, *_once(ctx.finish(grad.detach(), *ctx.saved_tensors))


class TaskGrad(torch.autograd.Function):
    """(losses, logits, gradients) of tasks; the backward is the Hessian's product."""

    @staticmethod
    def forward(ctx: Any, compute: Any, product: Any, params: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        wants_x = ctx.needs_input_grad[3]
        losses, logits, grads, grad_x = compute(params, x, wants_x)
        ctx.product = product
        ctx.save_for_backward(params, x, grads, *([grad_x] if wants_x else []))
        ctx.mark_non_differentiable(logits)
        return losses, logits, grads

    @staticmethod
    def backward(ctx: Any, d_losses: Tensor | None, _: Any, d_grads: Tensor | None) -> Any:
        params, x, grads, *rest = ctx.saved_tensors
        d_params: Tensor | None = None
        d_x: Tensor | None = None
        with torch.no_grad():
            if d_losses is not None:
                d_params = d_losses[:, None] * grads
                if rest:
                    d_x = rest[0] * d_losses.view(-1, *[1] * (x.dim() - 1))
            if d_grads is not None:
                hvp, mixed = ctx.product(params, x, d_grads, bool(rest))
                d_params = hvp if d_params is None else d_params + hvp
                if rest:
                    d_x = mixed if d_x is None else d_x + mixed
        return None, None, *_once([d_params, d_x])
