"""Every layer of a program in PyTorch: forward, backward, and the directional derivative of both.

Tensors are task-batched: maps `[T, N, c, h, w]`, tokens `[T, N, L]`, weights `[T, ...]`; any float dtype. A layer keeps
what its later passes need. With x' the derivative of x in a direction of all weights, and dy the derivative of the loss
with respect to y:

    forward(x, weight, bias) -> y                tangent(x', weight', bias') -> y'
    backward(dy) -> dx, dweight, dbias           backward_tangent(dy') -> dx', dweight', dbias'

`backward` comes before `backward_tangent`, which may be called after `tangent` only. A tangent that is None is zero.
These are the references of the native kernels: plain, and slow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._program import Instruction, Opcode

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]  # of the input, the weight and the bias


class Layer:
    """A layer without weights that is linear in its input; the others override what differs."""

    x: Tensor

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """y."""
        raise NotImplementedError

    def backward(self, dy: Tensor) -> Grads:
        """dx, dweight, dbias."""
        raise NotImplementedError

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        """y'."""
        return None if x is None else self.forward(x, None, None)

    def backward_tangent(self, dy: Tensor) -> Grads:
        """dx', dweight', dbias'."""
        return self.backward(dy)


def add(*terms: Tensor | None) -> Tensor | None:
    given = [t for t in terms if t is not None]
    return sum(given[1:], given[0]) if given else None


