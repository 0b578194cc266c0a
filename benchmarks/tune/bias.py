"""How far each approximate hypergradient is from the exact one, by the number of steps that the exact one looks back.

python -m benchmarks.tune.bias            a minute or two on one core; writes benchmarks/results/tune_bias.json

A perceptron (8-16-1, tanh, float64) learns a noisy teacher from mini-batches of 32. After 10 steps with fixed
hyperparameters come K more, through which the exact method differentiates; the others answer the same question.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.provenance import provenance, write_results
from metafast.tune import SAMA, Forward, Implicit, OneStep, OnlineTuner, Reverse, Tune

HORIZONS = (1, 2, 5, 10, 20, 50, 100)
WARM_UP = 10
METHODS = {
    "forward, no HVP": lambda: Forward(hvp=False),
    "forward, no HVP, decay 0.9": lambda: Forward(hvp=False, decay=0.9),
    "implicit, 20 terms": lambda: Implicit(terms=20),
    "implicit, 5 terms": lambda: Implicit(terms=5),
    "one_step": OneStep,
    "sama": SAMA,
}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], list[str]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.02, "weight_decay": 1e-3}, ["lr", "weight_decay"]),
    "SGD, momentum 0.8": (
        torch.optim.SGD,
        {"lr": 0.005, "momentum": 0.8, "weight_decay": 1e-3},
        ["lr", "momentum", "weight_decay"],
    ),
    "AdamW": (torch.optim.AdamW, {"lr": 0.003, "weight_decay": 1e-2, "eps": 1e-6}, ["lr", "betas", "weight_decay"]),
}
GROUPS = ("options", "loss tensor")


def hypergradients(optimizer: str, method: Any, horizon: int, seed: int) -> dict[str, Tensor]:
    """After `horizon` steps: of the options, and of a weight of an L2 penalty per parameter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    teacher = normal(8, 4), normal(4, 1)

    def examples(count: int) -> tuple[Tensor, Tensor]:
        x = normal(count, 8)
        return x, torch.tanh(x @ teacher[0] / 2) @ teacher[1] + 0.3 * normal(count, 1)

    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(normal(*param.shape) / math.sqrt(8) if param.dim() > 1 else torch.zeros_like(param))
    l2 = torch.full((4,), 1e-3, dtype=torch.float64, requires_grad=True)
    make, options, names = OPTIMIZERS[optimizer]
    opt = make(model.parameters(), **options)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        penalty = sum(w * p.square().sum() for w, p in zip(l2, model.parameters(), strict=True))
        return F.mse_loss(model(x), y) + penalty

    val = examples(512)
    train = examples(512)
    order = torch.cat([torch.randperm(512, generator=generator) for _ in range(8)]).split(32)
    for rows in order[:WARM_UP]:
        opt.zero_grad()
        loss(train[0][rows], train[1][rows]).backward()
        opt.step()
    tune = [*names, Tune(l2, space="log", name="l2")]
    tuner = OnlineTuner(model, opt, tune, [val], method, every=horizon)
    for rows in order[WARM_UP : WARM_UP + horizon]:
        tuner.step(loss, train[0][rows], train[1][rows])
    found = {name: torch.tensor(tuned.hypergradients[-1][1]) for name, tuned in tuner.state.items()}
    return {"loss tensor": found.pop("l2"), "options": torch.cat(list(found.values()))}


def measure(horizons: tuple[int, ...], seeds: int) -> list[dict[str, Any]]:
    """One row for each optimizer, method and horizon: cosine and ratio of lengths, means over the seeds."""
    rows = []
    for optimizer in OPTIMIZERS:
        for horizon in horizons:
            exact = [hypergradients(optimizer, Reverse(), horizon, seed) for seed in range(seeds)]
            for name, method in METHODS.items():
                row: dict[str, Any] = {"optimizer": optimizer, "method": name, "horizon": horizon}
                found = [hypergradients(optimizer, method(), horizon, seed) for seed in range(seeds)]
                for group in GROUPS:
                    pairs = [(f[group], e[group]) for f, e in zip(found, exact, strict=True)]
                    cosines = [float(F.cosine_similarity(f, e, dim=0)) for f, e in pairs]
                    row[group] = {
                        "cosine": round(sum(cosines) / seeds, 4),
                        "lowest": round(min(cosines), 4),
                        "length": round(sum(float(f.norm() / e.norm()) for f, e in pairs) / seeds, 4),
                    }
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], group: str) -> str:
    """Cosines as Markdown: a line for each optimizer and method, a column for each horizon."""
    horizons = list(dict.fromkeys(row["horizon"] for row in rows))
    lines = ["| | | " + " | ".join(map(str, horizons)) + " |", "|---|---|" + "---|" * len(horizons)]
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            cells = [
                f"{row[group]['cosine']:.2f}"
                for row in rows
                if row["optimizer"] == optimizer and row["method"] == method
            ]
            lines.append(f"| {optimizer} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tune_bias.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(HORIZONS, options.seeds)
    body = {**provenance("tune_bias"), "horizons": HORIZONS, "seeds": options.seeds, "rows": rows}
    write_results(options.output, body)
    for group in GROUPS:
        print(group, table(rows, group), sep="\n")


if __name__ == "__main__":
    main()
