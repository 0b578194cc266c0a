"""The table, the plots and the HTML report."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from metafast import plots
from metafast._page import picture
from metafast.experiments._report import aims, note, origin, results_table, write_report
from metafast.experiments.hp_prediction._methods import METHODS, OURS
from metafast.experiments.hp_prediction._verdicts import after

Results = Mapping[str, Any]
DRAWN = (OURS, "random", "rgpe", "gp", "tpe", "zero_shot", "gp_table", "meta_tpe", "cma_es")


def table(results: Results, name: str) -> Table:
    """One suite for the terminal."""
    facts = results["suites"][name]
    size = f"{facts['tasks']} tasks, {facts['datasets']} data sets"
    made = Table(
        title=f"{facts['title']} ({size}): mean regret after so many runs",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1),
    )
    made.add_column("method", no_wrap=True)
    looks = [runs for runs in _looks(results, name) if runs != 1]  # the first run is what would be run first
    for runs in looks:
        made.add_column(str(runs), justify="right", no_wrap=True)
    last = max(runs for runs in looks if runs <= 5)
    made.add_column("near*", justify="right", no_wrap=True)
    for each in _of(results, name):
        cells = [_number(each["found"][k]) for k in looks]
        made.add_row(METHODS[each["method"]].title, *cells, _percent(each["near"][last]))
    made.caption = f"* within 5 % of the grid's best after {last} runs"
    made.caption_justify = "left"
    return made


def regret_figure(results: Results) -> Any:
    """Every suite's regret over runs."""
    panels: dict[str, dict[str, plots.RegretCurve]] = {}
    for name, facts in results["suites"].items():
        lines = {each["method"]: each["course"] for each in _of(results, name)}
        panels[facts["title"]] = {
            METHODS[method].title: plots.RegretCurve(range(1, len(lines[method][0]) + 1), *map(_known, lines[method]))
            for method in DRAWN
            if method in lines and lines[method][0]
        }
    bands = [METHODS[method].title for method in (OURS, "rgpe")]
    return plots.regret_curves(panels, bands=bands)


def share_figure(results: Results, name: str) -> Any:
    """How many tasks are within 5 % of the grid's best."""
    looks = [k for k in _looks(results, name) if k in (0, 1, 3, 5, 10)]
    shares = {METHODS[each["method"]].title: {after(k): each["near"][k] for k in looks} for each in _of(results, name)}
    return plots.share_bars(shares, title=results["suites"][name]["title"])


def write(results: Results, output: Path, command: str) -> list[Path]:
    """Plots, `results.json` and `report.html`; the report comes first in the list.

    Args:
        results: from `results`.
        output: the folder.
        command: to repeat it.
    """
    results = _keyed(results)
    files = plots.save(regret_figure(results), output / "regret")
    overview = picture(
        files[-1],
        "Mean normalized regret of the best configuration that was run: 0 is the grid's best, 1 the worst. Bands: 95 % "
        "intervals over tasks.",
    )
    parts = []
    for name, facts in results["suites"].items():
        pictures = []
        for stem, figure, caption in _figures(results, name):
            written = plots.save(figure, output / f"{name}_{stem}")
            files += written
            pictures.append(picture(written[1], caption))
        parts.append(_section(results, name, facts, pictures))
    body = _body(results, overview, parts, command)
    return [*write_report(results, "metafast run hp-prediction", body, output), *files]


def _figures(results: Results, name: str) -> list[tuple[str, Any, str]]:
    facts = results["suites"][name]
    made = [
        (
            "shares",
            share_figure(results, name),
            "Tasks where the best of a method's runs is within 5 % of the grid's best; before the first run: what it "
            "would run first.",
        )
    ]
    if facts["calibration"]:
        shares = {after(int(runs)): _known(each) for runs, each in facts["calibration"].items()}
        made.append(
            (
                "calibration",
                plots.calibration_curves(facts["levels"], shares, title=facts["title"]),
                "The predictor's intervals, read as those of a normal distribution: how many scores are inside.",
            )
        )
    if facts["points"]:
        made.append(
            (
                "predicted",
                plots.predicted_and_true({facts["title"]: facts["points"]}),
                "Predicted against true scores after 5 runs, as regrets; 40 configurations of each task.",
            )
        )
    return made


