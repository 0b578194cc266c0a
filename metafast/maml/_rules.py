"""The inner optimizers for one task with ordinary autograd, as `Learner.adapt` needs them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metafast.innerloop import SGD, Adam

State = dict[str, Tensor]


def update(
    rule: Any, step: int, params: Tensor, grads: Tensor, rate: float | Tensor, state: State
) -> tuple[Tensor, State]:
    """One differentiable step of flat weights `[P]`; `state` is empty before the first one."""
    state = dict(state)
    if rule.prox:
        start = state.setdefault("start", params)
        grads = grads + rule.prox * (params - start)
    if rule.weight_decay:
        grads = grads + rule.weight_decay * params
    if isinstance(rule, SGD):
        if rule.momentum:
            grads = grads + rule.momentum * state["momentum"] if "momentum" in state else grads
            state["momentum"] = grads
        return params - rate * grads, state
    assert isinstance(rule, Adam)
    first = (1 - rule.beta1) * grads
    second = (1 - rule.beta2) * grads * grads
    if "first" in state:
        first, second = first + rule.beta1 * state["first"], second + rule.beta2 * state["second"]
    state["first"], state["second"] = first, second
    # a root has no derivative at 0, where the gradient was 0 all along
    zero = second == 0
    root = (second.masked_fill(zero, 1.0) / (1 - rule.beta2 ** (step + 1))).sqrt().masked_fill(zero, 0.0)
    return params - rate * first / (1 - rule.beta1 ** (step + 1)) / (root + rule.eps), state
