"""What all tests share: the one tolerance table, copies of op arguments, and comparisons."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import _native

native = pytest.mark.skipif(not _native.LIBRARIES["cpu"].loaded, reason="the native CPU library is not built")

# Largest accepted |actual - expected| / (|expected| + scale), by storage dtype, where scale is the tensor's root mean
# square: one step of fp32 maths in another order, then one rounding of the storage type (half an ulp either way is a
# whole ulp between two backends).
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}


def copy_args(args: tuple[Any, ...]) -> list[Any]:
    """Arguments of an op with tensors of their own."""
    return [copy_arg(arg) for arg in args]


def copy_arg(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return arg.clone()
    if isinstance(arg, (list, tuple)):
        return [copy_arg(item) for item in arg]
    return arg


def names(op: ops.Op) -> list[str]:
    """Of an op's arguments."""
    return list(inspect.signature(op.reference).parameters)


def tensors_of(args: list[Any]) -> list[Tensor]:
    """All tensors among an op's arguments, in order."""
    return [x for arg in args for x in (arg if isinstance(arg, list) else [arg]) if isinstance(x, Tensor)]


def assert_refused(op: ops.Op, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """A mistake in the arguments raises in every implementation, and changes nothing."""
    for run in (op.reference, op.overload):
        args = copy_args(op.sample_inputs()[0])
        change(dict(zip(names(op), args, strict=False)))
        before = copy_args(tuple(args))
        with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
            run(*args)
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(args), tensors_of(before), strict=True))


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error, as the tolerance table means it."""
    if expected.numel() == 0:
        return 0.0
    a, e = actual.detach().double(), expected.detach().double()
    if not torch.equal(a.isnan(), e.isnan()):
        return float("inf")
    a, e = a.nan_to_num(0.0), e.nan_to_num(0.0)
    scale = e.square().mean().sqrt()
    return float(((a - e).abs() / (e.abs() + scale + 1e-30)).max())


def assert_close(actual: Tensor, expected: Tensor, what: str, *, factor: float = 1.0) -> None:
    """Compares with the tolerance of the storage dtype; `factor` is for comparisons over several steps."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    limit = TOLERANCE[expected.dtype] * factor
    found = error(actual, expected)
    assert found <= limit, f"{what}: relative error {found:.3g} above {limit:.3g}"
