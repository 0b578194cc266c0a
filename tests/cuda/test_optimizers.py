"""metafast.optim on a device: the CPU's numbers, no waiting for the device, and a whole training step in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import optim
from tests.helpers import assert_close

pytestmark = pytest.mark.gpu

SHAPES = ((33, 65), (104,), (), (1,), (0,), (40_000,))
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "tensor": {"hypergrad": "tensor"},
    "global": {"hypergrad": "global", "hyper_rule": "additive", "hyper_lr": 1e-7},
    "exact": {"hypergrad": "tensor", "hyper_exact": True},
    "element": {"hypergrad": "element"},
    "clipped": {"hypergrad": "group", "max_grad_norm": 1.0},
    "bf16 states": {"state_dtype": torch.bfloat16},
    "masters": {"hypergrad": "tensor", "master_weights": True},
}
CLASSES = {
    "AdamW": lambda params, **options: optim.AdamW(params, lr=1e-3, **options),
    "Adam": lambda params, **options: optim.Adam(params, lr=1e-3, amsgrad=True, weight_decay=1e-2, **options),
    "SGD": lambda params, **options: optim.SGD(params, lr=1e-2, momentum=0.9, **options),
}


@pytest.fixture(autouse=True)
def plain_empty(nan_filled_empty: None) -> None:
    """`torch.empty` without the fill: its kernels would be part of the captured graphs."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(False)


def draw(seed: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]


def train(name: str, option: str, device: str, steps: int = 5) -> tuple[list[Tensor], Any]:
    dtype = torch.bfloat16 if option == "masters" else torch.float32
    params = [torch.nn.Parameter(p) for p in draw(0, device, dtype)]
    optimizer = CLASSES[name](params, **OPTIONS[option])
    for seed in range(1, steps + 1):
        for param, grad in zip(params, draw(seed, device, dtype), strict=True):
            param.grad = grad
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_equals_the_cpu(name: str, option: str) -> None:
    expected, on_cpu = train(name, option, "cpu")
    actual, on_cuda = train(name, option, "cuda")
    # An fp32 value at a boundary becomes a whole step of a bf16 state, or of an element's rate where its sign flips.
    coarse = option in ("bf16 states", "element")
    factor = 5e3 if coarse else 16
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a.cpu(), e, f"{name} {option} {index}", factor=factor)
    assert on_cuda.learned_lr() == pytest.approx(on_cpu.learned_lr(), rel=1e-3 if coarse else 1e-5, nan_ok=True)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_steps_do_not_wait(name: str, option: str) -> None:
    params, optimizer = train(name, option, "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for param in params:
                assert param.grad is not None
                param.grad.mul_(0.5)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_replays_in_a_graph(name: str, option: str) -> None:
    eager, eager_optimizer = train(name, option, "cuda")
    captured, captured_optimizer = train(name, option, "cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        captured_optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured_optimizer.step()
    graph.replay()
    graph.replay()
    for _ in range(3):
        eager_optimizer.step()
    torch.cuda.synchronize()
    for a, b in zip(captured, eager, strict=True):
        assert torch.equal(a, b)
