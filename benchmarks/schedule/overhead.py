"""What a controller costs on the step path: the same optimizer with and without one, side by side.

python -m benchmarks.schedule.overhead    writes benchmarks/results/schedule_overhead.json; a quiet machine, 10 minutes

A period is ten steps (forward pass, backward pass, step) of batches of 32, of which the last also decides on the rates.
Every contender has a model of its own; its base rate is tiny and the bounds keep it there: all do the same work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import metafast.optim
from benchmarks.convergence.study import RESULTS
from benchmarks.periods import Period, measure_periods
from benchmarks.provenance import provenance, write_results
from benchmarks.throughput.measure import CLOCKS
from metafast.models import MLP, ResNet18
from metafast.schedule import LRController

STEPS = 10
AIM = 1.05
WORKLOADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18, 64 channels": (lambda: ResNet18(3, 10, width=64, seed=0), (3, 32, 32)),
    "ResNet-18, 16 channels": (lambda: ResNet18(3, 10, width=16, seed=0), (3, 32, 32)),
    "perceptron 784-512-512-10": (lambda: MLP(784, (512, 512), 10, seed=0), (784,)),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "metafast.optim.Adam": lambda params: metafast.optim.Adam(params, lr=1e-7),
    "torch.optim.Adam, fused": lambda params: torch.optim.Adam(params, lr=1e-7, fused=True),
}
PER = ("global", "tensor")


def period(workload: str, optimizer: str, per: str | None, device: str) -> Period:
    """Ten steps."""
    make, shape = WORKLOADS[workload]
    model = make().to(device)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(32, *shape, generator=generator).to(device),
            torch.randint(10, (32,), generator=generator).to(device),
        )
        for _ in range(STEPS)
    ]
    opt = OPTIMIZERS[optimizer](model.parameters())
    controller = None
    if per is not None:
        controller = LRController.load().attach(opt, interval=STEPS, per=per, lr_bounds=(5e-8, 2e-7), model=model)

    def run() -> None:
        for x, y in batches:
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            if controller is not None:
                controller.step(loss)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def measure(workload: str, rounds: int, clock: Callable[[], float], device: str) -> list[dict[str, Any]]:
    """Rows of one workload."""
    periods, base = {}, {}
    for optimizer in OPTIMIZERS:
        for per in (None, *PER):
            name = optimizer if per is None else f"{optimizer}, controller per {per}"
            periods[name], base[name] = period(workload, optimizer, per, device), optimizer
    return measure_periods(periods, base, STEPS, rounds, clock)


def table(content: dict[str, Any]) -> str:
    """Ratios of all workloads, misses in bold."""
    runs = content["runs"]
    lines = ["| | " + " | ".join(run["workload"] for run in runs) + " |", "|---|" + "---|" * len(runs)]
    for rows in zip(*(run["rows"] for run in runs), strict=True):
        cells = []
        for row in rows:
            ratio = row["ratio"]["median"]
            text = f"{ratio:.3f}"
            cells.append(f"{row['ms']:.2f} ms" if row["name"] in OPTIMIZERS else f"**{text}**" if ratio > AIM else text)
        lines.append(f"| {rows[0]['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS / "schedule_overhead.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {
        **provenance("schedule_overhead"),
        "clock": args.clock,
        "device": args.device,
        "runs": [],
    }
    for workload in args.workloads:
        rows = measure(workload, args.rounds, CLOCKS[args.clock], args.device)
        content["runs"].append({"workload": workload, "threads": args.threads, "rounds": args.rounds, "rows": rows})
        write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
