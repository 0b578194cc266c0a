"""The example runs with small settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("optuna")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hpo_optuna.py"


def test_the_example_runs_and_is_short(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLE, "--trials", "3", "--epochs", "2", "--storage", "digits.log"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "best validation accuracy" in done.stdout and (
        "Trial 2 finished" in done.stderr or "Trial 2 pruned" in done.stderr
    )
    assert len(EXAMPLE.read_text().splitlines()) < 80
