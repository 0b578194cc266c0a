"""The published AdamHD and SGD-HD rows on MNIST: validation loss after 10 epochs, with and without hypergradient.

Recipe of Baydin et al. (ICLR 2018) and their repository: batch 128, L2 weight decay 1e-4, learning rate 1e-3, momentum
0.9 with Nesterov, inputs normalized by mean 0.1307 and deviation 0.3081, hyper_lr 1e-3 for SGD and 1e-7 for Adam;
"validation" is MNIST's test split, as there. An epoch is 469 steps (60,000 images), whatever the size of the training
split, so that a smaller one is trained for the same number of steps.

python -m benchmarks.convergence.published_hd --seeds 3
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from metafast import data, models
from metafast.optim import SGD, Adam

from .study import Results, Row, evaluate, mean, parser, rounded, spread, work_off

EPOCHS, STEPS_PER_EPOCH = 10, 469
PUBLISHED: dict[str, dict[str, float]] = {
    "logreg": {
        "sgd": 0.3737,
        "sgd_hd": 0.2878,
        "nesterov": 0.2846,
        "nesterov_hd": 0.2719,
        "adam": 0.2719,
        "adam_hd": 0.2723,
    },
    "mlp": {"sgd": 0.4074, "sgd_hd": 0.2405, "nesterov": 0.1499, "nesterov_hd": 0.0833},
}
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "logreg": lambda seed: models.LogisticRegression(784, 10, seed=seed),
    "mlp": lambda seed: models.MLP(784, (1000, 1000), 10, seed=seed),
}


def optimizer(method: str, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """One of the paper's six methods."""
    base, _, adapted = method.partition("_")
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-4}
    if adapted:
        options |= {
            "hypergrad": "global",
            "hyper_rule": "additive",
            "hyper_exact": True,
            "hyper_lr": 1e-7 if base == "adam" else 1e-3,
            "safe_start": None,
        }
    if base == "adam":
        return Adam(params, **options)
    if base == "nesterov":
        options |= {"momentum": 0.9, "nesterov": True}
    return SGD(params, **options)


@functools.cache
def mnist(split: str) -> data.Samples:
    """Normalized as in the paper's code."""
    images, labels = data.to_tensors(data.load("mnist", split))
    return data.Samples((images - 0.1307) / 0.3081, labels)


def run(model_name: str, method: str, seed: int, max_steps: int | None) -> Row:
    model = MODELS[model_name](seed)
    opt = optimizer(method, model.parameters())
    batches = data.Batches(*mnist("train"), batch_size=128, seed=seed)
    steps = EPOCHS * STEPS_PER_EPOCH if max_steps is None else max_steps
    valid: list[float | None] = [rounded(evaluate(model, mnist("test"))[1])]
    train_loss: list[float | None] = []
    running, begin = 0.0, time.perf_counter()
    for step, (inputs, labels) in zip(range(1, steps + 1), batches.forever(), strict=False):
        opt.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        opt.step()
        running += float(loss.detach())
        if step % STEPS_PER_EPOCH == 0 or step == steps:
            valid.append(rounded(evaluate(model, mnist("test"))[1]))
            train_loss.append(rounded(running / (step % STEPS_PER_EPOCH or STEPS_PER_EPOCH)))
            running = 0.0
    row: Row = {
        "steps": steps,
        "train_images": len(mnist("train").labels),
        "valid_loss_by_epoch": valid,
        "train_loss_by_epoch": train_loss,
        "valid_loss": valid[-1],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if method.endswith("_hd"):
        history = opt.lr_history  # type: ignore[attr-defined]
        every = max(1, len(history) // 100)
        row["lr_curve"] = [[at, rounded(rates[0])] for at, rates in history[::every]]
        row["largest_lr"] = rounded(max(rates[0] for _, rates in history))
        row["final_lr"] = rounded(history[-1][1][0])
    return row


def summarize(rows: dict[str, Row], model_names: Sequence[str], seeds: int) -> Row:
    """Ours (mean and deviation over seeds) beside the published loss, and the gain of the hypergradient in both."""
    table: Row = {}
    for name in model_names:
        entry: Row = {}
        for method, published in PUBLISHED[name].items():
            losses = [rows[f"{name} | {method} | {seed}"]["valid_loss"] for seed in range(seeds)]
            entry[method] = {
                "published": published,
                "ours": rounded(mean(losses), 4),
                "standard_deviation": rounded(spread(losses), 2),
            }
        for method in list(entry):
            if method.endswith("_hd"):
                plain, adapted = entry[method.removesuffix("_hd")], entry[method]
                adapted["published_gain"] = rounded(plain["published"] - adapted["published"], 4)
                adapted["our_gain"] = rounded((plain["ours"] or 0.0) - (adapted["ours"] or 0.0), 4)
        table[name] = entry
    return table


def show(summary: Row) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="validation loss after 10 epochs (4,690 steps)")
    for name in ("model", "method", "published", "ours", "± over seeds", "published gain", "our gain"):
        table.add_column(name, justify="left" if name in ("model", "method") else "right")
    for model_name, entry in summary.items():
        for method, values in entry.items():
            gains = [f"{values[k]:+.4f}" if k in values else "" for k in ("published_gain", "our_gain")]
            ours = (f"{values[k]:.4f}" for k in ("published", "ours", "standard_deviation"))
            table.add_row(model_name, method, *ours, *gains)
    Console().print(table)


def plot(rows: dict[str, Row], model_names: Sequence[str], path: Path) -> None:
    """Validation loss by epoch (dots: published at epoch 10), and the learned rates."""
    from matplotlib.figure import Figure

    colours = {"sgd": "#1f77b4", "nesterov": "#d62728", "adam": "#2ca02c"}
    figure = Figure(figsize=(10, 3.7 * len(model_names)), layout="constrained")
    axes = figure.subplots(len(model_names), 2, squeeze=False)
    for (left, right), name in zip(axes, model_names, strict=True):
        for method, published in PUBLISHED[name].items():
            row = rows[f"{name} | {method} | 0"]
            base, _, adapted = method.partition("_")
            style = {"color": colours[base], "ls": "-" if adapted else "--", "label": method}
            losses = row["valid_loss_by_epoch"][1:]
            left.plot(range(1, len(losses) + 1), losses, **style)
            left.plot([EPOCHS], [published], "o", color=colours[base], mfc=colours[base] if adapted else "white")
            if adapted:
                right.plot(*zip(*row["lr_curve"], strict=True), **style)
        left.set(xlabel="epoch of 469 steps", ylabel="validation loss", title=f"{name} (dots: published)")
        right.set(yscale="log", xlabel="step", ylabel="learned rate", title=f"{name}: learned rate (at least 1e-8)")
        right.set_ylim(bottom=1e-5)
        for axis in (left, right):
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "published_hd.json")
    options.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    args = options.parse_args(arguments)
    torch.set_num_threads(args.threads)
    results = Results(args.output, {"study": "published_hd", "max_steps": args.max_steps})
    jobs = [
        (f"{name} | {method} | {seed}", partial(run, name, method, seed, args.max_steps))
        for name in args.models
        for seed in range(args.seeds)
        for method in PUBLISHED[name]
    ]
    work_off(results, jobs, "published HD")
    results.content["summary"] = summary = summarize(results.rows, args.models, args.seeds)
    results.content["seeds"] = args.seeds
    results.save()
    show(summary)
    plot(results.rows, args.models, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
