"""The four hand-written passes of every layer: first and second derivatives against differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from metafast.ops import _layers_reference as layers
from metafast.ops._program import Instruction, Opcode

MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])
KEEP = torch.rand(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.3
Make = Callable[[], layers.Layer]


def instruction(opcode: Opcode, *ints: int, attributes: tuple[float, ...] = ()) -> Instruction:
    return Instruction(opcode, 1, 0, ints=ints, attributes=attributes)


def conv(*ints: int, c: int = 4) -> Make:
    return lambda: layers.Conv2d(instruction(Opcode.CONV2D, *ints), (c, 4, 5))


def activation(opcode: Opcode, *ints: int, attributes: tuple[float, ...] = ()) -> tuple[Make, None, None]:
    made = instruction(opcode, *ints, attributes=attributes)
    return (lambda: layers.Activation(layers.ACTIVATIONS[opcode](made))), None, None


# a layer, and the sizes of its weight and bias for a map of 4 x 4 x 5 (channels, rows, columns)
CASES: dict[str, tuple[Make, int | None, int | None]] = {
    "conv 3x3": (conv(3, 3, 1, 1, 1, 1, 1), 3 * 4 * 9, 3),
    "conv strided 3x2": (conv(3, 2, 2, 1, 1, 0, 1), 3 * 4 * 6, 3),
    "conv grouped 1x1": (conv(1, 1, 2, 2, 0, 0, 2), 6 * 2, 6),
    "conv without bias": (conv(2, 2, 1, 1, 0, 0, 4), 4 * 4, None),
    "linear": (lambda: layers.Conv2d(instruction(Opcode.LINEAR), (4, 4, 5)), 3 * 80, 3),
    "batch norm": (lambda: layers.BatchNorm(1e-2, None), 4, 4),
    "batch norm without weights": (lambda: layers.BatchNorm(1e-2, None), None, None),
    "batch norm, padded": (lambda: layers.BatchNorm(1e-2, MASK), 4, 4),
    "batch norm, fixed": (
        lambda: layers.FixedNorm(1e-2, torch.arange(4.0).double(), torch.arange(1, 5).double()),
        4,
        4,
    ),
    "layer norm": (lambda: layers.LayerNorm(1e-2), 80, 80),
    "group norm": (lambda: layers.GroupNorm(1e-2, 2), 4, 4),
    "relu": activation(Opcode.RELU),
    "gelu": activation(Opcode.GELU, 0),
    "gelu tanh": activation(Opcode.GELU, 1),
    "tanh": activation(Opcode.TANH),
    "sigmoid": activation(Opcode.SIGMOID),
    "silu": activation(Opcode.SILU),
    "leaky relu": activation(Opcode.LEAKY_RELU, attributes=(0.2,)),
    "max pool": (lambda: layers.MaxPool((2, 2, 2, 2, 0, 0)), None, None),
    "max pool, overlapping": (lambda: layers.MaxPool((3, 2, 1, 2, 1, 1)), None, None),
    "average pool": (lambda: layers.AvgPool((2, 3, 2, 1, 1, 1, 1)), None, None),
    "average pool, padding not counted": (lambda: layers.AvgPool((2, 3, 2, 1, 1, 1, 0)), None, None),
    "dropout": (lambda: layers.Dropout(KEEP[:, :, :1].expand(2, 4, 4, 4, 5), 0.3), None, None),
}


class Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, make: Make, mask: Tensor | None, *inputs: Tensor | None) -> Tensor:
        ctx.make, ctx.mask = make, mask
        ctx.save_for_backward(*inputs)
        return masked(make().forward(masked(inputs[0], mask), *inputs[1:]), mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return None, None, *Backward.apply(ctx.make, ctx.mask, dy, *ctx.saved_tensors)


class Backward(torch.autograd.Function):
    """Its own backward is made of the tangent passes: of y' = J v, and of the derivative of the gradient along v."""

    @staticmethod
    def forward(ctx: Any, make: Make, mask: Tensor | None, dy: Tensor, *inputs: Tensor | None) -> Any:
        ctx.make, ctx.mask = make, mask
        ctx.save_for_backward(dy, *inputs)
        layer = make()
        layer.forward(masked(inputs[0], mask), *inputs[1:])
        grads = layer.backward(masked(dy, mask))
        return tuple(None if x is None else g.reshape(x.shape) for g, x in zip(grads, inputs, strict=True))

    @staticmethod
    def backward(ctx: Any, *direction: Tensor | None) -> Any:
        dy, *inputs = ctx.saved_tensors
        layer, mask = ctx.make(), ctx.mask
        layer.forward(masked(inputs[0], mask), *inputs[1:])
        layer.backward(masked(dy, mask))
        moved = [None if x is None else v for v, x in zip(direction, inputs, strict=True)]
        y_dot = layer.tangent(masked(moved[0], mask), *moved[1:])
        grads = layer.backward_tangent(torch.zeros_like(dy))
        reshaped = (None if x is None else g.reshape(x.shape) for g, x in zip(grads, inputs, strict=True))
        return None, None, masked(y_dot, mask), *reshaped


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[:, :, None, None, None]


