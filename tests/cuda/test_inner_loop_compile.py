"""What the CUDA compiler says of the inner loops' kernels: nothing goes to local memory, on any architecture."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.parametrize(("source", "tiles"), [("inner_loop.cu", 12), ("inner_loop_f64.cu", 3)])
def test_nothing_spills(source: str, tiles: int, tmp_path: Path) -> None:
    assert NVCC is not None
    codes = [part for a in ("80", "90") for part in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    command = [NVCC, "-std=c++20", "-O3", "-Werror", "all-warnings", *codes, "--threads", "2", "-Xptxas", "-v", "-c"]
    built = subprocess.run(
        [*command, str(ROOT / "csrc/cuda" / source), "-o", str(tmp_path / "inner_loop.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert set(re.findall(r"for '(sm_\d+)'", built.stderr)) == {"sm_80", "sm_90"}
    kernels = set(re.findall(r"Compiling entry function '(\w+)'", built.stderr))
    assert sum("conv_kernel" in name for name in kernels) == tiles
    memory = re.findall(
        r"Function properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        built.stderr,
    )
    assert kernels <= {name for name, *_ in memory}
    assert [row for row in memory if row[1:] != ("0", "0", "0")] == []
    used = re.findall(r"Used (\d+) registers[^\n]*?(?:, (\d+) bytes smem)?(?=,|\n)", built.stderr)
    assert max(int(registers) for registers, _ in used) <= 168  # three blocks of 128 threads at least
