"""What a prediction costs: `python -m benchmarks.hpo.latency`; written to benchmarks/results/hpo_latency.json."""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.provenance import provenance, write_results
from metafast.hpo import Observation, Predictor, synthetic_tasks
from metafast.hpo._predictor import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "hpo_latency.json"
PAGE = ROOT / "docs" / "hpo-model.md"
REPEATS = 15


def main() -> None:
    torch.set_num_threads(1)
    task = synthetic_tasks(1, seed=5)[0]
    began = time.process_time()
    predictor = Predictor.load("default")
    loading = time.process_time() - began
    found = {}
    for count in (0, 5, 25, 100):
        rows = np.random.default_rng(0).permutation(len(task.configs))[:count]
        observed = [
            Observation(task.configs[row], float(task.final[row]), 1.0, float(task.seconds[row])) for row in rows
        ]
        for name, call in (
            ("belief", partial(predictor.belief, task.space, task.configs, observed, reference=0.1)),
            ("suggest", partial(predictor.suggest, task.space, observed, reference=0.1, fallback="random")),
        ):
            call()
            times = []
            for _ in range(REPEATS):
                began = time.process_time()
                call()
                times.append(1e3 * (time.process_time() - began))
            found[f"{name}, {count} observed"] = {
                "median_ms": round(float(np.median(times)), 2),
                "max_ms": round(max(times), 2),
            }
            print(name, count, found[f"{name}, {count} observed"])
    path = SHIPPED / "default.safetensors"
    tasks = [task for family in predictor._surrogate.families for task in family.tasks]
    numbers = sum(task.curves.size + task.costs.size for task in tasks)
    numbers += sum(family.codes.size for family in predictor._surrogate.families)
    size = {"bytes": os.path.getsize(path), "numbers": numbers, "tasks": len(tasks), "load_ms": round(1e3 * loading, 1)}
    print(size)
    result = {"provenance": provenance("hpo latency"), "candidates": 486, "calls": found, "file": size}
    write_results(RESULTS, result)
    write_page(result)


def write_page(result: dict) -> None:
    made, size = result["provenance"], result["file"]
    rows = []
    for name, call in result["calls"].items():
        method, _, count = name.partition(", ")
        rows.append(f"| `{method}`, {count} | {call['median_ms']:.0f} ms | {call['max_ms']:.0f} ms |")
    text = "\n".join(
        [
            "| 486 candidates | median | longest |",
            "|---|---|---|",
            *rows,
            "",
            f"CPU time on one core ({made['machine']['cpu']}), commit {made['commit']}. The shipped file has "
            f"{size['tasks']} tasks, {size['numbers']:,} numbers and {size['bytes'] / 1e6:.2f} MB.",
        ]
    )
    before, _, rest = PAGE.read_text().partition("<!-- latency -->\n")
    _, _, after = rest.partition("<!-- end of latency -->")
    PAGE.write_text(f"{before}<!-- latency -->\n{text}\n<!-- end of latency -->{after}")


if __name__ == "__main__":
    main()
