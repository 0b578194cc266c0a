"""The example of the documentation runs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

ROOT = Path(__file__).resolve().parents[2]


def test_digits() -> None:
    command = [sys.executable, ROOT / "examples" / "lr_controller_digits.py", "--steps", "20"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.count("steered") == 7
