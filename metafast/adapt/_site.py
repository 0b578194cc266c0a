"""A place where a frozen model adapts: a wrapper around a module, with numbers of its own for every task."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Values = dict[str, Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Tap(NamedTuple):
    """One call of a site in a forward pass.

    Args:
        left: what its numbers were multiplied with; its gradient is a product of this and that of `out`.
        out: the output, of which the gradient is taken.
        versions: of both, when they were noted.
    """

    left: Tensor
    out: Tensor
    versions: tuple[int, int]

    @property
    def changed(self) -> bool:
        """Whether the model wrote over them since."""
        return (self.left._version, self.out._version) != self.versions


class Site(nn.Module):
    """A module of the frozen model, and what every task adds to it.

    Tasks are folded into the batch: inputs are `[T * N, ...]` and the frozen module runs once for all of them, while
    the numbers of the tasks are `[T, *shape]`. While `tape` is a list, every call is noted in it.

    Args:
        name: of the module in the model.
        module: the frozen module.

    Source:
        N. Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019; the kinds name their own.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.module: Any = module
        self.values: Values = {}
        self.tape: list[Tap] | None = None
        self.copies = False  # for models that write over outputs and inputs, as ReLU(inplace=True) does
        self.reuse: Any = None
        self.examples = 0  # of all tasks, in a pass

    def __getattr__(self, name: str) -> Any:
        """What callers look up on the wrapped module, such as `weight`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    # ---- what a kind says

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The numbers of one task."""
        raise NotImplementedError

    def start(self) -> Values:
        """Numbers with which the site computes what the module does."""
        return {name: torch.zeros(shape, **self._like()) for name, shape in self.shapes.items()}

    def run(self, x: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """The output `[T * N, ...]`, and what the numbers were multiplied with."""
        raise NotImplementedError

    def gradient(self, left: Tensor, delta: Tensor, values: Values) -> Values:
        """The gradients of the numbers from `left` and the gradient of the output, both as `run` has them."""
        raise NotImplementedError

    def merged(self, values: Values) -> nn.Module:
        """A module without a wrapper for the numbers of one task, `[*shape]`."""
        raise NotImplementedError

    @property
    def modulations(self) -> int:
        """How many numbers of a task shift its start, where one is read off the support set."""
        return 0

    def modulate(self, start: Values, amounts: Tensor) -> Values:
        """The start `[*shape]` moved by `[T, modulations]`, `[T, *shape]`; zero moves nothing."""
        raise NotImplementedError

    # ---- the factors of a gradient, for networks that transform it

    @property
    def widths(self) -> tuple[int, int] | None:
        """Channels of `left`, 0 where it has other positions than the output, and of the output; None: no factors."""
        return None

    # ---- inside

    @property
    def channels_last(self) -> bool:
        """Whether the channels of an output are its last dimension."""
        return not isinstance(self.module, (*CONVOLUTIONS, *BATCH_NORMS, nn.GroupNorm))

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return channels(self.module)

    def forward(self, x: Tensor) -> Tensor:
        """The module's output with the numbers of each task."""
        out, left = self.run(x, self.values)
        if self.reuse is not None:
            self.reuse.entered = True
        if self.tape is not None:
            leaf = not out.requires_grad
            out = out.detach().requires_grad_() if leaf else out
            left = left.clone() if self.copies and left is x else left
            self.tape.append(Tap(left, out, (left._version, out._version)))
            return out.clone() if self.copies or leaf else out
        return out

    def _like(self) -> dict[str, Any]:
        weight = next(p for p in self.module.parameters() if p.is_floating_point())
        return {"dtype": weight.dtype, "device": weight.device}

    def _rows(self, x: Tensor, tasks: int) -> Tensor:
        """`[T, R, C]` of an output or of inputs with the same layout."""
        return (x if self.channels_last else x.movedim(1, -1)).reshape(tasks, -1, self._width(x))

    def _width(self, x: Tensor) -> int:
        return x.shape[-1] if self.channels_last else x.shape[1]

    def _per_channel(self, values: Tensor, like: Tensor) -> Tensor:
        """`[T, C]` spread over the examples and positions of `[T * N, ...]`."""
        each = values.repeat_interleave(len(like) // len(values), 0) if len(values) > 1 else values
        if self.channels_last:
            return each.view(len(each), *[1] * (like.dim() - 2), -1)
        return each.view(*each.shape, *[1] * (like.dim() - 2))


def channels(module: nn.Module) -> int:
    """Channels of a module's output."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    weight: Any = module.weight
    return int(weight.shape[0])


def own_weights(module: Any) -> Values:
    """Copies of a module's weight and bias."""
    found = {"weight": module.weight, "bias": getattr(module, "bias", None)}
    return {name: value.detach().clone() for name, value in found.items() if value is not None}


def with_weights(module: Any, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A module like another with a weight and bias of its own; None keeps the bias."""
    new = copy.copy(module)
    new._parameters = dict(module._parameters)
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            new._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
    result: nn.Module = new
    return result
