"""A process killed with SIGKILL at random moments resumes to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, seed):
    script = Path(__file__).with_name("train_and_die.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, script, tmp_path, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 1
    assert set(result["seen"]) <= {"killed", "finished"}  # death may come between the last word and the exit
    assert result["killed"] == result["whole"]
    assert result["whole"]["status"] == "finished"
    assert result["whole"]["curves"]["loss"][0] == list(range(1, 121))
    assert result["whole"]["leftovers"] == []
