"""Copies of a module's structure that hold the same parameters: a second way through one set of weights."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def share(module: Module, *, frozen: bool = False) -> Module:
    """A copy of the modules with the parameters and buffers of the original: no memory but the structure's.

    A module of the copy can be replaced, and the original never notices.

    Args:
        module: anything; it is not changed.
        frozen: parameters of the copy are new ones on the same memory that ask for no gradient, and those of the
            original go on as they were. Otherwise they are the very same parameters.

    Returns:
        The copy.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> twin = share(model)
        >>> twin[0].weight is model[0].weight, twin[0] is model[0]
        (True, False)
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if frozen else parameter
    return copy.deepcopy(module, memo)
