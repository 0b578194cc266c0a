"""The compiler's own report: every rule in every storage format is a SIMD loop of full width."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cpu" / "kernels.cpp"
WIDTHS = {"avx2": 32, "avx512": 64}


def flags(isa: str) -> list[str]:
    """The flags that CMakeLists.txt compiles the kernels with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    common = re.search(r"set\(MF_KERNEL_FLAGS ([^)]*)\)", text)
    own = re.search(rf"set\(MF_FLAGS_{isa} ([^)]*)\)", text)
    assert common and own
    return [*common[1].split(), *own[1].split(), "-std=c++20", f"-DMF_ISA={isa}"]


@pytest.mark.parametrize("isa", WIDTHS)
def test_every_rule_is_vectorized(isa: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    if "x86_64" not in subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True).stdout:
        pytest.skip("needs an x86-64 compiler")
    report = tmp_path / "report.txt"
    command = [compiler, *flags(isa), f"-fopt-info-vec-all={report}", "-c", str(KERNELS)]
    subprocess.run([*command, "-o", str(tmp_path / "kernels.o")], check=True)

    lines = KERNELS.read_text().splitlines()
    pragma = next(i for i, line in enumerate(lines, 1) if "reduction(+ : gg, gu, uu, pp)" in line)
    place = re.compile(rf"kernels\.cpp:(?:{pragma}|{pragma + 1}):\d+: (.*)")
    said = [match[1] for match in map(place.search, report.read_text().splitlines()) if match]
    full = sum(f"loop vectorized using {WIDTHS[isa]} byte vectors" in line for line in said)
    missed = [line for line in said if "couldn't vectorize loop" in line]
    rules = len(re.findall(r"^\s*X\(\w+, ", (ROOT / "csrc" / "rules" / "all.h").read_text(), re.M))
    # Seven storage formats for each rule; the compiler folds a few that come out identical.
    assert not missed, missed[:3]
    assert rules >= 26 and full >= 6 * rules, f"{full} loops have {WIDTHS[isa]}-byte vectors, there are {rules} rules"
