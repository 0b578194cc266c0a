"""One collective for many tensors, instead of one for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def together(tensors: Sequence[Tensor], collective: Callable[[Tensor], Any]) -> list[Tensor]:
    """What a collective makes of tensors of any shapes, called once for each dtype and device.

    Args:
        tensors: left as they are.
        collective: changes a flat tensor in place, as `torch.distributed.all_reduce` does.

    Returns:
        Tensors of the same shapes.

    Example:
        >>> together([torch.ones(2), torch.ones(1, 1)], lambda flat: flat.mul_(2))
        [tensor([2., 2.]), tensor([[2.]])]
    """
    members: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        members.setdefault((tensor.dtype, tensor.device), []).append(i)
    found = list(tensors)
    for indices in members.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in indices])
        collective(flat)
        for i, part in zip(indices, flat.split([tensors[i].numel() for i in indices]), strict=True):
            found[i] = part.view(tensors[i].shape)
    return found
