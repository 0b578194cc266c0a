"""What a step costs that also tunes: against plain training, side by side.

python -m benchmarks.tune.overhead            writes benchmarks/results/tune_overhead.json; a quiet machine, ten minutes
python -m benchmarks.tune.overhead --clock cpu --workloads mlp --rounds 3

Plain training is forward pass, backward pass and step of torch.optim. A turn is a period: ten steps, of which the last
also looks at a validation batch and moves the hyperparameters. All contenders take turns in one process, in an order
that rotates; a ratio is that of two turns of one round, a row is the median of the rounds. "with a penalty" tunes the
weight of an L2 penalty of each layer too, tensors of the loss. "snapshots" tunes by one_step and
saves everything in the background every second period; "saved in line" does so in the training thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.convergence.study import RESULTS
from benchmarks.periods import Period, measure_periods
from benchmarks.provenance import provenance, write_results
from benchmarks.throughput.measure import CLOCKS
from metafast.tune import SAMA, Forward, Implicit, OneStep, OnlineTuner, Reverse, Snapshots
from metafast.tune.regularizers import L2

from .workloads import WORKLOADS, loss_of

EVERY = 10
PLAIN = "plain training"


@dataclass(frozen=True)
class Contender:
    """A way to tune, and the most that it may cost."""

    method: Callable[[], Any]
    aim: float | None = None
    penalty: bool = False
    snapshots: bool | None = None  # in the background, in line, none


CONTENDERS = {
    "forward, no HVP": Contender(lambda: Forward(hvp=False, decay=0.9), 1.15),
    "one_step": Contender(OneStep),
    "sama": Contender(SAMA, 1.5),
    "sama, with a penalty": Contender(SAMA, 1.5, penalty=True),
    "implicit, 5 terms": Contender(lambda: Implicit(terms=5), 2.5),
    "implicit, 5 terms, with a penalty": Contender(lambda: Implicit(terms=5), 2.5, penalty=True),
    "implicit, 5 terms, differences": Contender(lambda: Implicit(terms=5, hvp="difference"), 2.5),
    "reverse": Contender(Reverse),
    "forward": Contender(Forward),
    "one_step, snapshots": Contender(OneStep, snapshots=True),
    "one_step, saved in line": Contender(OneStep, snapshots=False),
}


def plain(name: str) -> Period:
    """Ten steps without a tuner."""
    workload = WORKLOADS[name]
    model = workload.model()
    optimizer, loss_fn, batches = workload.optimizer(model), loss_of(model), workload.batches(EVERY, 0)

    def period() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            loss_fn(x, y).backward()
            optimizer.step()

    return period


def tuned(name: str, contender: Contender, folder: Path) -> Period:
    """Ten steps with one of the hyperparameters."""
    workload = WORKLOADS[name]
    model = workload.model()
    optimizer, plain_loss, batches = workload.optimizer(model), loss_of(model), workload.batches(EVERY, 0)
    tune: list[Any] = list(workload.options)
    loss_fn = plain_loss
    if contender.penalty:
        penalty = L2(model, per="layer")
        tune += penalty.tune()

        def loss_fn(x: Tensor, y: Tensor) -> Tensor:
            return plain_loss(x, y) + penalty()

    snapshots = None
    if contender.snapshots is not None:
        snapshots = Snapshots(folder, every=2 * EVERY, background=contender.snapshots)
    tuner = OnlineTuner(
        model, optimizer, tune, workload.batches(4, 1), contender.method(), EVERY, hyper_lr=1e-6, snapshots=snapshots
    )

    def period() -> None:
        for x, y in batches:
            tuner.step(loss_fn, x, y)

    return period


def measure(name: str, chosen: Sequence[str], rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Rows of one workload."""
    folder = Path(tempfile.mkdtemp(prefix="metafast-overhead-"))
    try:
        periods = {PLAIN: plain(name)}
        periods |= {c: tuned(name, CONTENDERS[c], folder / str(i)) for i, c in enumerate(chosen)}
        rows = measure_periods(periods, PLAIN, EVERY, rounds, clock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        row["aim"] = CONTENDERS[row["name"]].aim if row["name"] in CONTENDERS else None
    return rows


def table(content: dict[str, Any]) -> str:
    """Ratios of all workloads, misses in bold."""
    runs = content["runs"]
    names = [row["name"] for row in runs[0]["rows"]]
    lines = ["| | aim | " + " | ".join(f"{run['workload']} ({run['threads']} thread)" for run in runs) + " |"]
    lines.append("|---|---|" + "---|" * len(runs))
    for name in names:
        rows = [next((row for row in run["rows"] if row["name"] == name), None) for run in runs]
        aim = next((row["aim"] for row in rows if row is not None), None)
        cells = []
        for row in rows:
            if row is None:
                cells.append("")
            elif name == PLAIN:
                cells.append(f"{row['ms']:.2f} ms")
            else:
                text = f"{row['ratio']['median']:.2f}"
                cells.append(f"**{text}**" if aim is not None and row["ratio"]["median"] > aim else text)
        lines.append(f"| {name} | {'' if aim is None else f'≤ {aim:g}'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["mlp", "resnet18", "bert"])
    parser.add_argument("--methods", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS / "tune_overhead.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {**provenance("tune_overhead"), "clock": args.clock, "runs": []}
    for name in args.workloads:
        rows = measure(name, args.methods, args.rounds, CLOCKS[args.clock])
        content["runs"].append({"workload": name, "threads": args.threads, "rounds": args.rounds, "rows": rows})
        write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
