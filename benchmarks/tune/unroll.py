"""Memory of a hypergradient through 100 steps: `Reverse` against autograd's unroll, a process for each.

python -m benchmarks.tune.unroll            some minutes; writes benchmarks/results/tune_unroll.json

The peer writes the training as functions (`torch.func.functional_call`, SGD with momentum as an expression) and
differentiates the validation loss through all of it, as torchopt's and higher's differentiable optimizers do. Both
answer the same question: their hypergradients of learning rate, momentum and weight decay are compared. Memory is the
process's high-water mark above what was resident before the window began, after a warm-up step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.convergence.study import RESULTS
from benchmarks.maml.memory import peak_mb, reset_peak, resident_mb
from benchmarks.provenance import provenance, write_results
from metafast.tune import OnlineTuner, Reverse

from .workloads import WORKLOADS, Workload, loss_of

STEPS, AIM = 100, 5.0
UNROLL = "autograd unroll"
Hypergradient = Callable[[Workload, int], list[float]]


def reverse(memory_budget: str | None) -> Hypergradient:
    """By the tuner; in the units of the options."""

    def run(workload: Workload, steps: int) -> list[float]:
        model = workload.model()
        optimizer = workload.optimizer(model)
        loss_fn, batches = loss_of(model), workload.batches(8, 0)
        method = Reverse(memory_budget=memory_budget)
        val = workload.batches(1, 1)
        tuner = OnlineTuner(model, optimizer, workload.options, val, method, steps, val_loss=_train_mode, hyper_lr=1e-9)
        for step in range(steps):
            tuner.step(loss_fn, *batches[step % len(batches)])
        group = workload.optimizer(model).param_groups[0]
        # learned as log(lr), log(1 - momentum), log(weight_decay)
        slopes = {"lr": group["lr"], "momentum": group["momentum"] - 1, "weight_decay": group["weight_decay"]}
        return [tuned.hypergradients[-1][1][0] / slopes[name] for name, tuned in tuner.state.items()]

    return run


def unroll(workload: Workload, steps: int) -> list[float]:
    """By one graph of all steps."""
    model = workload.model()
    group = workload.optimizer(model).param_groups[0]
    options = [torch.tensor(group[name], requires_grad=True) for name in workload.options]
    rate, momentum, decay = options
    params = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    velocity: dict[str, Tensor] = {}
    batches = workload.batches(8, 0)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        loss = F.cross_entropy(functional_call(model, {**params, **buffers}, (x,)), y)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        for name, grad in zip(params, grads, strict=True):
            direction = grad + decay * params[name]
            velocity[name] = momentum * velocity[name] + direction if name in velocity else direction
        params = {name: param - rate * velocity[name] for name, param in params.items()}
    ((x, y),) = workload.batches(1, 1)
    value = F.cross_entropy(functional_call(model, {**params, **buffers}, (x,)), y)
    return [float(g) for g in torch.autograd.grad(value, options)]


def _train_mode(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.train()  # as the unroll has it, so that batch statistics do not tell the two apart
    return F.cross_entropy(model(x), y)


CONTENDERS: dict[str, Hypergradient] = {
    "reverse, all states stored": reverse(None),
    'reverse, memory_budget="sqrt"': reverse("sqrt"),
    UNROLL: unroll,
}


def child(name: str, workload: str, steps: int) -> None:
    """One measurement, as a JSON line."""
    torch.set_num_threads(1)
    CONTENDERS[name](WORKLOADS[workload], 2)
    before = resident_mb()
    reset_peak()
    begin = time.process_time()
    found = CONTENDERS[name](WORKLOADS[workload], steps)
    print(json.dumps({"mb": peak_mb() - before, "cpu_seconds": time.process_time() - begin, "hypergradients": found}))


def measure(workload: str, steps: int) -> dict[str, Any]:
    """All contenders on one workload."""
    rows = {}
    for name in CONTENDERS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.tune.unroll",
            "--child",
            name,
            "--workloads",
            workload,
            "--steps",
            str(steps),
        ]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        rows[name] = json.loads(output.stdout.splitlines()[-1])
    peer = rows[UNROLL]
    for row in rows.values():
        row["of_the_unroll"] = row["mb"] / peer["mb"]
        row["off"] = max(
            abs(a - b) / abs(b) for a, b in zip(row["hypergradients"], peer["hypergradients"], strict=True)
        )
    return {"workload": workload, "steps": steps, "rows": rows}


def table(content: dict[str, Any]) -> str:
    """Megabytes, fractions and seconds."""
    lines = ["| | | MB | of the unroll | CPU seconds | furthest from it |", "|---|---|---|---|---|---|"]
    for run in content["runs"]:
        for name, row in run["rows"].items():
            fraction = row["of_the_unroll"]
            mark = "" if name == UNROLL else ": reached" if fraction <= 1 / AIM else ": **missed**"
            lines.append(
                f"| {run['workload']}, {run['steps']} steps | {name} | {row['mb']:.0f} | {fraction:.2f}"
                f"{mark and f' (aim {1 / AIM:g}{mark})'} | {row['cpu_seconds']:.1f} | {row['off']:.0e} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sgd = [name for name, workload in WORKLOADS.items() if not workload.adam]
    parser.add_argument("--workloads", nargs="+", choices=sgd, default=["mlp", "cnn"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=RESULTS / "tune_unroll.json")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(args.child, args.workloads[0], args.steps)
        return
    runs = [measure(name, args.steps) for name in args.workloads]
    content: dict[str, Any] = {**provenance("tune_unroll"), "runs": runs}
    write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
