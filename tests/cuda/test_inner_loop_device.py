"""The inner loops on a CUDA device: against the reference, in graphs, bit for bit, without waiting for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops._inner_loop_graph import GraphedInnerLoop, InnerLoopGraphs
from tests.cuda.inner_loop_cases import PROGRAMS, arguments
from tests.helpers import assert_close, copy_args

pytestmark = pytest.mark.gpu

OP = ops.REGISTRY["inner_loop"]
FACTOR = {torch.float64: 10.0, torch.float32: 5.0}


@pytest.fixture(autouse=True)
def plain_empty(nan_filled_empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` without the fill, whose kernels would be part of a graph; PyTorch's convolutions in fp32."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def outputs(name: str, args: list[Any]) -> dict[str, Tensor]:
    arguments = ops.REGISTRY[name].overload._schema.arguments
    pairs = zip(arguments, args, strict=True)
    return {a.name: v for a, v in pairs if a.alias_info is not None and a.alias_info.is_write and v is not None}


def compare(name: str, actual: list[Any], expected: list[Any], factor: float) -> None:
    for key, want in outputs(name, expected).items():
        assert_close(outputs(name, actual)[key].cpu(), want.cpu(), f"{name} {key}", factor=factor)


def same(first: list[Any], second: list[Any]) -> None:
    for key, want in outputs("inner_loop", first).items():
        found = outputs("inner_loop", second)[key]
        assert torch.equal(found.nan_to_num(7.0), want.nan_to_num(7.0)), key


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["task_grad", "task_hvp", "inner_loop"])
def test_equals_reference(name: str, dtype: torch.dtype, backend: str) -> None:
    op = ops.REGISTRY[name]
    assert ops._native.LIBRARIES["cuda"].loaded, ops._native.LIBRARIES["cuda"].reason
    for on_host, on_device in zip(op.sample_inputs(dtype=dtype), op.sample_inputs("cuda", dtype=dtype), strict=True):
        expected, actual = copy_args(on_host), copy_args(on_device)
        op.reference(*expected)
        ops.resolve(name, "cuda", backend)(*actual)
        compare(name, actual, expected, FACTOR[dtype] * (5 if backend == "triton" else 1))  # cuDNN's convolutions


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("program", PROGRAMS)
def test_tiles(program: str, dtype: torch.dtype) -> None:
    actual, expected = arguments(program, dtype, "cuda"), arguments(program, torch.float64)
    OP.reference(*expected)
    OP.overload(*actual)
    for key, want in outputs("inner_loop", expected).items():
        found = outputs("inner_loop", actual)[key].cpu()
        assert_close(found, want.to(dtype), f"{program} {key}", factor=FACTOR[dtype])


@pytest.mark.parametrize("budget", [-1, 0])
def test_same_bits_every_time(budget: int) -> None:
    first = arguments("vectors", torch.float32, "cuda", steps=4)
    OP.overload(*first)
    for _ in range(3):
        again = arguments("vectors", torch.float32, "cuda", steps=4, budget=budget)
        OP.overload(*again)
        same(first, again)


def test_does_not_wait() -> None:
    args = arguments("vectors", torch.float32, "cuda")
    OP.overload(*args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        OP.overload(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_allocation_each_call() -> None:
    args = arguments("vectors", torch.float32, "cuda")
    OP.overload(*args)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    OP.overload(*args)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before + 1


def test_in_a_graph() -> None:
    args = arguments("vectors", torch.float32, "cuda")
    graph = GraphedInnerLoop(tuple(args))
    for index, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_cuda and value.is_floating_point():
            args[index] = torch.randn_like(value) * (0.05 if value.dim() == 2 else 0.3)
    eager = copy_args(tuple(args))
    OP.overload(*eager)
    graph(*args)
    same(eager, args)


def test_graphs_are_captured_at_the_second_call() -> None:
    graphs = InnerLoopGraphs(capacity=2)
    for steps in (1, 2, 1, 2, 1):
        args = arguments("deep", torch.float32, "cuda", steps=steps)
        expected = copy_args(tuple(args))
        OP.overload(*expected)
        graphs(*args)
        same(expected, args)
    assert len(graphs) == 2


def test_one_task_changes_only_its_own_results() -> None:
    before = copy_args(OP.sample_inputs("cuda")[0])
    names = [a.name for a in OP.overload._schema.arguments]
    before[names.index("task_weights")] = torch.tensor([0.5, 0.0, 1.5], dtype=torch.float64, device="cuda")
    after = copy_args(tuple(before))
    after[names.index("support_x")][1] = torch.nan
    for args in (before, after):
        OP.overload(*args)
    found, want = outputs("inner_loop", after), outputs("inner_loop", before)
    assert bool(found["task_losses"][1].isnan())
    for key in ("grad_weights", "grad_rates", "grad_support_x"):
        assert torch.equal(found[key], want[key]), key


def test_host_tensors_are_asked_for() -> None:
    args = arguments("vectors", torch.float32, "cuda")
    args[0] = args[0].cuda()
    with pytest.raises(RuntimeError, match="program must be a CPU tensor"):
        OP.overload(*args)
