"""All parameters of a model as one flat vector, in the model's own order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Adapted = Sequence[str] | Callable[[str], bool] | None


class Layout:
    """Names, shapes and places of a model's parameters, and which of them the inner loop adapts.

    Args:
        model: the module; its parameters are looked up at every use, so they may be replaced by others of their shape.
        adapted: patterns such as `"classifier.*"`, a predicate of the name, or None for all that require a gradient.

    Raises:
        TypeError: `adapted` is something else.
        ValueError: the model has no parameters, a pattern matches none, or nothing is adapted.
    """

    def __init__(self, model: nn.Module, adapted: Adapted) -> None:
        owners = {id(p): (module, key) for module in model.modules() for key, p in module._parameters.items()}
        named = dict(model.named_parameters())
        if not named:
            raise ValueError(f"model has no parameters to adapt ({type(model).__name__})")
        self.owners = [owners[id(p)] for p in named.values()]
        self.names = tuple(named)
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self.ranks = [len(shape) for shape in self.shapes.values()]
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.numel = sum(self.sizes)
        self.adapted = frozenset(self._adapted(named, adapted))
        if not self.adapted:
            raise ValueError("adapted leaves no parameter to the inner loop; by default those that require a gradient")

    def _adapted(self, named: Mapping[str, Tensor], adapted: Adapted) -> list[str]:
        if adapted is None:
            return [name for name, p in named.items() if p.requires_grad]
        if callable(adapted):
            return [name for name in named if adapted(name)]
        if isinstance(adapted, str) or not all(isinstance(p, str) for p in adapted):
            raise TypeError(f"adapted must be a list of name patterns, a predicate or None, got {adapted!r}")
        for pattern in adapted:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ValueError(f"adapted: the pattern {pattern!r} matches no parameter; there are {', '.join(named)}")
        return [name for name in named if any(fnmatchcase(name, pattern) for pattern in adapted)]

    def params(self) -> list[Tensor]:
        """The model's parameters now."""
        return [module._parameters[key] for module, key in self.owners]  # type: ignore[misc]

    def mask(self, device: torch.device) -> Tensor:
        """Bool `[P]`: which elements the inner loop adapts."""
        parts = [torch.full((size,), name in self.adapted) for name, size in zip(self.names, self.sizes, strict=True)]
        return torch.cat(parts).to(device)

    def tasks_of(self, params: Mapping[str, Tensor]) -> int | None:
        """T where any parameter has a task dimension, else None.

        Raises:
            TypeError: something that is no tensor.
            ValueError: an unknown name or a wrong shape.
        """
        tasks: int | None = None
        for name, value in params.items():
            if name not in self.shapes:
                raise ValueError(f"params: {name!r} is no parameter of the model; there are {', '.join(self.names)}")
            if not isinstance(value, Tensor):
                raise TypeError(f"params[{name!r}] must be a tensor, got {type(value).__name__}")
            shape = self.shapes[name]
            if tuple(value.shape) == shape:
                continue
            if tuple(value.shape[1:]) != shape or value.dim() != len(shape) + 1:
                raise ValueError(
                    f"params[{name!r}] must be {list(shape)} or [tasks, *{list(shape)}], got {list(value.shape)}"
                )
            if tasks is not None and tasks != value.shape[0]:
                raise ValueError(f"params[{name!r}] is for {value.shape[0]} tasks, others are for {tasks}")
            tasks = value.shape[0]
        return tasks

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """`[P]`, or `[T, P]` where any parameter has a task dimension; those left out are the model's."""
        tasks = self.tasks_of(params)
        parts = []
        for name, own in zip(self.names, self.params(), strict=True):
            value = params.get(name, own)
            flat = value.reshape(-1) if value.dim() == own.dim() else value.reshape(value.shape[0], -1)
            parts.append(flat if tasks is None or flat.dim() == 2 else flat.expand(tasks, -1))
        return torch.cat(parts, -1)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `[P]` or `[T, P]` by name.

        Raises:
            ValueError: the last dimension is not P.
        """
        if flat.dim() not in (1, 2) or flat.shape[-1] != self.numel:
            raise ValueError(f"flat must be [{self.numel}] or [tasks, {self.numel}], got {list(flat.shape)}")
        parts = flat.split(self.sizes, -1)
        return {
            name: part.view(*flat.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
