"""Designs of the predictor side by side: `python -m benchmarks.hpo.designs`, minutes to an hour on one core.

Tasks are left out in groups; a design learns the rest and then searches each of them among the configurations of its
table. Written to benchmarks/results/hpo_designs.json, beside what is there of other designs and tables.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.hpo.networks import DeepKernel, Learned, SetTransformer
from benchmarks.provenance import provenance, write_results
from metafast.hpo import MetaTask, svm_tasks, taskset_tasks
from metafast.hpo._known import families_of
from metafast.hpo._portfolio import next_of_portfolio
from metafast.hpo._scores import tame
from metafast.hpo._surrogate import Query, Settings, Surrogate

RUNS = 10
LOOKS = (0, 1, 3, 5, 10)
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "hpo_designs.json"
PAGE = ROOT / "docs" / "hpo-model.md"
NETWORKS = {"deep kernel": DeepKernel, "transformer": SetTransformer}
DESIGNS = ("taught", "taught, no features", "taught, no portfolio", "plain", *NETWORKS)


class Task:
    """A task as designs see it."""

    def __init__(self, task: MetaTask, family, known) -> None:
        self.family, self.codes, self.features = family, family.codes, known.features
        self.dataset, self.scores = task.dataset, known.scores
        self.reference = math.nan if task.reference is None else float(known.scores.inward(np.array(task.reference)))
        nothing = None if math.isnan(self.reference) else self.reference
        self.values = tame(known.scores.inward(task.curves), nothing)[:, -1]


def search(task: Task, believe, first, runs: int = RUNS) -> dict:
    """Searches a table; `believe(rows, values)` gives a mixture at all rows, `first(rows)` the portfolio's next row."""
    values, rows = task.values, []
    best, worst = values.max(), values.min()
    found = {"regret": [], "recommended": [], "rank": [], "coverage": [], "nll": []}
    for count in range(runs + 1):
        mixture = believe(rows, values[rows])
        if count in LOOKS:
            rest = np.setdiff1d(np.arange(len(values)), rows)
            below = mixture.below(values)[rest]
            mean = mixture.mean
            found["rank"].append(float(spearmanr(mean, values)[0]) if np.ptp(mean) > 0 else 0.0)
            found["coverage"].append(float(np.mean((below > 0.05) & (below < 0.95))))
            found["nll"].append(float(-mixture.log_density(values)[rest].mean() + np.log(values.std())))
            found["recommended"].append(float((best - values[mean.argmax()]) / (best - worst)))
            found["regret"].append(float((best - max(values[rows], default=values[mean.argmax()])) / (best - worst)))
        row = first(rows)
        if row is None:
            gain = mixture.improvement(values[rows].max()) if rows else mixture.mean.copy()
            gain[rows] = -np.inf
            row = int(gain.argmax())
        rows.append(row)
    return found


def taught(surrogate: Surrogate, task: Task, features: bool, portfolio: int, blank: bool = False):
    """The Gaussian process of the package."""
    about = task.features if features else {}

    def query(rows, values):
        codes = np.concatenate([task.codes[rows], task.codes])
        ones = np.ones(len(codes))
        return Query(task.family.axes, codes, ones, np.asarray(values), task.scores, task.reference, about)

    def believe(rows, values):
        mixture, _ = surrogate.believe(query(rows, values), blank=blank)
        n = len(rows)
        return type(mixture)(mixture.weights, mixture.means[:, n:], mixture.variances[:, n:])

    def first(rows):
        return next_of_portfolio(*surrogate.values(query(rows, [])), len(rows)) if len(rows) < portfolio else None

    return believe, first


def learned(network: Learned, task: Task):
    def believe(rows, values):
        mixture = network.believe(np.concatenate([task.codes[rows], task.codes]), task.features, np.asarray(values))
        n = len(rows)
        weights = mixture.weights if mixture.weights.ndim == 1 else mixture.weights[:, n:]
        return type(mixture)(weights, mixture.means[:, n:], mixture.variances[:, n:])

    return believe, lambda rows: None