class Conv2d(Layer):
    """Convolution, as one grouped convolution over all tasks. A linear layer is one whose kernel is the whole map."""

    def __init__(self, instruction: Instruction, shape: tuple[int, int, int]) -> None:
        if instruction.opcode is Opcode.LINEAR:
            self.kernel, self.stride, self.padding, self.groups = shape[1:], (1, 1), (0, 0), 1
        else:
            kh, kw, sh, sw, ph, pw, self.groups = instruction.ints[:7]
            self.kernel, self.stride, self.padding = (kh, kw), (sh, sw), (ph, pw)
        self.ci = shape[0]

    def shaped(self, weight: Tensor) -> Tensor:
        """`[T, O, I, kh, kw]`."""
        return weight.view(weight.shape[0], -1, self.ci // self.groups, *self.kernel)

    def conv(self, x: Tensor, w: Tensor) -> Tensor:
        t, n = x.shape[:2]
        stacked = x.transpose(0, 1).reshape(n, t * self.ci, *x.shape[3:])
        y = F.conv2d(stacked, w.reshape(-1, *w.shape[2:]), None, self.stride, self.padding, 1, t * self.groups)
        return y.view(n, t, -1, *y.shape[2:]).transpose(0, 1)

    def gradients(self, dy: Tensor, x: Tensor, w: Tensor, which: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
        """(dx, dw) of `conv`; one that is not wanted is undefined."""
        t, n = x.shape[:2]
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy.transpose(0, 1).reshape(n, -1, *dy.shape[3:]), x.transpose(0, 1).reshape(n, -1, *x.shape[3:]),
            w.reshape(-1, *w.shape[2:]), None, self.stride, self.padding, (1, 1), False, (0, 0), t * self.groups,
            (*which, False),
        )  # fmt: skip
        return (
            dx.view(n, t, *x.shape[2:]).transpose(0, 1) if which[0] else dx,
            dw.view(w.shape) if which[1] else dw,
        )

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        self.x, self.w = x, self.shaped(weight)
        y = self.conv(x, self.w)
        return y if bias is None else y + bias[:, None, :, None, None]

    def backward(self, dy: Tensor) -> Grads:
        self.dy = dy
        dx, dw = self.gradients(dy, self.x, self.w, (True, True))
        return dx, dw, dy.sum((1, 3, 4))

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.x_dot = x
        self.w_dot = None if weight is None else self.shaped(weight)
        return add(
            None if x is None else self.conv(x, self.w),
            None if self.w_dot is None else self.conv(self.x, self.w_dot),
            None if bias is None else bias[:, None, :, None, None].expand(*self.x.shape[:2], -1, *self.out_size()),
        )

    def out_size(self) -> tuple[int, ...]:
        return tuple(
            (size + 2 * p - k) // s + 1
            for size, p, k, s in zip(self.x.shape[3:], self.padding, self.kernel, self.stride, strict=True)
        )

    def backward_tangent(self, dy: Tensor) -> Grads:
        dx, dw = self.gradients(dy, self.x, self.w, (True, True))
        if self.w_dot is not None:
            dx = dx + self.gradients(self.dy, self.x, self.w_dot, (True, False))[0]
        if self.x_dot is not None:
            dw = dw + self.gradients(self.dy, self.x_dot, self.w, (False, True))[1]
        return dx, dw, dy.sum((1, 3, 4))


class Normalization(Layer):
    """`y = weight (x - mean) / sqrt(variance + eps) + bias`, with moments over some axes of the valid examples.

    `view` brings x to a shape in which `axes` are those of the moments; `affine` brings weight and bias to x's shape.
    """

    def __init__(self, eps: float, axes: tuple[int, ...], valid: Tensor | None) -> None:
        self.eps, self.axes, self.valid = eps, axes, valid
        self.moments: tuple[Tensor, Tensor, Tensor] | None = None  # mean, biased variance, count

    def view(self, x: Tensor) -> Tensor:
        return x

    def affine(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over what shares one weight: `[T, ...]`."""
        raise NotImplementedError

    def mean(self, x: Tensor) -> Tensor:
        if self.valid is None:
            return x.mean(self.axes, keepdim=True)
        return (x * self.valid).sum(self.axes, keepdim=True) / self.count

    def masked(self, x: Tensor) -> Tensor:
        return x if self.valid is None else x * self.valid

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.shape, x = x.shape, self.view(x)
        self.count = torch.as_tensor(math.prod(x.shape[a] for a in self.axes), dtype=x.dtype, device=x.device)
        if self.valid is not None:
            self.count = self.valid.expand_as(x[:, :, :1]).sum(self.axes, keepdim=True).clamp(min=1).to(x.dtype)
        mean = self.mean(x)
        variance = self.mean((x - mean).square())
        self.moments = (mean, variance, self.count)
        self.rstd = (variance + self.eps).rsqrt()
        self.hat = (x - mean) * self.rstd
        self.weight = weight
        y = self.hat.view(self.shape)
        y = y if weight is None else y * self.affine(weight)
        return y if bias is None else y + self.affine(bias)

    def backward(self, dy: Tensor) -> Grads:
        self.dy = dy
        g = self.view(dy if self.weight is None else dy * self.affine(self.weight))
        self.g, self.a, self.b = g, self.mean(g), self.mean(g * self.hat)
        self.rest = g - self.a - self.hat * self.b
        dx = self.masked(self.rstd * self.rest).view(dy.shape)
        return dx, self.reduce(dy * self.hat.view(dy.shape)), self.reduce(dy)

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.weight_dot = weight
        if x is None:
            self.hat_dot, self.rstd_dot = torch.zeros_like(self.hat), torch.zeros_like(self.rstd)
        else:
            x = self.view(x)
            s = self.mean(self.hat * x)
            self.hat_dot = self.rstd * (x - self.mean(x) - self.hat * s)
            self.rstd_dot = -self.rstd.square() * s
        y = self.hat_dot.view(self.shape)
        y = y if self.weight is None else y * self.affine(self.weight)
        if weight is not None:
            y = y + self.hat.view(self.shape) * self.affine(weight)
        return y if bias is None else y + self.affine(bias)

    def backward_tangent(self, dy: Tensor) -> Grads:
        g = dy if self.weight is None else dy * self.affine(self.weight)
        if self.weight_dot is not None:
            g = g + self.dy * self.affine(self.weight_dot)
        g = self.view(g)
        b_dot = self.mean(g * self.hat + self.g * self.hat_dot)
        rest_dot = g - self.mean(g) - self.hat_dot * self.b - self.hat * b_dot
        dx = self.masked(self.rstd_dot * self.rest + self.rstd * rest_dot).view(dy.shape)
        dw = self.reduce(dy * self.hat.view(dy.shape) + self.dy * self.hat_dot.view(dy.shape))
        return dx, dw, self.reduce(dy)


class BatchNorm(Normalization):
    """Statistics of the task's batch, over the valid examples."""

    def __init__(self, eps: float, valid: Tensor | None) -> None:
        super().__init__(eps, (1, 3, 4), None if valid is None else valid[:, :, None, None, None])

    def affine(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape[0], 1, -1, 1, 1)

    def reduce(self, x: Tensor) -> Tensor:
        return x.sum((1, 3, 4))


class FixedNorm(Layer):
    """Batch norm with given statistics: linear in x."""

    def __init__(self, eps: float, mean: Tensor, variance: Tensor) -> None:
        self.center = mean.view(-1, 1, 1)
        self.rstd = (variance.view(-1, 1, 1) + eps).rsqrt()

    def affine(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape[0], 1, -1, 1, 1)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.hat, self.weight = (x - self.center) * self.rstd, weight
        y = self.hat if weight is None else self.hat * self.affine(weight)
        return y if bias is None else y + self.affine(bias)

    def backward(self, dy: Tensor) -> Grads:
        self.dy = dy
        dx = self.rstd * (dy if self.weight is None else dy * self.affine(self.weight))
        return dx, (dy * self.hat).sum((1, 3, 4)), dy.sum((1, 3, 4))

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.hat_dot = torch.zeros_like(self.hat) if x is None else x * self.rstd
        self.weight_dot = weight
        y = self.hat_dot if self.weight is None else self.hat_dot * self.affine(self.weight)
        if weight is not None:
            y = y + self.hat * self.affine(weight)
        return y if bias is None else y + self.affine(bias)

    def backward_tangent(self, dy: Tensor) -> Grads:
        dx = dy if self.weight is None else dy * self.affine(self.weight)
        if self.weight_dot is not None:
            dx = dx + self.dy * self.affine(self.weight_dot)
        return self.rstd * dx, (dy * self.hat + self.dy * self.hat_dot).sum((1, 3, 4)), dy.sum((1, 3, 4))


class LayerNorm(Normalization):
    """Over channels and positions of an example; a weight for each of them."""

    def __init__(self, eps: float) -> None:
        super().__init__(eps, (2, 3, 4), None)

    def affine(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape[0], 1, *self.shape[2:])

    def reduce(self, x: Tensor) -> Tensor:
        return x.sum(1)


class GroupNorm(Normalization):
    """Over a group of channels of an example; a weight for each channel."""

    def __init__(self, eps: float, groups: int) -> None:
        super().__init__(eps, (3, 4, 5), None)
        self.groups = groups

    def view(self, x: Tensor) -> Tensor:
        t, n, c, h, w = x.shape
        return x.reshape(t, n, self.groups, c // self.groups, h, w)

    def affine(self, weight: Tensor) -> Tensor:
        return weight.view(weight.shape[0], 1, -1, 1, 1)

    def reduce(self, x: Tensor) -> Tensor:
        return x.sum((1, 3, 4))


Derivatives = tuple[Tensor, Tensor, Tensor]  # f, f', f''


def _relu(x: Tensor) -> Derivatives:
    step = (x > 0).to(x.dtype)
    return x.clamp(min=0), step, torch.zeros_like(x)


def _gelu_erf(x: Tensor) -> Derivatives:
    phi = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * cdf, cdf + x * phi, phi * (2 - x * x)


def _gelu_tanh(x: Tensor) -> Derivatives:
    a, b = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(a * (x + b * x**3))
    u, u1 = a * (1 + 3 * b * x * x), 6 * a * b * x
    s = 1 - t * t
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * s * u, s * u + 0.5 * x * s * (u1 - 2 * t * u * u)


def _tanh(x: Tensor) -> Derivatives:
    t = torch.tanh(x)
    return t, 1 - t * t, -2 * t * (1 - t * t)


def _sigmoid(x: Tensor) -> Derivatives:
    s = torch.sigmoid(x)
    return s, s * (1 - s), s * (1 - s) * (1 - 2 * s)


def _silu(x: Tensor) -> Derivatives:
    s = torch.sigmoid(x)
    d = s * (1 - s)
    return x * s, s + x * d, d * (2 + x * (1 - 2 * s))


def _leaky_relu(slope: float) -> Callable[[Tensor], Derivatives]:
    def derivatives(x: Tensor) -> Derivatives:
        d = torch.where(x > 0, torch.ones_like(x), slope)
        return x * d, d, torch.zeros_like(x)

    return derivatives


class Activation(Layer):
    """`y = f(x)`, element by element."""

    def __init__(self, function: Callable[[Tensor], Derivatives]) -> None:
        self.function = function

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y, self.f1, self.f2 = self.function(x)
        return y

    def backward(self, dy: Tensor) -> Grads:
        self.dy = dy
        return dy * self.f1, None, None

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        self.x_dot = x
        return None if x is None else self.f1 * x

    def backward_tangent(self, dy: Tensor) -> Grads:
        dx = dy * self.f1
        return (dx if self.x_dot is None else dx + self.dy * self.f2 * self.x_dot), None, None


class MaxPool(Layer):
    """The first maximum of each window, as `torch.nn.functional.max_pool2d`."""

    def __init__(self, ints: tuple[int, ...]) -> None:
        self.window = (tuple(ints[0:2]), tuple(ints[2:4]), tuple(ints[4:6]))

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.shape = x.shape
        y, self.index = F.max_pool2d(x.reshape(-1, *x.shape[2:]), *self.window, return_indices=True)
        return y.view(*x.shape[:2], *y.shape[1:])

    def backward(self, dy: Tensor) -> Grads:
        flat = dy.reshape(self.index.shape).flatten(2)
        dx = dy.new_zeros(*flat.shape[:2], self.shape[3] * self.shape[4])
        return dx.scatter_add(2, self.index.flatten(2), flat).view(self.shape), None, None

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        y = x.reshape(*self.index.shape[:2], -1).gather(2, self.index.flatten(2))
        return y.view(*self.shape[:2], *self.index.shape[1:])


class AvgPool(Layer):
    """Means of windows."""

    def __init__(self, ints: tuple[int, ...]) -> None:
        self.options = (tuple(ints[0:2]), tuple(ints[2:4]), tuple(ints[4:6]), False, bool(ints[6]))

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        self.like = x.reshape(-1, *x.shape[2:])
        y = F.avg_pool2d(self.like, *self.options)
        self.shape = x.shape
        return y.view(*x.shape[:2], *y.shape[1:])

    def backward(self, dy: Tensor) -> Grads:
        flat = dy.reshape(-1, *dy.shape[2:])
        dx = torch.ops.aten.avg_pool2d_backward(flat, self.like, *self.options, None)
        return dx.view(self.shape), None, None


class Dropout(Layer):
    """Keeps elements by a mask and scales them."""

    def __init__(self, keep: Tensor, p: float) -> None:
        self.keep, self.scale = keep, 1.0 / (1.0 - p)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return torch.where(self.keep, x * self.scale, torch.zeros_like(x))

    def backward(self, dy: Tensor) -> Grads:
        return self.forward(dy, None, None), None, None


class EmbedMean(Layer):
    """The mean of the embeddings of an example's tokens that are not padding; 0 where all are."""

    def __init__(self, padding: int) -> None:
        self.padding = padding

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        t, n, length = x.shape[0], x.shape[1], x.shape[-1]
        tokens = x.reshape(t, n, length)
        self.vocabulary = weight.shape[1]
        share = torch.ones_like(tokens, dtype=weight.dtype)
        if self.padding >= 0:
            share = (tokens != self.padding).to(weight.dtype)
        self.share = share / share.sum(-1, keepdim=True).clamp(min=1)
        self.rows = tokens + torch.arange(t, device=x.device)[:, None, None] * self.vocabulary
        return self.pool(weight)

    def pool(self, weight: Tensor) -> Tensor:
        rows = weight.reshape(-1, weight.shape[2])[self.rows]  # [T, N, L, D]
        return (rows * self.share[..., None]).sum(2)[..., None, None]

    def backward(self, dy: Tensor) -> Grads:
        spread = self.share[..., None] * dy[..., 0, 0][:, :, None, :]
        dw = dy.new_zeros(dy.shape[0] * self.vocabulary, dy.shape[2])
        dw = dw.index_add(0, self.rows.flatten(), spread.flatten(0, 2))
        return None, dw.view(dy.shape[0], self.vocabulary, -1), None

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        return None if weight is None else self.pool(weight)


class CrossEntropy:
    """The mean over valid examples of the cross-entropy with smoothed targets, over the task's classes."""

    def __init__(self, smoothing: float, valid: Tensor, classes: Tensor | None) -> None:
        self.smoothing, self.valid, self.classes = smoothing, valid, classes

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        width = z.shape[-1]
        self.open = torch.ones(z.shape[0], 1, width, dtype=torch.bool, device=z.device)
        if self.classes is not None:
            self.open = (torch.arange(width, device=z.device) < self.classes[:, None])[:, None]
        target = F.one_hot(torch.where(self.valid, y, 0), width).to(z.dtype)
        uniform = self.open.to(z.dtype) / self.open.sum(-1, keepdim=True)
        self.target = (1 - self.smoothing) * target + self.smoothing * uniform
        logp = torch.log_softmax(z.masked_fill(~self.open, -math.inf), -1)
        self.share = self.valid / self.valid.sum(1, keepdim=True).clamp(min=1).to(z.dtype)  # [T, N]
        self.p = logp.exp()
        loss = -(torch.where(self.open & (self.target != 0), logp, 0) * self.target).sum(-1)
        return torch.where(self.valid, loss * self.share, 0).sum(1)

    def backward(self) -> Tensor:
        return (self.p - self.target) * self.share[..., None]

    def backward_tangent(self, z: Tensor) -> Tensor:
        return self.p * (z - (self.p * z).sum(-1, keepdim=True)) * self.share[..., None]


class SquaredError:
    """The mean over valid examples and outputs of the squared error."""

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        share = self.valid / self.valid.sum(1, keepdim=True).clamp(min=1).to(z.dtype)
        self.share = (share / z.shape[-1])[..., None]
        self.rest = torch.where(self.valid[..., None], z - y.view(z.shape), 0)
        return (self.rest.square() * self.share).sum((1, 2))

    def backward(self) -> Tensor:
        return 2 * self.rest * self.share

    def backward_tangent(self, z: Tensor) -> Tensor:
        return 2 * z * self.share


ACTIVATIONS: dict[Opcode, Callable[[Instruction], Callable[[Tensor], Derivatives]]] = {
    Opcode.RELU: lambda i: _relu,
    Opcode.GELU: lambda i: _gelu_tanh if i.ints[0] else _gelu_erf,
    Opcode.TANH: lambda i: _tanh,
    Opcode.SIGMOID: lambda i: _sigmoid,
    Opcode.SILU: lambda i: _silu,
    Opcode.LEAKY_RELU: lambda i: _leaky_relu(i.attributes[0]),
}
