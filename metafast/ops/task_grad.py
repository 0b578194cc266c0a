"""Loss, logits and gradient of every task of a batch, each with weights of its own.

    losses[t] = L(model(x[t]; weights[t]), y[t])        mean over the valid examples
    grads[t]  = dlosses[t] / dweights[t]                 of all parameters, adapted or not
    grad_x[t] = dlosses[t] / dx[t]

`program` and `attributes` are described in `_program.py`; T tasks, N examples, P parameters, C logits. `weights` is
`[P]` or `[T, P]`; x `[T, N, ...]` has their dtype or is int64 tokens; y is int64 `[T, N]` or, for mean squared error,
`[T, N, C]`; `mask` (bool `[T, N]`) leaves padding out of everything; with `classes` (int64 `[T]`) task t has the
classes 0 .. classes[t] - 1; `stats` `[1, S]` are the fixed statistics of batch norms. `seed`, `step` and `first_task`
choose the elements that dropout keeps (`_dropout_hash.py`).
"""

from __future__ import annotations

from typing import Any

import torch

from . import _inner_loop_reference, _inner_loop_samples, _triton_inner_loop
from ._define import define

INPUTS = (
    "Tensor program, Tensor attributes, Tensor weights, Tensor x, Tensor y, Tensor? mask, Tensor? classes, "
    "Tensor? stats, int seed, int step, int first_task"
)
SCHEMA = f"task_grad({INPUTS}, Tensor(a!) losses, Tensor(b!)? logits, Tensor(c!)? grads, Tensor(d!)? grad_x) -> ()"


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Argument tuples for a convolutional net, a residual net, an MLP and a bag of embeddings."""
    return _inner_loop_samples.task_grad(device, dtype, seed)


OP = define(SCHEMA, _inner_loop_reference.task_grad, sample_inputs, triton=_triton_inner_loop.task_grad)
