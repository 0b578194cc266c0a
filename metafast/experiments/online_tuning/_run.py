"""The experiment from its first training to its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast._page import write_text
from metafast._trainings import run_all
from metafast.experiments.online_tuning._plan import METHODS, Plan, Row
from metafast.experiments.online_tuning._tasks import TASKS
from metafast.experiments.online_tuning._train import Training, row_of, train
from metafast.experiments.online_tuning._verdicts import Summary, summaries, verdicts
from metafast.runs import Run, versions

SETTINGS = "settings.json"


class OtherSettingsError(ValueError):
    """The folder holds an experiment with other settings."""


def check_folder(plan: Plan, output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Raises:
        OtherSettingsError: another recipe, seed or device.
    """
    mine = json.loads(json.dumps({"recipe": asdict(plan.recipe), "seed": plan.seed, "device": plan.device}))
    file = output / SETTINGS
    if not file.exists():
        write_text(file, json.dumps(mine, indent=1) + "\n")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    wrong = [key for key in mine if before.get(key) != mine[key]]
    if wrong:
        told = [f"{key} {_short(before.get(key))}, not {_short(mine[key])}" for key in wrong]
        raise OtherSettingsError(
            f"{output} holds an experiment with {', '.join(told)}; give the same options or another folder"
        )


def run(
    plan: Plan, output: Path, jobs: int, begin: Callable[[list[Training]], Callable[[Training, int], None]]
) -> dict[str, Row]:
    """Does what is missing, and returns the row of every training by its name.

    Args:
        plan: what to do.
        output: the folder.
        jobs: trainings at the same time.
        begin: called with the trainings of each stage, before it; returns what to call as they advance.

    Raises:
        KeyboardInterrupt: it was interrupted; the next call goes on.
    """
    root = output / "runs"
    root.mkdir(parents=True, exist_ok=True)
    done: dict[str, Row] = {}
    for stage in (1, 2):
        trainings = plan.first() if stage == 1 else plan.second(done)
        run_all(trainings, train, root, jobs, begin(trainings))
        done |= {training.name: row_of(Run.open(root / training.name)) for training in trainings}
    return done


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


def _short(value: Any) -> str:
    return repr(value["name"]) + " (as it was then)" if isinstance(value, dict) else repr(value)
