"""The experiment from its first training to its report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast.experiments._running import Begin, check_settings, run_stages
from metafast.experiments.online_tuning._plan import METHODS, Plan, Row
from metafast.experiments.online_tuning._tasks import TASKS
from metafast.experiments.online_tuning._train import Training, row_of, train
from metafast.experiments.online_tuning._verdicts import Summary, summaries, verdicts
from metafast.runs import versions


def check_folder(plan: Plan, output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Raises:
        OtherSettingsError: another recipe, seed or device.
    """
    check_settings({"recipe": asdict(plan.recipe), "seed": plan.seed, "device": plan.device}, output)


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
    return run_stages([lambda done: plan.first(), plan.second], train, row_of, output, jobs, begin)


def results(plan: Plan, done: dict[str, Row]) -> dict[str, Any]:
    """All that `results.json` says."""
    rows = plan.rows(done)
    found = summaries(rows)
    facts: dict[str, Any] = {}
    for name in plan.names:
        parts = plan.own(name, None)[0].load()
        facts[name] = {
            "title": TASKS[name].title,
            "metrics": list(TASKS[name].metrics),
            "better": TASKS[name].better,
            "examples": dict(zip(("train", "val", "test"), (len(part.targets) for part in parts), strict=True)),
            "reference": TASKS[name].reference(parts.test),
            "static_gradients": _static(found, name).gradients,
            "searches": {
                method: [
                    {"gradients": cost, "values": row["values"], **_tests(row)}
                    for cost, row in plan.courses(name, method, done)
                ]
                for method in ("random", "grid")
            },
        }
    return {
        "recipe": plan.recipe.name,
        "about": plan.recipe.about,
        "seed": plan.seed,
        "seeds": plan.seeds,
        "methods": METHODS,
        "experiments": facts,
        "summaries": [asdict(each) for each in found],
        "verdicts": [{**asdict(each), "line": str(each)} for each in verdicts(found)],
        "rows": rows,
        "settings": asdict(plan.recipe),
        "versions": versions(),
    }


def _static(found: list[Summary], name: str) -> Summary:
    return next(each for each in found if (each.experiment, each.method) == (name, "static"))


def _tests(row: Row) -> Row:
    return {key: value for key, value in row.items() if key.startswith("test_")}
