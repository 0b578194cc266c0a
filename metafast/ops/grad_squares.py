"""The sum of squares of each gradient of a bucket, for clipping by the norm of all of them in the step's own pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _bucket
from ._define import define

SCHEMA = "grad_squares(Tensor[] grads, Tensor(a!) squares, Tensor(b!) partials, Tensor items, Tensor chunks) -> ()"


@torch.no_grad()
def reference(grads: list[Tensor], squares: Tensor, partials: Tensor, items: Tensor, chunks: Tensor) -> None:
    """`squares` float64 `[slots]` gets Σ g² of each tensor that `items` names."""
    for grad, row in zip(grads, items.tolist(), strict=True):
        squares[row[0]] = _bucket.flat(grad).double().square().sum()


def sample_inputs(device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[tuple[Any, ...]]:
    """Gradients of several sizes."""
    numels = (0, 1, 63, 4097, 40000)
    _, grads, _, layout = _bucket.sample_bucket(numels, 0, seed=seed, device=device, dtype=dtype)
    squares = torch.zeros(len(numels), dtype=torch.float64, device=device)
    return [(grads, squares, layout.partials, layout.items, layout.chunks)]


OP = define(SCHEMA, reference, sample_inputs)
