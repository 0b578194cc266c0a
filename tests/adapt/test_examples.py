"""The example runs with small settings."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "adapt_omniglot.py"


def test_omniglot(tmp_path, data_folder):
    data_folder("omniglot")
    arguments = "--ways 5 --pretrain 2 --steps 2 --episodes 4 --tasks 2".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLE, *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "2 meta-steps" in done.stdout and "meta-network, accuracy after 0 to 5 steps:" in done.stdout


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80
