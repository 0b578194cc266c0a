"""benchmarks/gpu.sh where there is no device: what it would run, and that its limits fit into nine minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on PATH")
def test_dry_run_fits_into_nine_minutes(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), "--dry-run"],
        env=os.environ | {"OUT": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        check=True,
    )
    parts = dict(re.findall(r"^== (\w+) \(at most (\d+) s\)", done.stdout, re.MULTILINE))
    assert list(parts) == [
        "build", "env", "tests", "throughput", "meta", "memcheck", "racecheck", "innercheck", "ncu",
    ]  # fmt: skip
    assert sum(map(int, parts.values())) < 540
    for path in re.findall(r"(tests/\S+|benchmarks/\S+)", done.stdout):
        if not path.endswith(".json"):
            assert (ROOT / path).exists(), path
