"""Meta-trains in forked children that are killed with SIGKILL at random moments, until one gets to the end.

Called by test_trainer.py as a process of its own: `python train_and_die.py ROOT SEED`. Prints one JSON line.
"""

import hashlib
import json
import os
import sys

from metafast.data import episodes
from metafast.maml import MAMLpp, Trainer
from metafast.models import SinusoidMLP
from metafast.runs import Run
from tests.processes import train_and_die

STEPS = 40


def train(root: str, name: str) -> None:
    def tasks(split: str, seed: int):
        return episodes("sinusoid", split=split, shots=5, queries=5, tasks=4, seed=seed)

    maml = MAMLpp(SinusoidMLP((8, 8), seed=0), 0.01, steps=2, loss="mse", multi_step_batches=30)
    trainer = Trainer(
        maml, tasks("train", 0), STEPS, val=tasks("val", 1), val_episodes=8, val_every=5, save_every=3, log_every=2,
        schedule="cosine", clip=1.0, output=root, name=name, seed=0, resume=True, progress=False,
    )  # fmt: skip
    trainer.fit()


def digest(root: str, name: str) -> dict:
    run = Run.open(os.path.join(root, name))
    files = sorted((run.path / "checkpoints").glob("*.safetensors"))
    timeless = [name for name in run.metrics if name != "tasks_per_second"]
    return {
        "weights": hashlib.sha256(files[-1].read_bytes()).hexdigest(),
        "best": hashlib.sha256((run.path / "best.safetensors").read_bytes()).hexdigest(),
        "curves": {k: [c.steps.tolist(), [v.hex() for v in c.values]] for k in timeless for c in [run.curve(k)]},
        "status": run.status,
    }


def main() -> None:
    root, seed = sys.argv[1], int(sys.argv[2])
    kills = train_and_die(train, root, seed, within=(0.2, 0.8), limit=100)
    print(json.dumps({"whole": digest(root, "whole"), "killed": digest(root, "killed"), "kills": kills}))


if __name__ == "__main__":
    main()
