"""The experiment from its first search to its results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from metafast.experiments._running import Begin, OtherSettingsError, Row, check_settings, run_stages
from metafast.experiments.hp_prediction import _predictors
from metafast.experiments.hp_prediction._measures import LEVELS
from metafast.experiments.hp_prediction._methods import METHODS, OURS
from metafast.experiments.hp_prediction._plan import Plan, Search, facts, row_of, search
from metafast.experiments.hp_prediction._suites import TITLES, digest, folds, tables
from metafast.experiments.hp_prediction._verdicts import compared, summaries, verdicts
from metafast.runs import versions


def check_folder(plan: Plan, output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Raises:
        OtherSettingsError: another recipe, seed, or other collected tasks.
    """
    check_settings({"recipe": asdict(plan.recipe), "seed": plan.seed}, output)
    for name in plan.names:
        known = tables(name, plan.table)
        folder = output / "tables" / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            check_settings({"tables": {"name": f"{len(known)} tasks", "digest": digest(known)}}, folder)
        except OtherSettingsError as error:
            raise OtherSettingsError(f"{TITLES[name]}: {error}") from None


def run(plan: Plan, output: Path, jobs: int, begin: Begin[Search]) -> dict[str, Row]:
    """Does what is missing, and returns the rows of every search by its name.

    Args:
        plan: what to do.
        output: the folder.
        jobs: searches at the same time.
        begin: called with all searches; returns what to call as they advance.

    Raises:
        KeyboardInterrupt: it was interrupted; the next call goes on.
    """
    return run_stages([plan.first], search, row_of, output, jobs, begin)


def results(plan: Plan, done: Mapping[str, Row]) -> dict[str, Any]:
    """All that `results.json` says."""
    rows = plan.rows(done)
    known = {name: tables(name, plan.table) for name in plan.names}
    grids = {
        table.task.name: (float(table.seconds.sum()), len(table.merit)) for each in known.values() for table in each
    }
    found = summaries(rows, grids)
    main = "collected" if "collected" in plan.names else plan.names[0]
    first = folds(main, plan.table, plan.recipe.suites[main].folds, plan.recipe.suites[main].tasks)[0]
    size = _predictors.measured(first, plan.table)
    return {
        "recipe": plan.recipe.name,
        "about": plan.recipe.about,
        "seed": plan.seed,
        "seeds": plan.seeds or plan.recipe.seeds,
        "methods": {name: method.title for name, method in METHODS.items()},
        "missing": dict(plan.missing),
        "left_out": dict(plan.left_out),
        "suites": {
            name: {
                "title": TITLES[name],
                **facts(known[name]),
                "against": {str(runs): compared(rows, name, runs) for runs in (1, 3, 5, 10, 25)},
                "levels": list(LEVELS),
                "calibration": calibrations(rows, name),
                "points": points(rows, name),
            }
            for name in plan.names
        },
        "predictor": size,
        "summaries": [asdict(each) for each in found],
        "verdicts": [{**asdict(each), "line": str(each)} for each in verdicts(found, rows, size, main)],
        "rows": [{key: value for key, value in row.items() if key not in ("points", "calibration")} for row in rows],
        "settings": asdict(plan.recipe),
        "versions": versions(),
    }


def calibrations(rows: list[Row], suite: str) -> dict[str, list[float]]:
    """Runs to the share of scores inside intervals of each level, of the predictor."""
    mine = [row for row in rows if (row["suite"], row["method"]) == (suite, OURS)]
    made = {}
    for at, runs in enumerate(mine[0]["looks"] if mine else ()):
        shares = [row["calibration"][at] for row in mine if row["calibration"][at] is not None]
        if shares:
            made[str(runs)] = np.mean(shares, 0).tolist()
    return made


def points(rows: list[Row], suite: str) -> list[list[float]]:
    """Predicted and true regrets after five runs, of the predictor."""
    mine = [row for row in rows if (row["suite"], row["method"]) == (suite, OURS)]
    return [point for row in mine for point in row.get("points", ())]
