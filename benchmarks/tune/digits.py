"""A small perceptron on the bundled digits, from starting rates that may be wrong: tuned by each method, and not tuned.

python -m benchmarks.tune.digits            some minutes on one core; writes benchmarks/results/tune_digits.json

64-32-10, 600 steps of 64 images, learning rate, momentum and weight decay tuned every 10 steps on validation batches
of 128. Defaults everywhere; accuracy and cross-entropy on the test part, after the last step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.provenance import provenance, write_results
from metafast.data import Batches, digits
from metafast.tune import Forward, OnlineTuner

RATES = (1e-5, 1e-3, 1e-2, 1e-1, 1.0)
METHODS: dict[str, Any] = {
    "not tuned": lambda: None,
    "forward, no HVP, decay 0.9": lambda: Forward(hvp=False, decay=0.9),
    "reverse": lambda: "reverse",  # "forward" finds the same hypergradients, slower
    "implicit": lambda: "implicit",
    "one_step": lambda: "one_step",
}
TUNED = {"SGD": ["lr", "momentum", "weight_decay"], "AdamW": ["lr", "weight_decay"]}


def run(name: str, rate: float, method: Any, seed: int, steps: int = 600) -> dict[str, float]:
    """One training: test accuracy in percent, cross-entropy, seconds, last rate."""
    torch.manual_seed(seed)
    data = digits(seed=seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    opt: torch.optim.Optimizer
    if name == "SGD":
        opt = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    else:
        opt = torch.optim.AdamW(model.parameters(), lr=rate)
    val = Batches(data.val.inputs, data.val.labels, batch_size=128, seed=seed)
    tuner = None if method is None else OnlineTuner(model, opt, TUNED[name], val, method)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    begin, done = time.perf_counter(), 0
    train = Batches(data.train.inputs, data.train.labels, batch_size=64, seed=seed)
    while done < steps:
        for x, y in train:
            if tuner is not None:
                tuner.step(loss_fn, x, y)
            else:
                opt.zero_grad()
                loss_fn(x, y).backward()
                opt.step()
            done += 1
            if done == steps:
                break
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        outputs = model(data.test.inputs)
    return {
        "accuracy": 100 * float((outputs.argmax(1) == data.test.labels).double().mean()),
        "loss": float(F.cross_entropy(outputs, data.test.labels)),
        "seconds": seconds,
        "lr": float(opt.param_groups[0]["lr"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tune_digits.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| | | " + " | ".join(f"{rate:g}" for rate in RATES) + " | seconds |\n|---|---|" + "---|" * (len(RATES) + 1))
    for name in TUNED:
        for label, method in METHODS.items():
            mine = []
            for rate in RATES:
                found = [run(name, rate, method(), seed) for seed in range(options.seeds)]
                row = {key: round(sum(f[key] for f in found) / len(found), 4) for key in found[0]}
                mine.append({"optimizer": name, "method": label, "start": rate, **row})
            rows += mine
            cells = [f"{row['accuracy']:.1f}" for row in mine]
            seconds = sum(row["seconds"] for row in mine) / len(mine)
            print(f"| {name} | {label} | " + " | ".join(cells) + f" | {seconds:.1f} |", flush=True)
    body = {**provenance("tune_digits"), "seeds": options.seeds, "rows": rows}
    write_results(options.output, body)


if __name__ == "__main__":
    main()
