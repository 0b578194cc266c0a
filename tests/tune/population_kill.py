"""Searches in forked children that are killed with SIGKILL at random moments, until one gets to the end.

Called by test_population_kill.py as a process of its own: `python population_kill.py ROOT SEED`. Prints one JSON line.
"""

import json
import sys
from pathlib import Path

from metafast.runs import Run
from metafast.tune.population import ASHA, PB2, FloatRange
from tests.processes import train_and_die
from tests.tune.population_cases import train

SPACE = {"rate": FloatRange(1e-3, 1.0, log=True), "batch_size": [2, 4, 8]}
SEARCHES = {"pb2": (PB2(SPACE, 3, interval=4), 12), "asha": (ASHA(SPACE, 6, 2, reduction=2), 8)}


def search(root: str, name: str) -> None:
    for kind, (how, steps) in SEARCHES.items():
        how.run(train, steps, output=Path(root) / f"{kind}-{name}", resume=True, progress=False)


def facts(root: str, name: str) -> dict:
    found = {}
    for kind, (how, steps) in SEARCHES.items():
        folder = Path(root) / f"{kind}-{name}"
        result = how.run(train, steps, output=folder, resume=True, progress=False)
        weights = [member.state_dict()["weight"].item().hex() for member in result.members]
        curves = [
            [c.steps.tolist(), c.values.tolist()] for m in result.members for c in [Run.open(m.path).curve("value")]
        ]
        found[kind] = [repr(result.legs), weights, curves, Run.open(folder).status]
    return found


if __name__ == "__main__":
    kills = train_and_die(search, sys.argv[1], int(sys.argv[2]), within=(0.1, 0.7), limit=60)
    print(json.dumps({"kills": kills, **{name: facts(sys.argv[1], name) for name in ("whole", "killed")}}))
