"""The CUDA kernels on a device: sizes, layouts, streams and graphs that the samples of tests/ops do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import make_layout
from tests.helpers import assert_close, copy_args
from tests.ops import test_ops as suite

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = ["cuda", "triton"]


@pytest.fixture(autouse=True)
def plain_empty(nan_filled_empty: None) -> None:
    """`torch.empty` without the fill: its kernels would be part of the captured graphs."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)


def on_device(args: list[Any]) -> list[Any]:
    """The same arguments on the device, views at odd offsets included."""

    def move(tensor: Tensor) -> Tensor:
        storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
        return storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def each(arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return move(arg)
        return [each(item) for item in arg] if isinstance(arg, list) else arg

    return [each(arg) for arg in args]


def on_host(args: list[Any]) -> list[Any]:
    def each(arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return arg.cpu()
        return [each(item) for item in arg] if isinstance(arg, list) else arg

    return [each(arg) for arg in args]


def tensors(args: list[Any]) -> list[Tensor]:
    return [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]


@pytest.mark.parametrize(("offset", "backend"), [(0, "cuda"), (3, "cuda"), (3, "triton")])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", suite.STEPS)
def test_hostile_sizes_and_offsets(
    name: str, dtype: torch.dtype, state: torch.dtype, offset: int, backend: str
) -> None:
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        suite.with_tensors(op, suite.HOSTILE, dtype, state, offset=offset),
        suite.with_tensors(op, suite.HOSTILE, dtype, state, offset=offset),
        strict=True,
    ):
        moved = on_device(actual)
        op.reference(*expected)
        ops.resolve(name, "cuda", backend)(*moved)
        suite.compare(op, on_host(moved), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", suite.STEPS)
def test_stochastic_rounding_draws_the_same_bits(name: str, backend: str) -> None:
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        suite.with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        suite.with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        strict=True,
    ):
        expected[-1] = actual[-1] = 12345
        moved = on_device(actual)
        op.reference(*expected)
        ops.resolve(name, "cuda", backend)(*moved)
        for a, e in zip(tensors(on_host(moved)), tensors(expected), strict=True):
            if e.dtype is torch.bfloat16:
                assert float((a != e).float().mean()) < 2e-3
                assert_close(a, e, name, factor=2)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_more_tensors_than_one_launch_carries(name: str) -> None:
    op = ops.REGISTRY[name]
    numels = tuple(index % 4 for index in range(4500))
    expected, actual = (suite.with_tensors(op, numels, torch.float32, torch.float32)[0] for _ in range(2))
    moved = on_device(actual)
    op.reference(*expected)
    op.overload(*moved)
    suite.compare(op, on_host(moved), expected)


def test_squares_of_a_tensor_of_many_chunks() -> None:
    numels = [5, 1025 * ops.CHUNK + 7, 0, 40_000]
    grads = [torch.randn(n, device="cuda").to(torch.bfloat16) for n in numels]
    layout = make_layout(numels, "cuda")
    squares = torch.full((4,), torch.nan, dtype=torch.float64, device="cuda")
    ops.REGISTRY["grad_squares"].overload(grads, squares, layout.partials, layout.items, layout.chunks)
    expected = torch.stack([g.double().square().sum() for g in grads])
    assert_close(squares.float(), expected.float(), "squares")


@pytest.mark.parametrize("name", suite.STEPS)
def test_same_bits_every_time(name: str) -> None:
    op = ops.REGISTRY[name]
    runs = []
    for _ in range(3):
        samples = [
            on_device(args) for args in suite.with_tensors(op, (300_000, 7, 50_001), torch.float32, torch.float32)
        ]
        for args in samples:
            op.overload(*args)
        runs.append(samples)
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            for a, b in zip(tensors(first), tensors(second), strict=True):
                assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", [*suite.STEPS, "grad_squares", "hyper_rate"])
def test_neither_waits_nor_allocates(name: str) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs(device="cuda"):
        args = copy_args(sample)
        op.overload(*args)  # loads the kernel
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            op.overload(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("name", suite.STEPS)
def test_in_a_cuda_graph_on_a_side_stream(name: str) -> None:
    """Three replays are three steps: the step counter and the bias corrections live on the device."""
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        suite.with_tensors(op, (5, 40_000), torch.float32, torch.float32),
        suite.with_tensors(op, (5, 40_000), torch.float32, torch.float32),
        strict=True,
    ):
        captured = on_device(actual)
        eager = on_device(actual)
        op.overload(*on_device(actual))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            op.overload(*captured)
        for a, b in zip(tensors(captured), tensors(eager), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num()), "capture must not run the step"
        for _ in range(3):
            graph.replay()
            op.overload(*eager)
            op.reference(*expected)
        torch.cuda.synchronize()
        for a, b in zip(tensors(captured), tensors(eager), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        for key, want in suite.written(op, expected).items():
            have = suite.written(op, on_host(captured))[key]
            if key in ("params", "step"):
                for a, e in zip(*(v if isinstance(v, list) else [v] for v in (have, want)), strict=True):
                    assert_close(a, e, f"{name} {key}", factor=8)


def test_beyond_two_to_the_31_elements() -> None:
    """One bf16 tensor of 2^31 + 20,000 elements: the last ones move, and their sums are counted."""
    numel = 2**31 + 20_000
    if torch.cuda.mem_get_info()[0] < 12 * numel:
        pytest.skip("needs 26 GB of device memory")
    param, grad = (torch.zeros(numel, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    grad[-10_000:] = 0.5
    layout = make_layout([numel], "cuda")
    buffer = torch.zeros(layout.arena_size, dtype=torch.bfloat16, device="cuda")
    step = torch.zeros(1, device="cuda")
    stats = torch.zeros(1, 4, dtype=torch.float64, device="cuda")
    lr = torch.ones(1, dtype=torch.float64, device="cuda")
    ops.REGISTRY["sgd"].overload(
        [param], [grad], buffer, None, None, step, stats, layout.partials, layout.items, layout.chunks, lr,
        None, None, None, 0.25, 0.9, 0.0, 0.0, False, False,
    )  # fmt: skip
    assert float(stats[0, 0]) == 10_000 * 0.25
    assert bool((param[-10_000:] == -0.125).all())
    assert bool((param[:-10_000] == 0).all())
    assert bool((buffer[numel - 10_000 : numel] == 0.5).all())
