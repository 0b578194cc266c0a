"""The inner loops' CUDA driver without a GPU: its engine, checks and kernel bodies, compiled for the host."""

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
from tests.cuda.inner_loop_cases import PROGRAMS, arguments
from tests.helpers import assert_close, copy_args

ROOT = Path(__file__).resolve().parents[2]
TORCH = Path(torch.__file__).parent
COMPILER = shutil.which("c++") or shutil.which("g++")
NAMES = ["task_grad", "task_hvp", "inner_loop"]
# Several layers and steps, forward and back, in another order of sums; double shows that nothing else differs.
FACTOR = {torch.float64: 10.0, torch.float32: 4.0}

Run = Callable[..., None]

LIBRARY = torch.library.Library("metafast_host_inner_loop", "DEF")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The op of each name that runs through the CUDA driver on CPU tensors."""
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    library = tmp_path_factory.mktemp("inner_loop") / "libinner_loop_host.so"
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}", f"-isystem{TORCH / 'include'}"]
    command += [str(ROOT / "tests/cuda/inner_loop_host.cpp"), "-o", str(library)]
    command += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for name in NAMES:
        LIBRARY.define(str(ops.REGISTRY[name].overload._schema).replace("metafast::", "", 1))
    torch.ops.load_library(str(library))
    return {name: getattr(torch.ops.metafast_host_inner_loop, name) for name in NAMES}


def parameters(name: str) -> list[str]:
    return [argument.name for argument in ops.REGISTRY[name].overload._schema.arguments]


def outputs(name: str, args: list[Any]) -> dict[str, Tensor]:
    schema = ops.REGISTRY[name].overload._schema
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return {k: v for k, v in zip(parameters(name), args, strict=True) if k in written and v is not None}


def compare(name: str, actual: list[Any], expected: list[Any], factor: float) -> None:
    for key, want in outputs(name, expected).items():
        assert_close(outputs(name, actual)[key], want, f"{name} {key}", factor=factor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_reference(driver: dict[str, Run], name: str, dtype: torch.dtype) -> None:
    op = ops.REGISTRY[name]
    for sample in op.sample_inputs(dtype=dtype):
        expected, actual = copy_args(sample), copy_args(sample)
        op.reference(*expected)
        driver[name](*actual)
        compare(name, actual, expected, FACTOR[dtype])


@pytest.mark.parametrize("program", PROGRAMS)
def test_tiles(driver: dict[str, Run], program: str) -> None:
    """Every kind of tile against the reference in double: the error of fp32 storage and of split TF32 products."""
    actual, expected = arguments(program, torch.float32), arguments(program, torch.float64)
    ops.REGISTRY["inner_loop"].reference(*expected)
    driver["inner_loop"](*actual)
    for key, want in outputs("inner_loop", expected).items():
        assert_close(outputs("inner_loop", actual)[key], want.float(), f"{program} {key}", factor=5)


def test_long_sums_keep_single_precision(driver: dict[str, Run]) -> None:
    """A linear layer over 4,096 inputs: without the low halves of the products the error is 100 times larger."""
    from metafast.ops._inner_loop_samples import _Builder, _Data

    b = _Builder(4096)
    b.linear(8)
    program = b.program()
    results = {}
    for dtype, run in ((torch.float64, ops.REGISTRY["task_grad"].reference), (torch.float32, driver["task_grad"])):
        data = _Data(program, "cpu", dtype, 0, 2, masked=False)
        weights, (x, y, _) = data.weights(per_task=True), data.examples(16)
        out = [
            weights.new_zeros(2),
            weights.new_zeros(2, 16, 8),
            weights.new_zeros(2, program.numel),
            torch.zeros_like(x),
        ]
        run(*data.vectors, weights, x, y, None, None, None, 0, 0, 0, *out)
        results[dtype] = out
    for found, want in zip(results[torch.float32], results[torch.float64], strict=True):
        scale = want.square().mean().sqrt()
        assert float((found - want).abs().max() / scale) < 4e-6


@pytest.mark.parametrize("budget", [0, 60_000])
@pytest.mark.parametrize("sample", [3, 4])
def test_recomputing_gives_the_same_bits(driver: dict[str, Run], sample: int, budget: int) -> None:
    stored, recomputed = (copy_args(ops.REGISTRY["inner_loop"].sample_inputs()[sample]) for _ in range(2))
    recomputed[parameters("inner_loop").index("memory_budget")] = budget
    driver["inner_loop"](*stored)
    driver["inner_loop"](*recomputed)
    for key, want in outputs("inner_loop", stored).items():
        assert torch.equal(outputs("inner_loop", recomputed)[key].nan_to_num(7.0), want.nan_to_num(7.0)), key


@pytest.mark.parametrize("sample", [0, 3, 4])
def test_one_task_changes_only_its_own_results(driver: dict[str, Run], sample: int) -> None:
    """A task of NaNs and weight 0: the others keep every bit, and sums over tasks leave it out."""
    names = parameters("inner_loop")
    before = copy_args(ops.REGISTRY["inner_loop"].sample_inputs()[sample])
    index = names.index("task_weights")
    before[index] = torch.tensor([0.5, 0.0, 1.5], dtype=torch.float64)
    after = copy_args(tuple(before))
    after[names.index("support_x")][1] = torch.nan
    for args in (before, after):
        driver["inner_loop"](*args)
    found, want = outputs("inner_loop", after), outputs("inner_loop", before)
    for key in ("task_losses", "support_losses", "logits", "adapted"):
        assert torch.equal(found[key][::2].nan_to_num(7.0), want[key][::2].nan_to_num(7.0)), key
    assert bool(found["task_losses"][1].isnan())
    shared = before[names.index("weights")].dim() == 1
    for key in ("grad_weights", "grad_rates", "batch_stats"):
        if key != "grad_weights" or shared:
            assert torch.equal(found[key], want[key]), key
    for key in ("grad_support_x", "grad_query_x"):
        assert torch.equal(found[key], want[key]), key


def test_no_tasks(driver: dict[str, Run]) -> None:
    args = arguments("vectors", torch.float32)
    names = parameters("inner_loop")
    for name in ("support_x", "support_y", "query_x", "query_y", "task_losses", "support_losses", "query_losses",
                 "logits", "grad_support_x", "grad_query_x", "adapted"):  # fmt: skip
        args[names.index(name)] = args[names.index(name)][:0]
    args[names.index("grad_weights")].fill_(torch.nan)
    driver["inner_loop"](*args)
    assert bool((args[names.index("grad_weights")] == 0).all())


@pytest.mark.parametrize("steps", [0, 1])
def test_few_steps(driver: dict[str, Run], steps: int) -> None:
    expected, actual = (arguments("deep", torch.float64, steps=steps) for _ in range(2))
    if steps == 0:
        for args in (expected, actual):
            names = parameters("inner_loop")
            for name in ("rates", "grad_rates"):
                args[names.index(name)] = torch.zeros(1, 1, dtype=torch.float64)
    ops.REGISTRY["inner_loop"].reference(*expected)
    driver["inner_loop"](*actual)
    compare("inner_loop", actual, expected, FACTOR[torch.float64])


@pytest.mark.parametrize(("order", "budget"), [(0, -1), (1, -1), (2, -1), (2, 0)])
@pytest.mark.parametrize("program", ["head", "shortcut"])
def test_frozen_layers(driver: dict[str, Run], program: str, order: int, budget: int) -> None:
    expected, actual = (arguments(program, torch.float64, steps=3, order=order, budget=budget) for _ in range(2))
    for args in (expected, actual):  # a query loss at every step: its memory must not be that of the frozen gradients
        args[parameters("inner_loop").index("query_weights")] = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    ops.REGISTRY["inner_loop"].reference(*expected)
    driver["inner_loop"](*actual)
    compare("inner_loop", actual, expected, FACTOR[torch.float64])


def replaced(name: str, value: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def change(args: list[Any]) -> None:
        index = parameters("inner_loop").index(name)
        args[index] = value(args[index])

    return change


MISTAKES: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "no program": (replaced("program", lambda p: p + 1), "program"),
    "a short program": (replaced("program", lambda p: p[:-1].clone()), "program"),
    "weights too few": (replaced("weights", lambda w: w[:-1].clone()), "weights has shape"),
    "weights of another dtype": (replaced("weights", lambda w: w.half()), "weights must be float32 or float64"),
    "rates of another width": (replaced("rates", lambda r: r[:, :2].clone()), "rates has shape"),
    "rates of another dtype": (replaced("rates", lambda r: r.double()), "rates must be"),
    "examples of another size": (replaced("query_x", lambda x: x[..., :-1].clone()), "query_x has shape"),
    "labels of another dtype": (replaced("support_y", lambda y: y.int()), "support_y must be int64"),
    "query weights too few": (replaced("query_weights", lambda w: w[:-1].clone()), "query_weights has shape"),
    "not contiguous": (replaced("support_x", lambda x: x.transpose(-1, -2)), "contiguous"),
    "an unknown order": (replaced("order", lambda _: 3), "order must be 0, 1 or 2"),
    "an unknown rule": (replaced("rule", lambda _: 3), "rule must be 0, 1 or 2"),
    "an output of another shape": (replaced("adapted", lambda a: a[:, :-1].clone()), "adapted has shape"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_raise_and_change_nothing(driver: dict[str, Run], mistake: str) -> None:
    change, message = MISTAKES[mistake]
    args = arguments("vectors", torch.float32)
    change(args)
    before = copy_args(tuple(args))
    with pytest.raises(RuntimeError, match=message):
        driver["inner_loop"](*args)
    for key, want in outputs("inner_loop", before).items():
        assert torch.equal(outputs("inner_loop", args)[key], want), key