@pytest.mark.parametrize("name", CASES)
def test_every_pass(name: str) -> None:
    make, weight, bias = CASES[name]
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    x = draw(2, 4, 4, 4, 5)
    parts = [None if size is None else draw(2, size) for size in (weight, bias)]
    mask = MASK if "padded" in name else None

    def run(*given: Tensor) -> Tensor:
        rest = iter(given[1:])
        return Forward.apply(make, mask, given[0], *(None if p is None else next(rest) for p in parts))

    inputs = (x, *(p for p in parts if p is not None))
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)
    y = run(*inputs)
    small = tuple(
        v.detach()[:, :2].clone().requires_grad_() if v is x and mask is None and "dropout" not in name else v
        for v in inputs
    )
    if name in ("batch norm", "layer norm", "gelu tanh", "max pool") or y.numel() < 200:
        assert gradcheck(run, small)  # every element, where that is quick


def test_embedding_mean() -> None:
    tokens = torch.tensor([[[1, 2, 0], [0, 0, 0]], [[3, 3, 1], [2, 0, 0]]])
    weight = torch.randn(2, 4, 5, dtype=torch.float64)
    layer = layers.EmbedMean(0)
    y = layer.forward(tokens, weight, None)
    assert y.shape == (2, 2, 5, 1, 1) and not y[0, 1].any()
    torch.testing.assert_close(y[1, 0, :, 0, 0], weight[1, [3, 3, 1]].mean(0))
    torch.testing.assert_close(y[1, 1, :, 0, 0], weight[1, 2])
    dy, v = torch.randn_like(y), torch.randn_like(weight)
    _, dw, _ = layer.backward(dy)
    torch.testing.assert_close((dw * v).sum(), (dy * layer.tangent(None, v, None)).sum())


@pytest.mark.parametrize("classes", [None, torch.tensor([3, 5])])
def test_losses(classes: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 2, 1, -9], [2, 0, 1, 2]])
    targets = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    for make, y in (
        (lambda: layers.CrossEntropy(0.1, MASK, classes), labels),
        (lambda: layers.SquaredError(MASK), targets),
    ):
        loss = make()
        with torch.no_grad():
            losses = loss.forward(z, y)
            analytic, v = loss.backward(), torch.randn_like(z)
            product = loss.backward_tangent(v)
        (numeric,) = torch.autograd.grad(make().forward(z, y).sum(), z, create_graph=True)
        torch.testing.assert_close(analytic, numeric.detach(), rtol=1e-12, atol=1e-12)
        (hv,) = torch.autograd.grad(numeric, z, v)
        torch.testing.assert_close(product, hv, rtol=1e-12, atol=1e-12)
        if y is labels:
            c = [5, 5] if classes is None else classes.tolist()
            for t in range(2):
                rows = MASK[t]
                expected = torch.nn.functional.cross_entropy(z[t][rows][:, : c[t]], y[t][rows], label_smoothing=0.1)
                torch.testing.assert_close(losses[t], expected.detach())
