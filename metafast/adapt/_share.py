"""Copies of a module's structure that hold the same parameters, and other modules in the place of some."""

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


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in all the places that the one of that name has."""
    old = model.get_submodule(name)
    for path in [each for each, module in model.named_modules(remove_duplicate=False) if module is old]:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, new)
