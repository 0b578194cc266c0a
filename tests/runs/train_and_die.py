"""Trains in forked children that are killed with SIGKILL at random moments, until one gets to the end.

Called by test_kill.py as a process of its own: `python train_and_die.py ROOT SEED`. Prints one JSON line.
"""

import hashlib
import json
import os
import random
import sys

import numpy as np
import torch

from metafast.data import Batches
from metafast.runs import Run, seed_all
from tests.processes import train_and_die

STEPS, EVERY = 120, 7


def train(root: str, name: str) -> None:
    seed_all(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.3), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    batches = Batches(x, x[:, :3].argmax(1), batch_size=16, seed=5)
    draws = np.random.default_rng(9)
    state = {"schedule": schedule, "batches": batches, "draws": draws}
    try:
        run = Run.create(root, name=name, config={"steps": STEPS}, seed=3)
        start, total = 0, 0.0
    except FileExistsError:
        run = Run.resume(os.path.join(root, name))
        back = run.restore(model, opt, **state)
        start, total = (back.step, back.extras["total"]) if back else (0, 0.0)
    with run:
        stream = batches.forever()
        for step in range(start + 1, STEPS + 1):
            inputs, labels = next(stream)
            chance = np.random.rand()  # noqa: NPY002 - the global state is under test
            noise = float(chance) * random.random() * draws.random() * 0.1
            loss = torch.nn.functional.cross_entropy(model(inputs + noise), labels)
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
            total += loss.item()
            run.log(step=step, loss=loss, total=total, lr=schedule.get_last_lr()[0])
            if step % EVERY == 0 or step == STEPS:
                run.save(step, model, opt, extras={"total": total}, **state)


def digest(root: str, name: str) -> dict:
    run = Run.open(os.path.join(root, name))
    files = sorted((run.path / "checkpoints").iterdir())
    weights = hashlib.sha256([f for f in files if f.suffix == ".safetensors"][-1].read_bytes()).hexdigest()
    curves = {name: [c.steps.tolist(), [v.hex() for v in c.values]] for name in run.metrics for c in [run.curve(name)]}
    return {
        "weights": weights,
        "curves": curves,
        "status": run.status,
        "leftovers": [f.name for f in files if f.name.startswith(".")],
    }


def main() -> None:
    root, seed = sys.argv[1], int(sys.argv[2])
    seen = set()

    def look() -> None:
        if os.path.exists(os.path.join(root, "killed", "run.jsonl")):
            run = Run.open(os.path.join(root, "killed"))
            seen.add(run.status)
            if run.metrics:
                run.curve("loss")  # readable after every death

    kills = train_and_die(train, root, seed, within=(0, 0.6), limit=200, after_death=look)
    print(
        json.dumps(
            {"whole": digest(root, "whole"), "killed": digest(root, "killed"), "kills": kills, "seen": sorted(seen)}
        )
    )


if __name__ == "__main__":
    main()
