"""Populations killed with SIGKILL at random moments end as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, Path(__file__).with_name("population_kill.py"), tmp_path, "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 1
    assert result["killed"] == result["whole"]
    assert result["whole"]["pb2"][-1] == result["whole"]["asha"][-1] == "finished"
