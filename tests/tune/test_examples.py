"""The examples run with small settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUNS = {
    "tune_digits.py": (["--steps", "20", "--method", "one_step"], ["step 20, training loss", "test accuracy"]),
    "tune_regularizers.py": (["--steps", "12", "--every", "4"], ["3.p: 0.05 ->", "test accuracy"]),
    "tune_population.py": (["--steps", "40"], ["batch size of the best, from step on", "test accuracy"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_example(tmp_path, name):
    options, expected = RUNS[name]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / name, *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout


@pytest.mark.parametrize("name", RUNS)
def test_the_examples_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
