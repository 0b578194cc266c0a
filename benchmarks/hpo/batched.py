"""Sixteen configurations of one architecture: batched_train against plain PyTorch, one configuration at a time.

python -m benchmarks.hpo.batched    writes benchmarks/results/hpo_batched.json; a quiet machine, 5 minutes

A period trains all sixteen (four rates, two optimizers, two probabilities of dropout) for four epochs of 600 examples,
validation included, on random data of the shapes of the meta-data set.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.convergence.study import RESULTS
from benchmarks.periods import Period, measure_periods
from benchmarks.provenance import provenance, write_results
from benchmarks.throughput.measure import CLOCKS
from metafast.hpo import batched_train
from metafast.models import RNNClassifier, SequenceTransformer

BASE = "plain PyTorch, one at a time"
AIM = 5.0
BATCH, EXAMPLES, HELD, EPOCHS = 32, 600, 200, 4
CONFIGS = [
    {"lr": lr, "optimizer": optimizer, "dropout": p, "batch_size": BATCH}
    for lr, optimizer, p in itertools.product((1e-4, 1e-3, 3e-3, 1e-2), ("sgd", "adam"), (0.1, 0.3))
]
Build = Callable[[dict[str, Any]], nn.Module]


def mlp(width: int) -> Build:
    return lambda config: nn.Sequential(
        nn.Flatten(), nn.Linear(196, width), nn.ReLU(), nn.Dropout(config["dropout"]), nn.Linear(width, width),
        nn.ReLU(), nn.Dropout(config["dropout"]), nn.Linear(width, 10),
    )  # fmt: skip


def cnn(config: dict[str, Any]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(config["dropout"]), nn.Linear(64, 10),
    )  # fmt: skip


def gru(config: dict[str, Any]) -> nn.Module:
    return RNNClassifier(1024, 10, kind="gru", dim=16, hidden=16, layers=2, dropout=config["dropout"])


def transformer(config: dict[str, Any]) -> nn.Module:
    return SequenceTransformer(10, 16, buckets=1024, dim=16, layers=2, heads=2, expansion=2, dropout=config["dropout"])


WORKLOADS: dict[str, tuple[Build, tuple[int, ...] | None]] = {
    "perceptron, 2 x 64": (mlp(64), (1, 14, 14)),
    "perceptron, 2 x 256": (mlp(256), (1, 14, 14)),
    "CNN, 2 x 16 channels": (cnn, (1, 14, 14)),
    "GRU, 2 x 16 units": (gru, None),
    "transformer, 2 blocks of 16": (transformer, None),
}


def data(shape: tuple[int, ...] | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> tuple[Tensor, Tensor]:
        x = (
            torch.randint(1, 1024, (count, 16), generator=generator)
            if shape is None
            else torch.randn(count, *shape, generator=generator)
        )
        return x, torch.randint(0, 10, (count,), generator=generator)

    return part(EXAMPLES), part(HELD)


def plain(build: Build, shape: tuple[int, ...] | None) -> Period:
    """What people write, with the fused optimizers of torch."""
    (x, y), (val_x, val_y) = data(shape)

    def run() -> None:
        for config in CONFIGS:
            torch.manual_seed(0)
            model = build(config)
            if config["optimizer"] == "sgd":
                opt: Any = torch.optim.SGD(model.parameters(), config["lr"], momentum=0.9, fused=True)
            else:
                opt = torch.optim.Adam(model.parameters(), config["lr"], fused=True)
            for _ in range(EPOCHS):
                model.train()
                for index in torch.randperm(EXAMPLES).split(BATCH):
                    opt.zero_grad()
                    F.cross_entropy(model(x[index]), y[index]).backward()
                    opt.step()
                model.eval()
                with torch.no_grad():
                    (model(val_x).argmax(1) == val_y).double().mean().item()

    return run


def batched(build: Build, shape: tuple[int, ...] | None, engine: str) -> Period:
    train, val = data(shape)

    def run() -> None:
        batched_train(build, CONFIGS, train, val, epochs=EPOCHS, engine=engine)

    return run


def measure(workload: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    build, shape = WORKLOADS[workload]
    train, val = data(shape)
    engine = batched_train(build, CONFIGS[:2], (train[0][:64], train[1][:64]), val, epochs=1).engines[0]
    name = f"batched_train, {engine}"
    periods = {BASE: plain(build, shape), name: batched(build, shape, "auto")}
    rows = measure_periods(periods, BASE, 1, rounds, clock)
    times = {row["name"]: row["seconds"] for row in rows}
    speedups = sorted(b / a for a, b in zip(times[name], times[BASE], strict=True))
    return {
        "workload": workload, "engine": engine, "rows": rows,
        "speedup": {"median": speedups[len(speedups) // 2], "min": speedups[0], "max": speedups[-1]},
    }  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """Speedups of all workloads, misses in bold."""
    lines = ["| | engine | plain PyTorch, ms | batched, ms | speedup |", "|---|---|---|---|---|"]
    for run in content["runs"]:
        base, ours = (row["ms"] for row in run["rows"])
        text = f"{run['speedup']['median']:.1f}"
        text = text if run["speedup"]["median"] >= AIM else f"**{text}**"
        lines.append(f"| {run['workload']} | {run['engine']} | {base:.0f} | {ours:.0f} | {text} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS / "hpo_batched.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {**provenance("hpo_batched"), "clock": args.clock, "threads": args.threads, "runs": []}
    for workload in args.workloads:
        content["runs"].append(measure(workload, args.rounds, CLOCKS[args.clock]))
        write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
