"""The meta-data set, task by task, and what its noise leaves to predict.

python -m benchmarks.hpo.tasks    prints the table of docs/hpo-data.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.convergence.study import RESULTS
from metafast.hpo import MetaTask, load_tasks

FILE = RESULTS / "hpo_tasks.safetensors"


def better(task: MetaTask) -> np.ndarray:
    """Final scores, higher is better, failed ones last."""
    sign = 1.0 if task.direction == "maximize" else -1.0
    return np.where(np.isfinite(task.final), sign * task.final, -np.inf)


def within(task: MetaTask, scores: np.ndarray) -> np.ndarray:
    """Which scores are within 5 % of the grid's best."""
    best = task.final[better(task).argmax()]
    return scores >= 0.95 * best if task.direction == "maximize" else scores <= 1.05 * best


def ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(len(values))
    order[np.argsort(values, kind="stable")] = np.arange(len(values))
    return order


def table(val: Sequence[MetaTask], test: Sequence[MetaTask]) -> str:
    lines = [
        "| task | measure | knowing nothing | median | best | configurations within 5 % | failed | validation and test "
        "ranks | the best on test data is within 5 % | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    hits = []
    for task, other in zip(val, test, strict=True):
        scores = better(task)
        best, chosen = int(scores.argmax()), int(better(other).argmax())
        hit = bool(within(task, task.final[[chosen]])[0])
        hits.append(hit)
        correlation = np.corrcoef(ranks(scores), ranks(better(other)))[0, 1]
        lines.append(
            f"| {task.name} | {task.metric} | {task.reference:.3f} | {np.nanmedian(task.final):.3f} | "
            f"{task.final[best]:.3f} | {100 * within(task, task.final).mean():.1f} % | {np.isnan(task.final).sum()} | "
            f"{correlation:.2f} | {'yes' if hit else 'no'} | {np.nansum(task.seconds):.0f} |"
        )
    total = sum(float(np.nansum(task.seconds)) for task in val)
    count = sum(len(task.configs) for task in val)
    lines += [
        "",
        f"{len(val)} tasks, {count:,} trainings, {total / 3600:.2f} hours of CPU time. The configuration best on "
        f"test data is within 5 % of the best validation score in {sum(hits)} of {len(val)}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=FILE, help="a collected folder, or its tasks.safetensors")
    args = parser.parse_args(argv)
    print(table(load_tasks(args.table), load_tasks(args.table, scores="test")))


if __name__ == "__main__":
    main()
