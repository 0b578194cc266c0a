"""The CUDA driver without a GPU: its own argument handling, launches and kernel bodies, compiled for the host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metafast import ops
from metafast.ops import make_layout
from tests.helpers import assert_close, copy_args
from tests.ops import test_ops as suite

ROOT = Path(__file__).resolve().parents[2]
TORCH = Path(torch.__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++")
NAMES = ["adam", "hyper_adam", "sgd", "hyper_sgd", "grad_squares", "hyper_rate"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Run = Callable[..., None]

LIBRARY = torch.library.Library("metafast_host_driver", "DEF")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The op of each name that runs through the CUDA driver on CPU tensors."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    library = tmp_path_factory.mktemp("host_driver") / "libhost_driver.so"
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}", f"-isystem{TORCH / 'include'}"]
    command += [str(ROOT / "tests/cuda/host_driver.cpp"), "-o", str(library)]
    command += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for name in NAMES:
        LIBRARY.define(str(ops.REGISTRY[name].overload._schema).replace("metafast::", "", 1))
    torch.ops.load_library(str(library))
    return {name: getattr(torch.ops.metafast_host_driver, name) for name in NAMES}


def tensors(args: list[Any]) -> list[Tensor]:
    return [t for arg in args for t in (arg if isinstance(arg, list) else [arg]) if isinstance(t, Tensor)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_reference(driver: dict[str, Run], name: str, dtype: torch.dtype) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs(dtype=dtype):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        driver[name](*actual)
        suite.compare(op, actual, expected)


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", suite.STEPS)
def test_hostile_sizes_and_offsets(
    driver: dict[str, Run], name: str, dtype: torch.dtype, state: torch.dtype, offset: int
) -> None:
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        suite.with_tensors(op, suite.HOSTILE, dtype, state, offset=offset),
        suite.with_tensors(op, suite.HOSTILE, dtype, state, offset=offset),
        strict=True,
    ):
        op.reference(*expected)
        driver[name](*actual)
        suite.compare(op, actual, expected)


@pytest.mark.parametrize("name", suite.STEPS)
def test_stochastic_rounding_draws_the_same_bits(driver: dict[str, Run], name: str) -> None:
    """As in tests/ops: other bits only where the fp32 values straddle a rounding boundary."""
    op = ops.REGISTRY[name]
    for expected, actual in zip(
        suite.with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        suite.with_tensors(op, (4097, 20_000), torch.bfloat16, torch.bfloat16),
        strict=True,
    ):
        expected[-1] = actual[-1] = 12345
        op.reference(*expected)
        driver[name](*actual)
        for a, e in zip(tensors(actual), tensors(expected), strict=True):
            if e.dtype is torch.bfloat16:
                assert float((a != e).float().mean()) < 2e-3
                assert_close(a, e, name, factor=2)


@pytest.mark.parametrize("name", suite.STEPS)
def test_found_inf_changes_nothing(driver: dict[str, Run], name: str) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs():
        args = copy_args(sample)
        args[suite.names(op).index("found_inf")] = torch.ones(())
        before = copy_args(tuple(args))
        driver[name](*args)
        for a, b in zip(tensors(args), tensors(before), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_more_tensors_than_one_launch_carries(driver: dict[str, Run], name: str) -> None:
    op = ops.REGISTRY[name]
    numels = tuple(index % 4 for index in range(4500))
    for expected, actual in list(
        zip(
            suite.with_tensors(op, numels, torch.float32, torch.float32),
            suite.with_tensors(op, numels, torch.float32, torch.float32),
            strict=True,
        )
    )[:2]:
        op.reference(*expected)
        driver[name](*actual)
        suite.compare(op, actual, expected)


def test_squares_of_a_tensor_of_many_chunks(driver: dict[str, Run]) -> None:
    """Above 1,024 chunks a whole block adds a tensor's sums; its neighbours keep a warp each."""
    numels = [5, 1025 * ops.CHUNK + 7, 0, 40_000]
    grads = [torch.randn(n).to(torch.bfloat16) for n in numels]
    layout = make_layout(numels)
    squares = torch.full((4,), torch.nan, dtype=torch.float64)
    driver["grad_squares"](grads, squares, layout.partials, layout.items, layout.chunks)
    expected = torch.stack([g.double().square().sum() for g in grads])
    assert_close(squares.float(), expected.float(), "squares")


@pytest.mark.parametrize("order", [0, 1, 2])
def test_rate_does_not_depend_on_the_order_of_tensors(driver: dict[str, Run], order: int) -> None:
    stats = torch.randn(300, 4, dtype=torch.float64) * 10.0 ** torch.randint(-20, 20, (300, 1)).double()
    stats[:, (0, 2)] = stats[:, (0, 2)].abs()
    segments = torch.zeros(300, dtype=torch.int64)
    rate, permuted = torch.full((1,), 0.01, dtype=torch.float64), torch.full((1,), 0.01, dtype=torch.float64)
    driver["hyper_rate"](rate, stats, segments, None, order, 0.05, 1e-8, 10.0)
    driver["hyper_rate"](permuted, stats[torch.randperm(300)], segments, None, order, 0.05, 1e-8, 10.0)
    assert torch.equal(rate, permuted)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rate_survives_bad_statistics(driver: dict[str, Run], bad: float) -> None:
    stats = torch.ones(3, 4, dtype=torch.float64)
    stats[1, 1] = bad
    rate = torch.tensor([0.01, 0.02], dtype=torch.float64)
    driver["hyper_rate"](rate, stats, torch.tensor([0, 0, 1]), None, 2, 0.05, 1e-8, 10.0)
    assert float(rate[0]) == pytest.approx(0.01)
    assert float(rate[1]) > 0.02


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{name: mistake for name, mistake in suite.MISTAKES.items() if "order" not in name},
    "mixed dtypes": (lambda a: a["params"].__setitem__(2, a["params"][2].to(torch.bfloat16)), "share one dtype"),
    "a chunk too few": (lambda a: a.update(chunks=a["chunks"][:-1]), "make_layout"),
    "fp16 states": (lambda a: a.update({k: a[k].half() for k in ("exp_avg", "previous") if k in a}), "bfloat16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["adam", "hyper_sgd"])
def test_mistakes_raise_and_change_nothing(driver: dict[str, Run], name: str, mistake: str) -> None:
    op = ops.REGISTRY[name]
    change, message = MISTAKES[mistake]
    sample = next(s for s in op.sample_inputs() if name == "adam" or s[3] is not None)
    named = dict(zip(suite.names(op), copy_args(sample), strict=False))
    change(named)
    args = list(named.values())
    before = copy_args(tuple(args))
    with pytest.raises(RuntimeError, match=message):
        driver[name](*args)
    for a, b in zip(tensors(args), tensors(before), strict=True):
        assert torch.equal(a, b)