def compare(tasks: list[MetaTask], designs, groups: int, seconds: float, say=print) -> dict:
    families = families_of(tasks)
    assert len(families) == 1, "one table"
    seen = [Task(task, families[0], known) for task, known in zip(tasks, families[0].tasks, strict=True)]
    datasets = list(dict.fromkeys(task.dataset for task in tasks))
    found = {design: [] for design in designs}
    for group in range(min(groups, len(datasets))):
        held = set(datasets[group::groups])
        surrogate = Surrogate(families).without(held)
        networks = {}
        for design in designs:
            if design in NETWORKS:
                family = replace(families[0], tasks=[t for t in families[0].tasks if t.dataset not in held])
                networks[design] = Learned(NETWORKS[design], family, seconds)
        for task in seen:
            if task.dataset not in held:
                continue
            own = surrogate if groups < len(datasets) else Surrogate(families).without({task.dataset})
            for design in designs:
                if design in NETWORKS:
                    parts = learned(networks[design], task)
                else:
                    portfolio = 0 if design in ("taught, no portfolio", "plain") else own.settings.portfolio
                    parts = taught(own, task, design != "taught, no features", portfolio, design == "plain")
                found[design].append(search(task, *parts))
        say(f"group {group + 1} of {min(groups, len(datasets))}")
    return {design: summary(rows) for design, rows in found.items()}


def summary(rows: list[dict]) -> dict:
    found = {}
    for name in rows[0]:
        middle = np.median if name == "rank" else np.mean
        values = np.round(middle([row[name] for row in rows], axis=0), 4).tolist()
        found[name] = dict(zip(map(str, LOOKS), values, strict=True))
    return found


def table(result: dict) -> str:
    """Of the page: a row for each design on each set."""
    names = {"svm": "SVM set, 40 tasks", "taskset": "TaskSet, 8 tasks", "grid": "collected grid"}
    lines = [
        "| tasks | design | regret after 1, 3, 5, 10 runs | rank correlation, 0 and 5 "
        "| 90 % interval holds, 0 and 5 | nats, 0 and 5 |",
        "|---|---|---|---|---|---|",
    ]
    for name, designs in result["sets"].items():
        for design, m in designs.items():
            regret = ", ".join(f"{m['regret'][k]:.3f}" for k in ("1", "3", "5", "10"))
            two = {key: [m[key][k] for k in ("0", "5")] for key in ("rank", "coverage", "nll")}
            rank = ", ".join(f"{value:.2f}" for value in two["rank"])
            held = ", ".join(f"{100 * value:.0f} %" for value in two["coverage"])
            nats = ", ".join(f"{value:.2f}" for value in two["nll"])
            lines.append(f"| {names[name]} | {design} | {regret} | {rank} | {held} | {nats} |")
    made = result["provenance"]
    trained = ", ".join(f"{value:g} s ({names[key]})" for key, value in result["settings"]["training_seconds"].items())
    lines += [
        "",
        "Mean normalized regret of the best run; median rank correlation over all configurations; share of the "
        "others inside the interval; mean negative log density in units of a task's spread. Less regret and fewer "
        'nats are better. "taught" is what ships. '
        f"Networks trained {trained} of one core for each group of data sets; "
        f"commit {made['commit']}, {made['date'][:10]}, torch {made['versions']['torch']}.",
    ]
    return "\n".join(lines)


def write_page(result: dict) -> None:
    before, _, rest = PAGE.read_text().partition("<!-- designs -->\n")
    _, _, after = rest.partition("<!-- end -->")
    PAGE.write_text(f"{before}<!-- designs -->\n{table(result)}\n<!-- end -->{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="a collected table too")
    parser.add_argument("--sets", nargs="*", default=["svm", "taskset"])
    parser.add_argument("--designs", nargs="+", default=DESIGNS)
    parser.add_argument("--seconds", type=float, default=60, help="of training of each network")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the results that are there into the page")
    arguments = parser.parse_args()
    if arguments.page:
        write_page(json.loads(arguments.output.read_text()))
        return
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"settings": {}, "sets": {}}
    trained = result["settings"].get("training_seconds", {})
    sets = {"svm": (svm_tasks, 5), "taskset": (taskset_tasks, 4)}
    if arguments.table:
        from metafast.hpo import load_tasks

        sets["grid"] = (lambda: load_tasks(arguments.table), 100)
        arguments.sets.append("grid")
    for name in arguments.sets:
        read, groups = sets[name]
        began = time.perf_counter()
        found = compare(read(), arguments.designs, groups, arguments.seconds)
        if set(arguments.designs) & set(NETWORKS):
            trained[name] = arguments.seconds
        rows = {**result["sets"].get(name, {}), **found}
        result["sets"][name] = {design: rows[design] for design in DESIGNS if design in rows}
        for design, measures in found.items():
            print(name, design, json.dumps(measures), flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s")
    result["settings"] = {"training_seconds": trained, "runs": RUNS, "model": Settings().__dict__}
    write_results(arguments.output, {**result, "provenance": provenance("hpo designs", "scipy")})


if __name__ == "__main__":
    main()
