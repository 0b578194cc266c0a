"""The tables, the plots and the HTML report."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from metafast import plots
from metafast._page import picture
from metafast.experiments._report import aims, note, origin, results_table, write_report
from metafast.experiments.rapid_adaptation._methods import EXPLAINED, METHODS

Results = Mapping[str, Any]
STEPWISE = ("finetune", "lora", "maml", "anil", "ours")  # measured before adaptation and after each step


def table(results: Results, name: str) -> Table:
    """One data set for the terminal: accuracy of each method in each case."""
    facts = results["settings_done"][name]
    seeds, episodes = results["seeds"], results["settings"]["episodes"]
    made = Table(title=f"{facts['title']}: accuracy (%), {seeds} x {episodes} test tasks, ± 95 %", title_justify="left")
    made.add_column("method")
    for case in facts["cases"]:
        made.add_column(case.removeprefix(f"{facts['title']}, "), justify="right")
    made.add_column("ms per task", justify="right")
    for method, title in METHODS.items():
        mine = [_one(results, case, method) for case in facts["cases"]]
        made.add_row(title, *map(_accuracy, mine), _milliseconds(mine[0]["seconds"]))
    return made


def write(results: Results, output: Path, command: str) -> list[Path]:
    """Plots, `results.json` and `report.html`; the report comes first in the list.

    Args:
        results: from `results`.
        output: the folder.
        command: to repeat it.
    """
    files: list[Path] = []
    parts = []
    for name, facts in results["settings_done"].items():
        pictures = []
        for stem, plot, caption in _figures(results, facts):
            written = plots.save(plot, output / f"{name}_{stem}")
            files += written
            pictures.append(picture(written[1], caption))
        parts.append(_section(results, facts, pictures))
    body = _body(results, parts, command)
    return [*write_report(results, "metafast run rapid-adaptation", body, output), *files]


def accuracy_figure(results: Results, cases: list[str]) -> Any:
    """Accuracy of every method in some cases."""
    return plots.accuracy_bars(
        {
            case: {
                title: (each["accuracy"], each["half"])
                for method, title in METHODS.items()
                for each in [_one(results, case, method)]
            }
            for case in cases
        },
        highlight=METHODS["ours"],
    )


def course_figure(results: Results, cases: list[str]) -> Any:
    """Query loss before adaptation and after each step."""
    panels = {case: {METHODS[method]: _one(results, case, method)["losses"] for method in STEPWISE} for case in cases}
    return plots.adaptation_curves(panels, ylabel="query loss", percent=False, log=True)


def time_figure(results: Results, cases: list[str]) -> Any:
    """Accuracy against the time of adapting to one task."""
    return plots.accuracy_by_time(
        {
            case: {
                title: (each["seconds"], each["accuracy"], each["half"])
                for method, title in METHODS.items()
                for each in [_one(results, case, method)]
                if each["seconds"]
            }
            for case in cases
        }
    )


def _figures(results: Results, facts: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    cases = facts["cases"]
    own = [case for case in cases if _one(results, case, "ours")["target"] is None]
    return [
        (
            "accuracy",
            accuracy_figure(results, cases),
            "Accuracy on test tasks with 95 % intervals, all seeds together.",
        ),
        (
            "course",
            course_figure(results, cases),
            "Loss on the query examples before adaptation and after each step: mean over test tasks and 95 % interval. "
            "A new head starts from zeros, so that fine-tuning begins at the loss of chance.",
        ),
        (
            "time",
            time_figure(results, own),
            "Accuracy against the time of adapting to one task, on one thread; every method in turn, median.",
        ),
    ]


def _section(results: Results, facts: Mapping[str, Any], pictures: list[str]) -> str:
    backbone = facts["backbone"]
    about = backbone["about"]
    objective = {
        "classes": "to tell all training classes apart",
        "episodes": "on episodes, by nearest prototypes, so that the ProtoNet head is one that was trained",
    }.get(about.get("objective"), "elsewhere")
    tables = "".join(_case_table(results, case) for case in facts["cases"])
    return (
        f"<h2>{html.escape(facts['title'])}</h2>"
        f"<p>Backbone <code>{html.escape(backbone['name'])}</code>: {html.escape(about['title'])}, "
        f"{backbone['numbers']:,} numbers, {backbone['width']} features; one for all seeds, frozen, pre-trained "
        f"{objective}.</p>{''.join(pictures)}{tables}"
    )


def _case_table(results: Results, case: str) -> str:
    rows = []
    for method, title in METHODS.items():
        each = _one(results, case, method)
        seeds = " ".join(f"{100 * mean:.1f}" for mean, _ in each["by_seed"])
        per_step = None if each["seconds"] is None or not each["steps"] else each["seconds"] / each["steps"]
        rows.append(
            (
                title,
                [
                    _accuracy(each),
                    seeds,
                    f"{each['loss'][0]:.3f}",
                    str(each["steps"]),
                    "" if each["rate"] is None else f"{each['rate']:g}",
                    _milliseconds(each["seconds"]),
                    _milliseconds(per_step),
                    _milliseconds(each["cpu_seconds"]),
                    "" if each["peak_mb"] is None else f"{each['peak_mb']:.0f}",
                    "" if each["meta_seconds"] is None else f"{each['meta_seconds']:.0f}",
                    str(each["lost"] or ""),
                ],
            )
        )
    share = next(each for each in results["shares"] if each["case"] == case)
    ends = " and ".join(f"{100 * value:.0f} % after {steps}" for steps, value in share["best"].items())
    return results_table(
        f"{case}. Mean and 95 % interval over the test tasks of all seeds; rate: chosen on validation tasks. Lost: "
        "tasks whose loss was not finite, which count as wrong. The meta-network's loss is below that of every rate of "
        f"fine-tuning, chosen for each task in hindsight, on {ends} steps ({share['tasks']} tasks).",
        ["method", "accuracy (%)", "by seed", "loss", "steps", "rate", "ms", "ms a step", "CPU ms", "peak MB",
         "meta-training s", "lost"],
        rows,
        pairs=False,
    )  # fmt: skip


def _body(results: Results, parts: list[str], command: str) -> str:
    methods = "".join(
        f"<li><b>{html.escape(title)}</b>: {html.escape(EXPLAINED[name])}</li>" for name, title in METHODS.items()
    )
    return f"""<h1>A meta-network that fine-tunes a frozen model</h1>
{note(results)}
<p>Tasks of a few examples per class, of classes that nothing was trained on. Every method adapts with
{results["settings"]["steps"]} steps, but where it says otherwise, and is tested on the same tasks; seeds differ in
meta-training and test tasks.</p>
<ul>{methods}</ul>
{aims(results["verdicts"])}
{"".join(parts)}
{origin(results, command)}"""


def _one(results: Results, case: str, method: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        each for each in results["summaries"] if (each["case"], each["method"]) == (case, method)
    )
    return found


def _accuracy(each: Mapping[str, Any]) -> str:
    return f"{100 * each['accuracy']:.1f} ± {100 * each['half']:.1f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1000 * seconds:.1f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
