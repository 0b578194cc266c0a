"""The protocol of Clarke et al. on Fashion-MNIST: thirty random starts, tuned while training and not tuned.

python -m benchmarks.tune.clarke             writes benchmarks/results/tune_clarke.json and .png
python -m benchmarks.tune.clarke --trial     other starts, judged on the validation part: for choosing settings

784-50-10, batches of 50, 1,000 updates of the hyperparameters with 10 steps before each. Starts are drawn as in the
paper: log10 of the learning rate in [-6, -1], log10 of the weight decay in [-7, -2], momentum in [0, 1]. A fifth of the
training images is the validation part. A second call adds what the file lacks.

Source: R. Clarke, E. Oldewage, J. Hernández-Lobato, Scalable One-Pass Optimisation of High-Dimensional Weight-Update
Hyperparameters by Implicit Differentiation, ICLR 2022, section 4.2.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.convergence import study
from benchmarks.convergence.pairs import images
from metafast.data import Batches
from metafast.models import MLP
from metafast.tune import Forward, Implicit, OneStep, OnlineTuner, Reverse

STARTS, EVERY, UPDATES = 30, 10, 1000
BATCH, VAL_BATCH = 50, 500
TRIAL = 1000  # added to the numbers of the starts that trials see
TUNED = ["lr", "momentum", "weight_decay"]
METHODS: dict[str, Callable[[], Any]] = {
    "not tuned": lambda: None,
    "implicit, 20 terms": lambda: Implicit(terms=20),  # see momentum's whole effect; chosen by --trial
    "implicit, 5 terms": lambda: Implicit(terms=5),
    "one_step": OneStep,
    "reverse": Reverse,
    "forward, no HVP": lambda: Forward(hvp=False),
}
# For tuned runs, with 60,000 images: median and best cross-entropy, and the share of runs at or below LIMIT.
MEDIAN, BEST, SHARE, LIMIT = 0.40, 0.36, 0.85, 0.45


def start_of(number: int) -> dict[str, float]:
    """Hyperparameters to start from."""
    generator = torch.Generator().manual_seed(number)
    rate, decay, momentum = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    return {"lr": 10 ** (5 * rate - 6), "momentum": momentum, "weight_decay": 10 ** (5 * decay - 7)}


def train(method: str, number: int, hyper_lr: float, updates: int, trial: bool) -> study.Row:
    """One training: cross-entropy and accuracy at its end, seconds, and the last hyperparameters."""
    data, start = images("fashion_mnist"), start_of(number + TRIAL * trial)
    model = MLP(784, (50,), 10, seed=number)
    optimizer = torch.optim.SGD(model.parameters(), **start)
    batches = Batches(*data.train, batch_size=BATCH, seed=number, drop_last=True)
    made = METHODS[method]()
    tuner = None
    if made is not None:
        val = Batches(*data.val, batch_size=VAL_BATCH, seed=number)
        tuner = OnlineTuner(model, optimizer, TUNED, val, made, EVERY, hyper_lr=hyper_lr)

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    begin = time.process_time()
    for _, (x, y) in zip(range(updates * EVERY), batches.forever(), strict=False):
        if tuner is not None:
            tuner.step(loss_fn, x, y)
        else:
            optimizer.zero_grad()
            loss_fn(x, y).backward()
            optimizer.step()
    seconds = time.process_time() - begin
    accuracy, loss = study.evaluate(model, data.val if trial else data.test)
    group = optimizer.param_groups[0]
    row: study.Row = {
        "start": start,
        "loss": study.rounded(loss),
        "accuracy": study.rounded(accuracy),
        "cpu_seconds": round(seconds, 2),
        "end": {name: study.rounded(group[name]) for name in TUNED},
    }
    if tuner is not None:
        kept = range(0, updates + 1, max(1, updates // 20))
        row["curves"] = {name: [study.rounded(tuned.history[i][1][0], 4) for i in kept]
                         for name, tuned in tuner.state.items()}  # fmt: skip
        row["skipped"] = sum(tuned.skipped for tuned in tuner.state.values())
    return row


def rows_of(rows: dict[str, study.Row], method: str) -> list[study.Row]:
    """Of all starts."""
    return [row for key, row in rows.items() if key.rpartition(" | ")[0] == method]


def losses(rows: dict[str, study.Row], method: str) -> list[float]:
    """Of all starts; one that diverged is infinite."""
    return [math.inf if row["loss"] is None else row["loss"] for row in rows_of(rows, method)]


def summary(rows: dict[str, study.Row], method: str) -> study.Row | None:
    """Median, best, share at or below LIMIT, quarters, and seconds."""
    found = losses(rows, method)
    if not found:
        return None
    seconds = [row["cpu_seconds"] for row in rows_of(rows, method)]
    return {
        "runs": len(found),
        "median": statistics.median(found),
        "best": min(found),
        "worst": max(found),
        "share": sum(loss <= LIMIT for loss in found) / len(found),
        "seconds": statistics.median(seconds),
    }


def table(content: study.Row) -> str:
    """All methods, and the aims beside them."""
    lines = [
        f"| | starts | median | best | worst | at most {LIMIT} | CPU seconds |",
        "|---|---|---|---|---|---|---|",
        f"| aim, with 60,000 images | 30 | {MEDIAN:.2f} | {BEST:.2f} | | {SHARE:.0%} | |",
    ]
    for method in METHODS:
        found = summary(content["rows"], method)
        if found is not None:
            lines.append(
                f"| {method} | {found['runs']} | {found['median']:.3f} | {found['best']:.3f} | {found['worst']:.3f} | "
                f"{found['share']:.0%} | {found['seconds']:.1f} |"
            )
    return "\n".join(lines)


def plot(content: study.Row, path: Path) -> None:
    """Left: the share of the runs that end at or below a loss. Right: every learning rate over its run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, method in enumerate(METHODS):
        found = sorted(losses(content["rows"], method))
        if found:
            shares = [(i + 1) / len(found) for i in range(len(found))]
            left.step(found, shares, where="post", color=f"C{index}", label=method)
    left.axvline(LIMIT, color="black", ls=":", lw=1)
    left.set(xlabel="test cross-entropy", ylabel="share of the starts", xlim=(0.35, 2.4))
    left.legend(fontsize=8)
    shown = next((m for m in METHODS if m != "not tuned" and losses(content["rows"], m)), None)
    for row in rows_of(content["rows"], shown) if shown is not None else ():
        rates = row["curves"]["lr"]
        steps = [i * UPDATES * EVERY / (len(rates) - 1) for i in range(len(rates))]
        right.semilogy(steps, rates, color="C1", alpha=0.5, lw=1)
    right.set(xlabel="step", ylabel="learning rate", title=f"{shown}: learning rate of each start")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "tune_clarke.json", seeds=STARTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--hyper-lr", type=float, default=0.1)
    parser.add_argument("--trial", action="store_true", help="other starts and the validation part; needs --output")
    args = parser.parse_args(argv)
    if args.trial and args.output == study.RESULTS / "tune_clarke.json":
        parser.error("--trial needs --output: its rows are no results")
    torch.set_num_threads(args.threads)
    updates = UPDATES if args.max_steps is None else max(1, args.max_steps // EVERY)
    config = {
        "updates": updates,
        "every": EVERY,
        "hyper_lr": args.hyper_lr,
        "trial": args.trial,
        "batch": BATCH,
        "val_batch": VAL_BATCH,
        "train_images": len(images("fashion_mnist").train.labels),
    }
    results = study.Results(args.output, config)
    jobs = [
        (f"{method} | {number}", functools.partial(train, method, number, args.hyper_lr, updates, args.trial))
        for method in args.methods
        for number in range(args.seeds)
    ]
    study.work_off(results, jobs, "Clarke et al.")
    plot(results.content, args.output.with_suffix(".png"))
    print(table(results.content))


if __name__ == "__main__":
    main()
