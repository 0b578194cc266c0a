"""How long the runs must be that a controller adapts by: trainings of 400 steps after five runs of 100, 200 or 400.

python -m benchmarks.schedule.adaptation    writes benchmarks/results/schedule_adaptation.json; two minutes

On the tasks of the meta-training and the meta-validation suite that have no convolutions, so that nothing is chosen on
the pairs of the experiment. A row is the validation loss at the end of trainings that the adapted controller steers,
against those of the controller as it was, mean of three seeds that adaptation has not seen.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.convergence.study import RESULTS
from benchmarks.provenance import provenance, write_results
from metafast.schedule import LRController, Task, training_suite, validation_suite
from metafast.schedule._adapt import short_run

STEPS = 400
LENGTHS = (100, 200, 400)
SEEDS = (100, 101, 102)
SAME = 1e-3  # a smaller share is no difference


def measure(task: Task, lengths: Sequence[int], seeds: Sequence[int], runs: int = 5) -> dict[str, Any]:
    """Shifts, and losses against those of the unadapted controller, by length of the runs."""
    whole, controller = replace(task, steps=STEPS), LRController.load()

    def losses(steered: LRController) -> float:
        return statistics.mean(short_run(steered.copy(), whole, seed, {}) for seed in seeds)

    before, row = losses(controller), {}
    for length in lengths:
        adapted = controller.adapt(replace(task, steps=length), steps=runs, seed=1)
        row[str(length)] = {"shift": adapted.learned.shift, "share": losses(adapted) / before - 1}
    return row


def table(content: dict[str, Any]) -> str:
    """Better, the same, worse, and the means."""
    lines = ["| steps of the five runs | better | same | worse | mean change of the loss |", "|---|---|---|---|---|"]
    for length in content["lengths"]:
        shares = [row[str(length)]["share"] for row in content["rows"].values()]
        better, worse = sum(x < -SAME for x in shares), sum(x > SAME for x in shares)
        mean = 100 * statistics.mean(shares)
        lines.append(f"| {length} of {STEPS} | {better} | {len(shares) - better - worse} | {worse} | {mean:+.1f} % |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "schedule_adaptation.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    content: dict[str, Any] = {**provenance("schedule_adaptation"), "lengths": list(LENGTHS), "rows": {}}
    for task in [*validation_suite(), *training_suite()]:
        if "cnn" not in task.name:
            content["rows"][task.name] = measure(task, LENGTHS, SEEDS)
            write_results(args.output, content)
    print(table(content))


if __name__ == "__main__":
    main()
