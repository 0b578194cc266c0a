"""The reference of the inner-loop ops against plain autograd, gradcheck and finite differences, in float64."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from tests.innerloop import plain

OP = ops.REGISTRY["inner_loop"]
NAMES = list(inspect.signature(OP.reference).parameters)
OUTPUTS = NAMES[NAMES.index("task_losses") :]
SAMPLES = len(OP.sample_inputs())


def named(index: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return dict(zip(NAMES, OP.sample_inputs(dtype=dtype)[index], strict=True))


def close(actual: Tensor, expected: Tensor, what: str, limit: float = 1e-10) -> None:
    assert torch.equal(actual.isnan(), expected.isnan()), what
    actual, expected = actual.nan_to_num(), expected.nan_to_num()
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-3)
    worst = float((actual - expected).abs().max()) / scale if expected.numel() else 0.0
    assert worst <= limit, f"{what}: {worst:.3g}"


@pytest.mark.parametrize("index", range(SAMPLES))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_autograd(index: int, order: int) -> None:
    """Every output of every sample, at every order."""
    args = named(index)
    args["order"] = order
    expected = plain.inner_loop(args)
    OP.reference(**args)
    for name in OUTPUTS:
        if args[name] is None:
            continue
        if name.startswith("grad_") and order == 0:
            assert not args[name].any(), name
        else:
            close(args[name], expected[name], name)
