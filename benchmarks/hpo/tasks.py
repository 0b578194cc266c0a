"""The meta-data set, task by task, and what its noise leaves to predict.

python -m benchmarks.hpo.tasks    prints the table of docs/hpo-data.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.convergence.study import RESULTS
from metafast.experiments.hp_prediction._measures import spearman
from metafast.experiments.hp_prediction._tables import Table
from metafast.hpo import MetaTask, load_tasks

FILE = RESULTS / "hpo_tasks.safetensors"


def table(val: Sequence[MetaTask], test: Sequence[MetaTask]) -> str:
    lines = [
        "| task | measure | knowing nothing | median | best | configurations within 5 % | failed | validation and test "
        "ranks | the best on test data is within 5 % | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    hits = []
    for task, other in zip(val, test, strict=True):
        # The reference is of validation data: what is worse than it keeps its rank here.
        scores, others = (Table(replace(each, reference=None), "collected") for each in (task, other))
        hit = bool(scores.near[others.merit.argmax()])
        hits.append(hit)
        correlation = spearman(scores.merit, others.merit)
        best, failed = task.final[scores.merit.argmax()], np.isnan(task.final).sum()
        lines.append(
            f"| {task.name} | {task.metric} | {task.reference:.3f} | {np.nanmedian(task.final):.3f} | "
            f"{best:.3f} | {100 * scores.near.mean():.1f} % | {failed} | "
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
