"""Methods side by side on tables of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from metafast.experiments._running import Row
from metafast.experiments.hp_prediction._methods import METHODS
from metafast.experiments.hp_prediction._plan import facts
from metafast.experiments.hp_prediction._replay import replay
from metafast.experiments.hp_prediction._tables import Table
from metafast.experiments.hp_prediction._verdicts import summaries
from metafast.hpo import MetaTask, Predictor

YOURS = "yours"
NEED_SOURCES = ("rgpe", "zero_shot", "meta_tpe")
USUAL = ("ours", "zero_shot", "rgpe", "gp", "tpe", "cma_es", "random")


def compare(
    tasks: Sequence[MetaTask],
    predictor: Predictor,
    methods: Sequence[str] = USUAL,
    *,
    runs: int = 10,
    seeds: int = 3,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Searches replayed on tasks whose configurations were all run; each with what the other data sets teach.

    Args:
        tasks: with unique names.
        predictor: what it knows of a task's data set is left out when that task is searched.
        methods: names in `METHODS`, but "portfolio". Those that need other tasks are left out where no other data
            set is given.
        runs: of each search; fewer where a task has fewer configurations.
        seeds: of each method that draws.
        progress: called with (method, searches done, searches).

    Returns:
        What `results` says of one suite: "suites", "summaries", "rows", "missing".

    Raises:
        ValueError: no tasks, or an unknown method.

    Example:
        >>> from metafast.experiments.hp_prediction import tables
        >>> tasks = [table.task for table in tables("made", None)[:3]]
        >>> found = compare(tasks, Predictor(tasks), ["ours", "random"], runs=3, seeds=1)
        >>> [each["method"] for each in found["summaries"]]
        ['ours', 'random']
    """
    if not tasks:
        raise ValueError("tasks must have at least one task, got none")
    allowed = [name for name, method in METHODS.items() if not method.settings]
    if unknown := [name for name in methods if name not in allowed]:
        raise ValueError(f"methods must be of {allowed}, got {unknown}")
    known = [Table(task, YOURS) for task in tasks]
    runs = min([runs, *(len(table.merit) for table in known)])
    several = len({task.dataset for task in tasks}) > 1
    missing = {name: "there is no other data set to learn from" for name in methods if name in NEED_SOURCES}
    missing = {} if several else missing
    chosen = [name for name in methods if name not in missing]
    jobs = [(t, name, s) for t in known for name in chosen for s in range(seeds if METHODS[name].drawn else 1)]
    informed: dict[str, Predictor] = {}
    rows: list[Row] = []
    for number, (table, name, seed) in enumerate(jobs):
        sources = [other for other in known if other.task.dataset != table.task.dataset]
        method = METHODS[name]
        if method.predicts and table.task.dataset not in informed:
            blank = predictor.without(*{task.dataset for task in tasks})
            informed[table.task.dataset] = blank.fit([other.task for other in sources]) if sources else blank
        made = replay(method.bound(informed.get(table.task.dataset)), table, sources, seed, runs)
        rows.append({**made, "method": name})
        if progress is not None:
            progress(name, number + 1, len(jobs))
    grids = {table.task.name: (float(table.seconds.sum()), len(table.merit)) for table in known}
    return {
        "suites": {YOURS: {"title": "Your tables", **facts(known)}},
        "summaries": [asdict(each) for each in summaries(rows, grids)],
        "missing": missing,
        "rows": rows,
    }
