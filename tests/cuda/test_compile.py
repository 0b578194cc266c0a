"""What the CUDA compiler says of every kernel: it compiles for each architecture, and nothing goes to local memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
RULES = (ROOT / "csrc/rules/all.h").read_text()


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_nothing_spills(architecture: str, tmp_path: Path) -> None:
    assert NVCC is not None
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    command = [NVCC, "-std=c++20", "-O3", "-Werror", "all-warnings", "-gencode", code, "-Xptxas", "-v", "-c"]
    built = subprocess.run(
        [*command, str(ROOT / "csrc/cuda/kernels.cu"), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    kernels = set(re.findall(r"Compiling entry function '(\w+)'", built.stderr))
    rules = len(re.findall(r"^ +X\(", RULES, re.MULTILINE))
    assert len(kernels) == 4 * rules + 3, "a rule has lost a storage type"
    memory = re.findall(
        r"Function properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        built.stderr,
    )
    assert kernels <= {name for name, *_ in memory}
    assert [row for row in memory if row[1:] != ("0", "0", "0")] == []
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", built.stderr)]
    assert len(registers) >= len(kernels)
    assert max(registers) <= 128
