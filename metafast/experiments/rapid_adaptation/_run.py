"""The experiment from its first job to its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metafast.experiments._running import Begin, check_settings, run_stages
from metafast.experiments.rapid_adaptation._jobs import Job, row_of
from metafast.experiments.rapid_adaptation._methods import EXPLAINED, METHODS
from metafast.experiments.rapid_adaptation._plan import Plan, Row
from metafast.experiments.rapid_adaptation._summaries import shares, summaries
from metafast.experiments.rapid_adaptation._verdicts import verdicts
from metafast.experiments.rapid_adaptation._work import do
from metafast.runs import versions


def check_folder(plan: Plan, output: Path) -> None:
    """Writes down what the folder is for, or raises if it is for something else.

    Raises:
        OtherSettingsError: another recipe, seed or device.
    """
    check_settings({"recipe": asdict(plan.recipe), "seed": plan.seed, "device": plan.device}, output)


def run(plan: Plan, output: Path, jobs: int, begin: Begin[Job]) -> dict[str, Row]:
    """Does what is missing, and returns the row of every job by its name.

    Args:
        plan: what to do.
        output: the folder.
        jobs: how many at the same time; the clock runs alone.
        begin: called with the jobs of each stage, before it; returns what to call as they advance.

    Raises:
        KeyboardInterrupt: it was interrupted; the next call goes on.
    """
    done = run_stages([lambda rows: plan.backbones()], do, row_of, output, min(jobs, len(plan.names)), begin)
    done |= run_stages([lambda rows: plan.second(), plan.tests], do, row_of, output, jobs, begin)
    return done | run_stages([lambda rows: plan.costs(done)], do, row_of, output, 1, begin)


def results(plan: Plan, output: Path, done: Mapping[str, Row]) -> dict[str, Any]:
    """All that `results.json` says.

    Args:
        plan: what was done.
        output: the folder.
        done: the row of every job by its name.
    """
    root = output / "runs"
    found, compared = summaries(plan, done, root), shares(plan, done, root)
    names = {job.setting: job.name for job in plan.backbones()}
    costs = {plan.title(case): done[plan.cost(case, done).name] for case in _own(plan)}
    return {
        "recipe": plan.recipe.name,
        "about": plan.recipe.about,
        "seed": plan.seed,
        "seeds": plan.seeds,
        "methods": METHODS,
        "explained": EXPLAINED,
        "settings_done": {
            name: {
                "title": plan.recipe.setups[name].title,
                "backbone": {"name": plan.recipe.setups[name].backbone, **done[names[name]]},
                "cases": [plan.title(case) for case in plan.cases(name)],
            }
            for name in plan.names
        },
        "summaries": [asdict(each) for each in found],
        "shares": [asdict(each) for each in compared],
        "costs": costs,
        "rates": {job.name: done[job.name] for job in plan.rates()},
        "meta": {job.name: done[job.name] for job in plan.metas()},
        "verdicts": [{**asdict(each), "line": str(each)} for each in verdicts(plan, found, compared, done)],
        "settings": json.loads(json.dumps(asdict(plan.recipe))),
        "versions": versions(),
    }


def _own(plan: Plan) -> list[Any]:
    return [case for name in plan.names for case in plan.cases(name) if case.target is None]
