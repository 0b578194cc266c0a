"""Collects the toy grid in children that are killed at random moments. Called by test_collect.py: ROOT SEED."""

import json
import sys
from pathlib import Path

import numpy as np

from metafast.hpo import _collect, load_tasks
from tests.hpo import grid_case
from tests.processes import train_and_die


def train(root, name):
    _collect.collect(Path(root) / name, grid_case.tasks(), 0, 1, lambda cell, step: None)


def main():
    root, seed = sys.argv[1], int(sys.argv[2])
    grid_case.install(setattr)
    kills = train_and_die(train, root, seed, within=(0.2, 0.9), limit=60)
    whole, killed = ([t.curves for t in load_tasks(Path(root) / name)] for name in ("whole", "killed"))
    same = np.array_equal(np.stack(whole), np.stack(killed), equal_nan=True)
    print(json.dumps({"same": same, "kills": kills}))


if __name__ == "__main__":
    main()
