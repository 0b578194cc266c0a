"""The examples run with small settings."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(name, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sinusoid(tmp_path):
    out = run("maml_sinusoid.py", "--steps", 10, "--episodes", 20, cwd=tmp_path)
    assert "MAML: step 10" in out and "Meta-SGD: mean squared error" in out and "one task:" in out


def test_omniglot(tmp_path, data_folder):
    data_folder("omniglot")
    out = run("maml_omniglot.py", "--steps", 2, "--episodes", 4, "--tasks", 2, cwd=tmp_path)
    assert "2 meta-steps" in out and "engine: " in out and "after 3 steps:" in out
    assert list((tmp_path / "runs").glob("*/best.safetensors"))


def test_examples_are_short():
    for path in (ROOT / "examples").glob("maml*.py"):
        assert len(path.read_text().splitlines()) < 80, path.name