def _section(results: Results, name: str, facts: Mapping[str, Any], pictures: list[str]) -> str:
    looks, mine = _looks(results, name), _of(results, name)
    heads = [f"{k} runs" if k != 1 else "1 run" for k in looks]
    regrets, told, shares, costs = [], [], [], []
    for each in mine:
        title = METHODS[each["method"]].title
        regrets.append((title, [_with_half(each["found"][k], each["half"][k]) for k in looks]))
        told.append((title, [_number(each["told"][k]) for k in looks]))
        shares.append((title, [f"{_percent(each['near'][k])} / {_percent(each['told_near'][k])}" for k in looks]))
        costs.append(
            (
                title,
                [
                    f"{each['trainings'][k]:.3g} / {_percent(each['of_grid'][k], 2)} / {_percent(each['of_trials'][k])}"
                    for k in looks[1:]
                ]
                + [f"{each['thinking']:.2f}", str(each["seeds"])],
            )
        )
    beliefs = [
        (
            METHODS[each["method"]].title,
            [_number(each["rank"][k]) for k in (0, 5) if k in looks]
            + [_percent(each["coverage"][k]) for k in (0, 1, 3, 5) if k in looks],
        )
        for each in mine
        if any(math.isfinite(_float(value)) for value in each["rank"].values())
    ]
    tests = [
        (
            METHODS[row["method"]].title,
            [
                f"+{gain:.3f} (p = {p:.2g})" if gain >= 0 else f"{gain:.3f} (p = {p:.2g})"
                for gain, p in (facts["against"][str(k)][row["method"]] for k in looks[1:])
            ],
        )
        for row in mine
        if all(row["method"] in facts["against"].get(str(k), {}) for k in looks[1:])
    ]
    ranks = [f"rank correlation {after(k)}" for k in (0, 5) if k in looks]
    covers = [f"coverage {after(k)}" for k in (0, 1, 3, 5) if k in looks]
    seconds = "Seconds are not known; each run counts the same. " if not facts["timed"] else ""
    made = [
        _table("Regret of the best run, mean and 95 % interval over tasks.", ["method", *heads], regrets),
        _table("Regret of what the method believes is best, run or not.", ["method", *heads], told),
        _table(
            "Share of tasks within 5 % of the grid's best: the best run / what it believes is best. "
            f"A configuration at random is that good with {_percent(facts['near'])}.",
            ["method", *heads],
            shares,
        ),
        _table(
            "Cost so far: whole trainings / share of the grid's seconds / share of the seconds of 50 trials at random. "
            f"{seconds}Last: CPU seconds of the method itself for all runs, and seeds.",
            ["method", *heads[1:], "own CPU s", "seeds"],
            costs,
        ),
        _table("What is believed of all configurations.", ["method", *ranks, *covers], beliefs),
        _table(
            "How much more regret a method has than the predictor (p of Wilcoxon's signed-rank test over tasks).",
            ["method", *heads[1:]],
            tests,
        ),
    ]
    epochs = f", of {facts['epochs']:g} epochs on average" if facts["epochs"] else ""
    cost = f" and {facts['grid_seconds']:,.0f} seconds" if facts["timed"] else ""
    return (
        f"<h2>{html.escape(facts['title'])}</h2><p>{facts['tasks']} tasks of {facts['datasets']} data sets, "
        f"{html.escape(str(facts['configurations']))} configurations each; metrics: "
        f"{html.escape(', '.join(facts['metrics']))}. A data set is left out with all of its tasks. "
        f"The grid, whose best is regret 0, costs {facts['trainings']:,.0f} trainings{epochs}{cost} for each task.</p>"
        f"{''.join(made)}{''.join(pictures)}"
    )


def _body(results: Results, overview: str, parts: list[str], command: str) -> str:
    gone = {**{f"suite {key}": why for key, why in results["left_out"].items()}, **results["missing"]}
    missing = "".join(f"<li>{html.escape(name)} is left out: {html.escape(why)}</li>" for name, why in gone.items())
    return f"""<h1>Hyperparameters predicted from a few runs, against searches</h1>
{note(results)}
<p>Every configuration of each task was trained once; searches are replayed on these tables, choosing by validation
score. The predictor and the other methods that transfer know tables of other data sets alone. A failed training is
worth what knowing nothing is worth.</p>
{f"<ul>{missing}</ul>" if missing else ""}
{aims(results["verdicts"])}
{overview}
{"".join(parts)}
{origin(results, command)}"""


_table = functools.partial(results_table, pairs=False)


def _keyed(results: Results) -> Results:
    """With runs as numbers, also where they come from JSON."""
    made = dict(results)
    made["summaries"] = [
        {
            key: {int(k): _float(v) for k, v in value.items()} if isinstance(value, Mapping) else value
            for key, value in each.items()
        }
        for each in results["summaries"]
    ]
    return made


def _looks(results: Results, name: str) -> list[int]:
    return list(_of(results, name)[0]["found"])


def _of(results: Results, name: str) -> list[dict[str, Any]]:
    return [each for each in results["summaries"] if each["suite"] == name]


def _known(values: Any) -> list[float]:
    return [_float(value) for value in values]


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _with_half(mean: float, half: float) -> str:
    return f"{mean:.3f} ± {half:.3f}" if math.isfinite(half) else f"{mean:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"
