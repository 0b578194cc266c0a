"""Which calls of `inner_loop` may share a CUDA graph; the graphs themselves are tested on a device."""

from __future__ import annotations

import pytest
import torch

from metafast import ops
from metafast.ops._inner_loop_graph import InnerLoopGraphs, signature
from tests.cuda.inner_loop_cases import arguments
from tests.helpers import copy_args

NAMES = [argument.name for argument in ops.REGISTRY["inner_loop"].overload._schema.arguments]


def test_same_call_same_signature() -> None:
    args = arguments("vectors", torch.float32)
    assert signature(tuple(args)) == signature(tuple(copy_args(tuple(args))))
    assert hash(signature(tuple(args))) == hash(signature(tuple(args)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 3), ("order", 1), ("momentum", 0.9), ("query_weights", torch.tensor([0.5, 0.0, 1.0]).double()),
     ("support_mask", torch.ones(2, 4, dtype=torch.bool)), ("logits", None), ("first_task", 7)],
)  # fmt: skip
def test_other_calls_have_another_signature(name: str, value: object) -> None:
    args = arguments("vectors", torch.float32)
    other = list(args)
    other[NAMES.index(name)] = value
    assert signature(tuple(args)) != signature(tuple(other))


def test_the_seed_counts_only_where_it_is_used() -> None:
    samples = ops.REGISTRY["inner_loop"].sample_inputs()
    for index, matters in ((0, False), (3, True)):  # the second has dropout
        other = list(samples[index])
        other[NAMES.index("seed")] += 1
        assert (signature(samples[index]) != signature(tuple(other))) is matters


def test_calls_on_the_cpu_run_the_op() -> None:
    calls = []
    graphs = InnerLoopGraphs(run=lambda *args: calls.append(args))
    args = arguments("vectors", torch.float32)
    for _ in range(3):
        graphs(*args)
    assert len(calls) == 3 and len(graphs) == 0


def test_capacity_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        InnerLoopGraphs(capacity=0)
