"""Convolutions of many tasks, each with its own weights, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


def task_conv(x: Tensor, weights: Tensor, module: Any) -> Tensor:
    """A convolution of `[T * N, in, H, W]` by the weights `[T, out, in, kh, kw]` of each task, without bias."""
    parts = zip(x.chunk(len(weights)), weights, strict=True)
    outs = [F.conv2d(each, w, None, module.stride, module.padding, module.dilation, module.groups) for each, w in parts]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def task_conv_weight(x: Tensor, delta: Tensor, shape: Any, tasks: int, module: Any) -> Tensor:
    """The gradient of the weights of `task_conv`, `[T, *shape]`."""
    grads = [
        conv2d_weight(each, shape, d, module.stride, module.padding, module.dilation, module.groups)
        for each, d in zip(x.chunk(tasks), delta.chunk(tasks), strict=True)
    ]
    return torch.stack(grads)
