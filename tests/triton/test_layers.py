"""The Triton layers: by the interpreter in a process of its own, and compiled for sm_80 and sm_90 without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metafast.ops import _triton, _triton_layers
from metafast.ops._triton_layers import BATCH, GROUP, LAYER, Activation, Norm
from tests.triton.test_compile import Recorder, sources

triton = pytest.importorskip("triton", reason="the triton package is not installed")
ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("_norm_forward", "_norm_backward", "_norm_tangent", "_norm_backward_tangent", "_affine_sums", "_activate")


@pytest.mark.slow
def test_layers_by_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/triton/interpreted_layers.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def layer(name: str) -> Any:
    if name.startswith("activation"):
        return Activation(int(name.split()[1]), 0.1)
    kind = {"batch": BATCH, "group": GROUP, "layer": LAYER}[name.split()[0]]
    valid = torch.ones(2, 3, dtype=torch.bool) if "masked" in name else None
    return Norm(kind, 1e-5, 2, valid, relu="relu" in name)


@pytest.mark.slow
@pytest.mark.skipif(_triton.interpreted(), reason="TRITON_INTERPRET=1 is set: there is nothing to compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    "name", ["batch relu", "batch masked", "group relu", "layer", *(f"activation {k}" for k in (6, 7, 8, 17))]
)
def test_compiles_for(name: str, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = {kernel: Recorder(getattr(_triton_layers, kernel)) for kernel in KERNELS}
    for kernel, recorder in recorders.items():
        monkeypatch.setattr(_triton_layers, kernel, recorder)
    x = torch.randn(2, 3, 4, 5, 3)
    weight = torch.randn(2, 60 if name == "layer" else 4)
    tested = layer(name)
    tested.forward(x, weight, weight)
    tested.backward(x)
    tested.tangent(x, weight, weight)
    tested.backward_tangent(x)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    launched = [recorder for recorder in recorders.values() if recorder.launches]
    assert len(launched) >= (1 if "activation" in name else 4)
    for recorder in launched:
        for source in sources(recorder).values():
            assert triton.compile(source, target=target).asm["cubin"]
