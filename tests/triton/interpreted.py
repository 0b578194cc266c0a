"""The Triton rules on CPU tensors, by Triton's interpreter. test_interpreter.py runs this file in a process of its own,
because TRITON_INTERPRET=1 has to be set before Triton is imported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import _triton
from tests.helpers import assert_close, copy_args
from tests.ops import test_ops as suite

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HOSTILE = (0, 1, 15, 63, 1025, 4097, 16385)


def test_is_interpreted() -> None:
    assert _triton.interpreted()
    assert _triton.unavailable() is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", suite.STEPS)
def test_equals_reference(name: str, dtype: torch.dtype) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs(dtype=dtype):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        ops.resolve(name, "cpu", "triton")(*actual)
        suite.compare(op, actual, expected)


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", suite.STEPS)
def test_hostile_sizes_and_offsets(name: str, state: torch.dtype) -> None:
    op = ops.REGISTRY[name]
    dtype = state  # fp32 with fp32 states, bf16 with bf16 states
    samples = [suite.with_tensors(op, HOSTILE, dtype, state, offset=3) for _ in range(2)]
    step = max(len(samples[0]) // 4, 1)  # time: every few samples
    for expected, actual in list(zip(*samples, strict=True))[::step]:
        op.reference(*expected)
        assert op.triton is not None
        op.triton(*actual)
        suite.compare(op, actual, expected)


@pytest.mark.parametrize("name", suite.STEPS)
def test_stochastic_rounding_draws_the_same_bits(name: str) -> None:
    op = ops.REGISTRY[name]
    samples = [suite.with_tensors(op, (4097, 63), torch.bfloat16, torch.bfloat16) for _ in range(2)]
    step = max(len(samples[0]) // 4, 1)
    for expected, actual in list(zip(*samples, strict=True))[::step]:
        expected[-1] = actual[-1] = 12345
        op.reference(*expected)
        assert op.triton is not None
        op.triton(*actual)
        for have, want in zip(suite.written(op, actual).values(), suite.written(op, expected).values(), strict=True):
            for a, e in zip(*(v if isinstance(v, list) else [v] for v in (have, want)), strict=True):
                if isinstance(e, Tensor) and e.dtype is torch.bfloat16:
                    assert float((a != e).float().mean()) < 2e-3
                    assert_close(a, e, name, factor=2)


@pytest.mark.parametrize("name", suite.STEPS)
def test_found_inf_changes_nothing(name: str) -> None:
    op = ops.REGISTRY[name]
    args = copy_args(op.sample_inputs()[0])
    args[suite.names(op).index("found_inf")] = torch.ones(())
    before = copy_args(tuple(args))
    assert op.triton is not None
    op.triton(*args)
    for a, b in zip(args, before, strict=True):
        for x, y in zip(*(v if isinstance(v, list) else [v] for v in (a, b)), strict=True):
            assert not isinstance(x, Tensor) or torch.equal(x, y)


@pytest.mark.parametrize("name", suite.STEPS)
def test_gradients_and_neighbours_keep_their_values(name: str) -> None:
    op = ops.REGISTRY[name]
    args = suite.with_tensors(op, HOSTILE, torch.float32, torch.float32, offset=3)[-1]
    named = dict(zip(suite.names(op), args, strict=False))
    grads = [grad.clone() for grad in named["grads"]]
    assert op.triton is not None
    op.triton(*args)
    for grad, before in zip(named["grads"], grads, strict=True):
        assert torch.equal(grad, before)
    for param in named["params"]:
        storage = torch.tensor([]).set_(param.untyped_storage())
        assert storage[:3].tolist() == [123.0] * 3
        assert storage[3 + param.numel() :].eq(123.0).all()


def test_chunks_of_another_layout_raise_before_anything_is_written() -> None:
    op = ops.REGISTRY["adam"]
    args = copy_args(op.sample_inputs()[0])
    args[10] = args[10][:-1]
    before = copy_args(tuple(args))
    assert op.triton is not None
    with pytest.raises(ValueError, match="make_layout"):
        op.triton(*args)
    assert torch.equal(args[0][3], before[0][3])


def test_float64_is_refused() -> None:
    op = ops.REGISTRY["adam"]
    args = copy_args(op.sample_inputs(dtype=torch.float64)[0])
    assert op.triton is not None
    with pytest.raises(TypeError, match="float64"):
        op.triton(*args)
