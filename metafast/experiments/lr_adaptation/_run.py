"""The experiment from its first training to its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast.experiments._running import Begin, Row, check_settings, run_stages
from metafast.experiments.lr_adaptation import _controller
from metafast.experiments.lr_adaptation._methods import METHODS
from metafast.experiments.lr_adaptation._pairs import title
from metafast.experiments.lr_adaptation._plan import Plan
from metafast.experiments.lr_adaptation._recipes import HELD_OUT
from metafast.experiments.lr_adaptation._train import Training, row_of, train
from metafast.experiments.lr_adaptation._verdicts import summaries, sweeps, thresholds, verdicts, winners
from metafast.runs import versions


def check_folder(plan: Plan, output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Raises:
        OtherSettingsError: another recipe, seed, device or controller.
    """
    controller = _controller.load()
    made = {"name": _controller.SHIPPED, "digest": controller.digest()}  # what it learned, whenever it was made
    settings = {"recipe": asdict(plan.recipe), "seed": plan.seed, "device": plan.device}
    check_settings({**settings, "controller": made}, output)


def run(plan: Plan, output: Path, jobs: int, begin: Begin[Training]) -> dict[str, Row]:
    """Does what is missing, and returns the row of every training by its name.

    Args:
        plan: what to do.
        output: the folder.
        jobs: trainings at the same time.
        begin: called with the trainings of each stage, before it; returns what to call as they advance.

    Raises:
        KeyboardInterrupt: it was interrupted; the next call goes on.
    """
    return run_stages([plan.first, plan.second], train, row_of, output, jobs, begin)


def results(plan: Plan, done: Mapping[str, Row]) -> dict[str, Any]:
    """All that `results.json` says."""
    rows, sweep_rows = plan.rows(done), plan.sweep_rows(done)
    record = _controller.load().record
    facts: dict[str, Any] = {}
    levels = thresholds(rows)
    seen = {name: _controller.seen(record, plan.setup(name)) for name in plan.names}
    for name in plan.names:
        setup = plan.setup(name)
        parts, _ = plan.training(name, "fixed").load()
        facts[name] = {
            "title": title(setup),
            "examples": {part: len(samples.labels) for part, samples in parts._asdict().items()},
            "batch_size": setup.batch_size,
            "aims": name in HELD_OUT,
            "seen": str(seen[name]),
            "held_out": seen[name].held_out,
        }
        if name in levels:
            facts[name] |= {
                "threshold": levels[name],
                "grid": [[t.rate, 100 * done[t.name]["val_accuracy"]] for t in plan.grid(name)],
                "best_rate": plan.best_rate(name, done),
                "layers": plan.layers(name).name,
                "layers_accuracy": 100 * done[plan.layers(name).name]["test_accuracy"],
                "adaptation_seconds": done[plan.adaptation(name).name]["seconds"],
            }
    examples = {name: facts[name]["examples"]["train"] for name in plan.names}
    found = summaries(rows, examples, {name: facts[name]["batch_size"] for name in plan.names})
    swept = sweeps(sweep_rows)
    judged = verdicts(found, swept, {name: each.held_out for name, each in seen.items()})
    return {
        "recipe": plan.recipe.name,
        "about": plan.recipe.about,
        "seed": plan.seed,
        "seeds": plan.seeds,
        "methods": METHODS,
        "missing": dict(plan.missing),
        "left_out": dict(plan.left_out),
        "controller": record,
        "pairs": facts,
        "summaries": [asdict(each) for each in found],
        "sweeps": [
            {**asdict(each), "accuracy": {method: list(row.items()) for method, row in each.accuracy.items()}}
            for each in swept
        ],
        "winners": winners(found),
        "verdicts": [{**asdict(each), "line": str(each)} for each in judged],
        "rows": rows,
        "sweep_rows": sweep_rows,
        "settings": asdict(plan.recipe),
        "versions": versions(),
    }
