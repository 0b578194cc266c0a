"""The Triton layers on CPU tensors, by Triton's interpreter. test_layers.py runs this file in a process of its own,
because TRITON_INTERPRET=1 has to be set before Triton is imported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import _layers_reference as reference
from metafast.ops import _triton_layers as triton_layers
from metafast.ops._program import Instruction, Opcode
from metafast.ops._triton import interpreted
from metafast.ops._triton_layers import BATCH, GROUP, LAYER
from tests.helpers import assert_close, copy_args

SHAPES = [(2, 3, 4, 5, 3), (1, 1, 2, 1, 1), (1, 2, 2, 33, 17)]  # tasks, examples, channels, height, width
DTYPES = [torch.float64, torch.float32]
EPS = 0.5  # large, because sets of two elements are among the shapes
FACTOR = {torch.float64: 20.0, torch.float32: 3.0}


class WithRelu(reference.Layer):
    """A reference layer, and the reference's ReLU behind it."""

    def __init__(self, inner: reference.Layer) -> None:
        self.inner, self.relu = inner, reference.Activation(reference._relu)

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return self.relu.forward(self.inner.forward(x, weight, bias), None, None)

    def backward(self, dy: Tensor) -> reference.Grads:
        dx = self.relu.backward(dy)[0]
        assert dx is not None
        return self.inner.backward(dx)

    def tangent(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        return self.relu.tangent(self.inner.tangent(x, weight, bias), None, None)

    def backward_tangent(self, dy: Tensor) -> reference.Grads:
        dx = self.relu.backward_tangent(dy)[0]
        assert dx is not None
        return self.inner.backward_tangent(dx)


def check(actual: reference.Layer, expected: reference.Layer, x: Tensor, weights: int, *, moving: bool = True) -> None:
    """All four passes of two layers on the same random tensors; `weights` of a task, or 0."""
    factor = FACTOR[x.dtype]
    weight, bias, weight_dot, bias_dot = (torch.randn(x.shape[0], weights).to(x) if weights else None for _ in range(4))
    x_dot = torch.randn_like(x) if moving else None
    dy, dy_dot = torch.randn_like(x), torch.randn_like(x)

    def run(layer: reference.Layer, dtype: torch.dtype) -> dict[str, tuple[Tensor | None, ...]]:
        def cast(*tensors: Tensor | None) -> list[Any]:
            return [None if t is None else t.to(dtype) for t in tensors]

        return {
            "forward": (layer.forward(*cast(x, weight, bias)),),
            "backward": layer.backward(*cast(dy)),
            "tangent": (layer.tangent(*cast(x_dot, weight_dot, bias_dot)),),
            "backward tangent": layer.backward_tangent(*cast(dy_dot)),
        }

    wanted = run(expected, torch.float64)  # in fp32 some references cancel
    for name, found in run(actual, x.dtype).items():
        for index, (f, want) in enumerate(zip(found, wanted[name], strict=True)):
            if want is None or (index > 0 and not weights):
                continue
            assert f is not None
            sizes = x.shape[0], -1
            assert_close(f.reshape(sizes), want.to(x.dtype).reshape(sizes), f"{name} {index}", factor=factor)


def test_is_interpreted() -> None:
    assert interpreted()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", [BATCH, GROUP, LAYER])
def test_normalization(kind: int, relu: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype) * 2 + 1
    expected: reference.Layer = {
        BATCH: lambda: reference.BatchNorm(EPS, None),
        GROUP: lambda: reference.GroupNorm(EPS, 2),
        LAYER: lambda: reference.LayerNorm(EPS),
    }[kind]()
    if relu:
        expected = WithRelu(expected)
    weights = x[0, 0].numel() if kind == LAYER else shape[2]
    check(triton_layers.Norm(kind, EPS, 2, relu=relu), expected, x, weights)


@pytest.mark.parametrize("kind", [BATCH, GROUP])
def test_normalization_without_weights_or_input_tangent(kind: int) -> None:
    x = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)
    pairs = {BATCH: reference.BatchNorm(EPS, None), GROUP: reference.GroupNorm(EPS, 2)}
    check(triton_layers.Norm(kind, EPS, 2), pairs[kind], x, 0)
    check(triton_layers.Norm(kind, EPS, 2), pairs[kind], x, 4, moving=False)


def test_batch_norm_of_valid_examples() -> None:
    x = torch.randn(2, 4, 3, 5, 3, dtype=torch.float64)
    valid = torch.tensor([[True, True, False, True], [True, False, True, True]])
    layers = triton_layers.Norm(BATCH, EPS, valid=valid), reference.BatchNorm(EPS, valid)
    dy = torch.randn_like(x) * valid[:, :, None, None, None]  # padding has no gradient
    weight, bias = torch.randn(2, 2, 3, dtype=torch.float64)
    results = []
    for layer in layers:
        y = layer.forward(x, weight, bias)
        first = layer.backward(dy)
        layer.tangent(x, weight, bias)
        results.append([y[valid], *first, *layer.backward_tangent(2 * dy)])
    for found, want in zip(*results, strict=True):
        assert_close(found, want, "masked", factor=20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("opcode", "option"),
    [(Opcode.RELU, 0), (Opcode.GELU, 0), (Opcode.GELU, 1), (Opcode.TANH, 0), (Opcode.SIGMOID, 0), (Opcode.SILU, 0),
     (Opcode.LEAKY_RELU, 0)],
)  # fmt: skip
def test_activations(opcode: Opcode, option: int, dtype: torch.dtype) -> None:
    instruction = Instruction(opcode, 1, 0, ints=(option,), attributes=(0.1,))
    expected = reference.Activation(reference.ACTIVATIONS[opcode](instruction))
    kind = triton_layers.GELU_TANH if option else int(opcode)
    check(triton_layers.Activation(kind, 0.1), expected, torch.randn(2, 3, 4, 5, 11, dtype=dtype) * 3, 0)


@pytest.mark.parametrize(("name", "samples"), [("task_grad", (0, 1, 2)), ("task_hvp", (0, 1)), ("inner_loop", (0, 3))])
def test_ops(name: str, samples: tuple[int, ...]) -> None:
    """Whole programs: masks, fused ReLUs, fixed statistics, what a batch norm says of itself."""
    op = ops.REGISTRY[name]
    written = [a.name for a in op.overload._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    for sample in (op.sample_inputs(dtype=torch.float64)[index] for index in samples):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        ops.resolve(name, "cpu", "triton")(*actual)
        for key, found, want in zip(written, actual[-len(written) :], expected[-len(written) :], strict=True):
            if want is not None:
                assert_close(found, want, f"{name} {key}", factor=50)
