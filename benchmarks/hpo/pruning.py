"""PredictorPruner against Optuna's pruners: `python -m benchmarks.hpo.pruning --table FOLDER`, ten minutes on one core.

A data set is left out at a time; the predictor knows the tasks of the others. On each task of the one left out, random
search replays trainings from the table, and a pruner sees their curves. Written to benchmarks/results/hpo_pruning.json:

budget  share of the epochs that random search without pruning uses
pruned  share of the trials that were pruned
wrong   share of the pruned ones that would have ended above all trials finished before them
regret  of the best finished trial, between 0 (the best of the table) and 1 (its worst)
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from optuna import pruners

from benchmarks.provenance import provenance, write_results
from metafast.hpo import MetaTask, Predictor, PredictorPruner, load_tasks

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "hpo_pruning.json", ROOT / "docs" / "hpo-optuna.md"
MARKS = "<!-- pruning -->\n", "<!-- /pruning -->\n"
MEASURES = ("budget", "pruned", "wrong", "regret")


def methods(predictor: Predictor, task: MetaTask) -> dict[str, Callable[[], pruners.BasePruner]]:
    steps = len(task.fractions)
    told = {"space": task.space, "metric": task.metric, "reference": task.reference, "n_steps": steps}
    return {
        "none": pruners.NopPruner,
        "PredictorPruner": lambda: PredictorPruner(predictor, task=task.features, **told),
        "PredictorPruner, threshold 0.2": lambda: PredictorPruner(predictor, task=task.features, threshold=0.2, **told),
        "MedianPruner": pruners.MedianPruner,
        "HyperbandPruner": lambda: pruners.HyperbandPruner(min_resource=1, max_resource=steps),
        "SuccessiveHalvingPruner": pruners.SuccessiveHalvingPruner,
    }


def replay(task: MetaTask, pruner: pruners.BasePruner, trials: int, seed: int) -> dict[str, float]:
    """One study."""
    rows = {task.space.key(config): row for row, config in enumerate(task.configs)}
    sign = 1.0 if task.direction == "maximize" else -1.0
    ends = sign * task.final
    fractions = np.diff(task.fractions, prepend=0.0)
    best, used, pruned, wrong = -math.inf, 0.0, 0, 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal best, used, pruned, wrong
        row = rows[task.space.key(task.space.ask(trial))]
        for step, value in enumerate(task.curves[row, :-1]):
            used += fractions[step]
            trial.report(float(value), step)
            if trial.should_prune():
                pruned += 1
                wrong += bool(ends[row] > best)
                raise optuna.TrialPruned
        used += fractions[-1]
        best = max(best, ends[row]) if math.isfinite(ends[row]) else best
        return float(task.final[row])

    sampler = optuna.samplers.RandomSampler(seed=seed)
    optuna.create_study(direction=task.direction, sampler=sampler, pruner=pruner).optimize(objective, n_trials=trials)
    top, bottom = np.nanmax(ends), np.nanmin(ends)
    regret = (top - max(best, bottom)) / (top - bottom)
    return {
        "budget": used / trials,
        "pruned": pruned / trials,
        "wrong": wrong / max(pruned, 1),
        "regret": float(regret),
    }


def fill_page(content: dict) -> None:
    """Puts the results into the documentation."""
    settings, machine = content["settings"], content["provenance"]
    lines = ["| pruner | epochs used | trials pruned | of these by mistake | regret |", "|---|---|---|---|---|"]
    for name, row in content["summary"].items():
        budget, pruned, wrong = (f"{100 * row[m][0]:.0f} %" for m in ("budget", "pruned", "wrong"))
        lines.append(f"| {name} | {budget} | {pruned} | {wrong} | {row['regret'][0]:.3f} ± {row['regret'][1]:.3f} |")
    said = (
        f"Random search of {settings['trials']} trials on each of {len(settings['tasks'])} tasks of the meta-data set, "
        f"{settings['seeds']} seeds; the predictor does not know the task's data set. A trial pruned by mistake would "
        "have ended above all that had finished before; regret is of the best finished trial, 0 the best of the table "
        "and 1 its worst, with 95 % intervals over tasks (`benchmarks/results/hpo_pruning.json`, "
        f"commit {machine['commit']}). The model's few settings were chosen on this table."
    )
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    _, after = rest.split(MARKS[1])
    text = "\n".join([*textwrap.wrap(said, 120, break_on_hyphens=False), "", *lines]) + "\n"
    PAGE.write_text(f"{before}{MARKS[0]}{text}{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", type=Path, help="what `metafast hpo collect` has collected; none: fill the page only"
    )
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.table is None:
        return fill_page(json.loads(options.output.read_text(encoding="utf-8")))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tasks = load_tasks(options.table)
    predictor = Predictor().fit(tasks)
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for task in tasks:
        for name, make in methods(predictor.without(task.dataset), task).items():
            studies = [replay(task, make(), options.trials, seed) for seed in range(options.seeds)]
            found.setdefault(name, {})[task.name] = studies
    summary = {}
    for name, by_task in found.items():
        means = np.array([np.mean([[s[m] for m in MEASURES] for s in studies], axis=0) for studies in by_task.values()])
        half = 1.96 * means.std(0, ddof=1) / math.sqrt(len(means))
        summary[name] = {m: [float(means[:, i].mean()), float(half[i])] for i, m in enumerate(MEASURES)}
        print(f"{name:32}", *(f"{m} {value:.3f} ± {around:.3f}" for m, (value, around) in summary[name].items()))
    settings = {"trials": options.trials, "seeds": options.seeds, "tasks": [task.name for task in tasks]}
    content = {"provenance": provenance("hpo pruning", "optuna"), "settings": settings, "summary": summary}
    write_results(options.output, {**content, "studies": found})
    return None


if __name__ == "__main__":
    main()
