"""Normalization and activations of task-batched maps in Triton: forward, backward, and the derivatives of both.

The layers are those of `_layers_reference.py`, on maps `[T, N, c, h, w]`. Numbers are computed in the maps' dtype,
float32 or float64. The native CUDA kernels are faster; these run where no compiler was.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import torch
from torch import Tensor

from . import _layers_reference as layers
from ._layers_reference import Grads
from ._program import Opcode
from ._triton_layer_kernels import (
    _activate,
    _affine_sums,
    _norm_backward,
    _norm_backward_tangent,
    _norm_forward,
    _norm_tangent,
)

BLOCK = 1024
BATCH, GROUP, LAYER = 0, 1, 2  # kinds of sets
KEPT = 6  # of a set, see `_triton_layer_kernels.py`


class Norm(layers.Layer):
    """A normalization over sets of elements, and a ReLU behind it where `relu` says so.

    Args:
        kind: BATCH (over the valid examples and positions of a channel), GROUP (channels of an example), LAYER.
        eps: added to the variance.
        groups: of GROUP.
        valid: bool `[T, N]`, for BATCH; None: every example is.
        relu: a ReLU follows.
    """

    def __init__(self, kind: int, eps: float, groups: int = 1, valid: Tensor | None = None, relu: bool = False) -> None:
        self.kind, self.eps, self.groups, self.valid, self.relu = kind, eps, groups, valid, relu

    def sizes(self, x: Tensor) -> tuple[int, ...]:
        """N, C, HW, groups, elements of a set, weights of a task."""
        _, n, c, h, w = x.shape
        groups = self.groups if self.kind == GROUP else 1
        size = n * h * w if self.kind == BATCH else c * h * w // groups
        return n, c, h * w, groups, size, c * h * w if self.kind == LAYER else c

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Programs: sets of a task, tasks."""
        t, n, c = x.shape[:3]
        return (c if self.kind == BATCH else n * self.sizes(x)[3]), t

    @property
    def constants(self) -> dict[str, int]:
        return {"KIND": self.kind, "RELU": int(self.relu), "BLOCK": BLOCK}

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.x, self.weight = x.contiguous(), _dense(weight)
        self.y = torch.empty_like(self.x)
        self.kept = x.new_zeros(*self.grid(x)[::-1], KEPT)
        # A scalar argument would be rounded to float32.
        eps = torch.full((), self.eps, dtype=x.dtype, device=x.device)
        _norm_forward[self.grid(x)](
            self.x,
            self.y,
            self.weight,
            _dense(bias),
            _dense(self.valid),
            self.kept,
            eps,
            *self.sizes(x),
            **self.constants,
        )
        return self.y

    def backward(self, dy: Tensor) -> Grads:
        x, self.dy = self.x, dy.contiguous()
        dx = torch.empty_like(x)
        dw, db = (x.new_empty(x.shape[0], self.sizes(x)[-1]) for _ in range(2))
        _norm_backward[self.grid(x)](
            x, self.y, self.dy, dx, self.weight, _dense(self.valid), self.kept, dw, db, *self.sizes(x), **self.constants
        )
        self._sums(None, None, dw, db)
        return dx, dw, db

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.x_dot, self.weight_dot = _dense(x), _dense(weight)
        y_dot = torch.empty_like(self.x)
        _norm_tangent[self.grid(self.x)](
            self.x, self.y, self.x_dot, y_dot, self.weight, self.weight_dot, _dense(bias), _dense(self.valid),
            self.kept, *self.sizes(self.x), **self.constants,
        )  # fmt: skip
        return y_dot

    def backward_tangent(self, dy: Tensor) -> Grads:
        x, dy = self.x, dy.contiguous()
        dx = torch.empty_like(x)
        dw, db = (x.new_empty(x.shape[0], self.sizes(x)[-1]) for _ in range(2))
        _norm_backward_tangent[self.grid(x)](
            x, self.y, self.x_dot, self.dy, dy, dx, self.weight, self.weight_dot, _dense(self.valid), self.kept, dw, db,
            *self.sizes(x), **self.constants,
        )  # fmt: skip
        self._sums(self.x_dot, dy, dw, db)
        return dx, dw, db

    def _sums(self, x_dot: Tensor | None, dy_dot: Tensor | None, dw: Tensor, db: Tensor) -> None:
        if self.kind == BATCH:  # its sets are its weights
            return
        n, c, area, groups, _, columns = self.sizes(self.x)
        rows = n if self.kind == LAYER else n * area
        block, width = (8, 128) if self.kind == LAYER else (256, 1)
        _affine_sums[(-(-columns // width), self.x.shape[0])](
            self.x, self.y, x_dot, self.dy, dy_dot, self.kept, dw, db, n, c, area, groups, rows, columns,
            **{**self.constants, "BLOCK": block, "WIDTH": width},
        )  # fmt: skip


class BatchNorm(Norm, layers.BatchNorm):
    """A normalization of kind BATCH that says what it found, as the reference's does."""

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = super().forward(x, weight, bias)
        mean, r = self.kept[..., 0], self.kept[..., 1]
        count = torch.full_like(mean, x.shape[1] * x.shape[3] * x.shape[4])
        if self.valid is not None:
            count = (
                (self.valid.sum(1, keepdim=True) * (x.shape[3] * x.shape[4])).clamp(min=1).expand_as(mean).to(x.dtype)
            )
        shape = (x.shape[0], 1, -1, 1, 1)
        self.moments = mean.view(shape), (r.pow(-2) - self.eps).view(shape), count.reshape(shape)
        return y


class Activation(layers.Layer):
    """`y = f(x)`; `kind` is the opcode of f, with GELU's second form as 17, and `slope` that of a leaky ReLU."""

    def __init__(self, kind: int, slope: float = 0.0) -> None:
        self.kind, self.slope = kind, slope

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.x = x.contiguous()
        return self._run(None, None, None)

    def backward(self, dy: Tensor) -> Grads:
        self.dy = dy.contiguous()
        return self._run(self.dy, None, None), None, None

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.x_dot = _dense(x)
        return None if self.x_dot is None else self._run(self.x_dot, None, None)

    def backward_tangent(self, dy: Tensor) -> Grads:
        return self._run(dy.contiguous(), self.x_dot, self.dy), None, None

    def _run(self, g: Tensor | None, x_dot: Tensor | None, dy: Tensor | None) -> Tensor:
        out = torch.empty_like(self.x)
        slope = torch.full((), self.slope, dtype=out.dtype, device=out.device)
        blocks = -(-out.numel() // BLOCK)
        if blocks:
            _activate[(blocks,)](self.x, g, x_dot, dy, out, slope, out.numel(), KIND=self.kind, BLOCK=BLOCK)
        return out


GELU_TANH = 17
ACTIVATIONS = (Opcode.RELU, Opcode.GELU, Opcode.TANH, Opcode.SIGMOID, Opcode.SILU, Opcode.LEAKY_RELU)


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
