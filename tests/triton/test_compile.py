"""Every launch of every Triton rule compiles to machine code for sm_80 and sm_90, with no GPU at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metafast import ops
from metafast.ops import _triton
from tests.helpers import copy_args

triton = pytest.importorskip("triton", reason="the triton package is not installed")
if _triton.interpreted():
    pytest.skip("TRITON_INTERPRET=1 is set: there is nothing to compile", allow_module_level=True)

RULES = ["adam", "hyper_adam", "sgd", "hyper_sgd"]
TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class Recorder:
    """Stands for a kernel, and keeps the arguments of its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((args, kwargs))


def type_of(arg: Any) -> Any:
    if arg is None:
        return "constexpr"
    if isinstance(arg, torch.Tensor):
        return TYPES[arg.dtype]
    if isinstance(arg, tuple):
        return tuple(type_of(item) for item in arg)
    return "fp32" if isinstance(arg, float) else ("i64" if arg >= 1 << 31 else "i32")


def sources(recorder: Recorder) -> dict[str, Any]:
    """The distinct specializations among the recorded launches."""
    names = recorder.kernel.arg_names
    found = {}
    for args, constants in recorder.launches:
        signature = {name: type_of(arg) for name, arg in zip(names, args, strict=False)}
        constexprs = {name: None for name, arg in zip(names, args, strict=False) if arg is None} | constants
        signature |= dict.fromkeys(constants, "constexpr")
        found[repr((signature, constexprs))] = triton.compiler.ASTSource(recorder.kernel, signature, constexprs)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", RULES)
def test_compiles_for(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, finish = Recorder(_triton._step_kernel), Recorder(_triton._finish_kernel)
    monkeypatch.setattr(_triton, "_step_kernel", step)
    monkeypatch.setattr(_triton, "_finish_kernel", finish)
    op = ops.REGISTRY[name]
    assert op.triton is not None
    for sample in op.sample_inputs(dtype=torch.bfloat16):
        args = copy_args(sample)
        args[-1] = 1  # stochastic rounding, whose hash is part of what has to compile
        op.triton(*args)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    found = {**sources(step), **sources(finish)}
    assert len(step.launches) > 0
    for source in found.values():
        assert triton.compile(source, target=target).asm["cubin"]
