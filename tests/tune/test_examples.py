"""The example runs with a small setting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

ROOT = Path(__file__).resolve().parents[2]


def test_digits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "examples" / "tune_digits.py", "--steps", "20", "--method", "one_step"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "step 20, training loss" in done.stdout and "test accuracy" in done.stdout


def test_the_example_is_short():
    assert len((ROOT / "examples" / "tune_digits.py").read_text().splitlines()) < 80
