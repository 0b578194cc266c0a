"""Modules with magnitudes that a tuner moves and the model's optimizer does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metafast.tune._tune import HINT, Tune


class Tunable(nn.Module):
    """Holds magnitudes as leaf tensors that require a gradient.

    They are buffers: `state_dict` has them and `to` moves them, and `parameters()` does not yield them, so that an
    optimizer of the model leaves them alone. Below float32 they stay float32: a step in log space is small.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label
        self._magnitudes: list[str] = []

    def tune(self, name: str | None = None, **options: Any) -> list[Tune]:
        """What goes into the `tune` of an `OnlineTuner`: every magnitude in the space and bounds that suit it.

        Args:
            name: of the magnitude in `tuner.state`; several get it as a prefix. Default: by kind of regularizer.
            options: of `Tune`, in place of those: `rate`, `max_step`, `method`, `space`, `bounds`.
        """
        label = name or self._label
        names = [label] if len(self._magnitudes) == 1 else [f"{label}.{name}" for name in self._magnitudes]
        return [
            Tune(getattr(self, magnitude), name=name, **options)
            for name, magnitude in zip(names, self._magnitudes, strict=True)
        ]

    def extra_repr(self) -> str:
        """The magnitudes now."""
        values = {name: getattr(self, name).flatten().tolist() for name in self._magnitudes}
        return ", ".join(f"{name}={', '.join(f'{x:.4g}' for x in listed)}" for name, listed in values.items())

    def _add(self, name: str, value: Tensor, space: str, bounds: tuple[float, float]) -> None:
        if not hasattr(value, HINT):  # else it is shared
            value.requires_grad_()
            setattr(value, HINT, {"space": space, "bounds": bounds})
        self.register_buffer(name, value)
        self._magnitudes.append(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As parameters are moved: the tensor stays the same one, because a tuner may have it."""
        before = {name: getattr(self, name) for name in self._magnitudes}
        with torch.no_grad():
            super()._apply(fn, recurse)
            for name, tensor in before.items():
                moved = self._buffers[name]
                assert moved is not None
                tensor.data = moved.detach() if moved.dtype.itemsize >= 4 else tensor.to(moved.device)
                tensor.grad = None
                self._buffers[name] = tensor
        return self


def check_floating(name: str, value: Any, advice: str) -> None:
    """Raises for anything but a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {came}; {advice}")


def check_classes(targets: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raises for targets that are no class numbers; their range is looked at on the CPU, where that does not wait."""
    if targets.dtype != torch.int64:
        raise TypeError(
            f"targets must be class numbers in int64 or floating-point probabilities, got {targets.dtype}; "
            "write targets.long()"
        )
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = (targets < 0) | (targets >= classes)
    if ignore_index is not None:
        outside &= targets != ignore_index
    if bool(outside.any()):
        raise ValueError(f"targets must be class numbers from 0 to {classes - 1}, got {targets[outside][0].item()}")
