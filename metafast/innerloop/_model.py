"""What engines ask of a module: its batch norms, and the tensor in what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class NormLayer:
    """A batch norm: its name, where its statistics begin, its channels, the names of its running statistics."""

    name: str
    offset: int
    channels: int
    buffers: tuple[str | None, str | None]
    fixed: bool = False


def norm_layers(model: nn.Module) -> list[NormLayer]:
    """All batch norms of a model, in its own order: the layout of `stats`, whatever the engine."""
    layers, offset = [], 0
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            tracked = module.running_mean is not None
            prefix = f"{name}." if name else ""
            buffers = (f"{prefix}running_mean", f"{prefix}running_var") if tracked else (None, None)
            layers.append(NormLayer(name, offset, module.num_features, buffers))
            offset += 2 * module.num_features
    return layers


def logits_of(output: Any) -> Any:
    """The tensor of what a model returns: itself, its `.logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    if isinstance(output, list | tuple) and output:
        return output[0]
    return output
