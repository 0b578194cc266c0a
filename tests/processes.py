"""What tests of several processes share: two ranks of torch.distributed, and trainings that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def run_two_ranks(worker: Path, folder: Path) -> list[dict[str, Any]]:
    """Runs `python worker folder` as ranks 0 and 1 of one gloo group; each leaves rank<n>.json in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def train_and_die(
    train: Callable[[str, str], None],
    root: str,
    seed: int,
    *,
    within: tuple[float, float],
    limit: int,
    after_death: Callable[[], None] | None = None,
) -> int:
    """Trains "whole" in peace, then "killed" in forked children that die by SIGKILL until one gets to the end.

    Args:
        train: `train(root, name)` begins a run, or goes on with it.
        root: folder of the runs.
        seed: of the moments of death.
        within: earliest and latest moment, in parts of the time of the whole training.
        limit: deaths after which the end will not come.
        after_death: what to look at then.

    Returns:
        The number of deaths.
    """
    torch.set_num_threads(1)
    chance = random.Random(seed)
    train(root, "warm-up")
    began = time.perf_counter()
    train(root, "whole")
    whole_time = time.perf_counter() - began
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                train(root, "killed")
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        deadline = time.perf_counter() + chance.uniform(*within) * whole_time
        ended = 0
        while time.perf_counter() < deadline and not ended:
            ended, code = os.waitpid(child, os.WNOHANG)
            time.sleep(0.0002)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, code = os.waitpid(child, 0)
        if code == 0:
            return kills
        if os.WIFEXITED(code):
            sys.exit("the child failed by itself")
        kills += 1
        if after_death is not None:
            after_death()
        if kills > limit:
            sys.exit(f"{limit} deaths without an end")
