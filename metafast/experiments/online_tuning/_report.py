"""The table, the plots and the HTML report."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from metafast import plots
from metafast._page import picture
from metafast.experiments._report import aims, note, origin, results_table, write_report
from metafast.experiments.online_tuning._plan import METHODS
from metafast.experiments.online_tuning._recipes import FEEDBACK
from metafast.experiments.online_tuning._train import Training, tuned_of
from metafast.runs import Run

Results = Mapping[str, Any]
NAMES = {"accuracy": "accuracy (%)", "f1": "macro F1 (%)", "mae": "MAE", "rmse": "RMSE"}
POINTS = {"static": "static", "batch": "adaptive, by batches", "epoch": "adaptive, by epochs"}
COURSES = {"random": "random search", "grid": "grid"}


def table(results: Results, name: str) -> Table:
    """One experiment for the terminal."""
    facts = results["experiments"][name]
    made = Table(title=f"{facts['title']}, test data, mean of {results['seeds']} seeds", title_justify="left")
    made.add_column("method")
    for metric in facts["metrics"]:
        made.add_column(NAMES[metric], justify="right")
    made.add_column("cost", justify="right")
    made.add_column("CPU s", justify="right")
    for each in _of(results, name):
        cells = [_number(metric, each["mean"][metric]) for metric in facts["metrics"]]
        made.add_row(METHODS[each["method"]], *cells, f"{each['cost']:.2f}", f"{each['seconds']:.0f}")
    if facts["reference"]:
        cells = [_number(metric, facts["reference"][metric]) for metric in facts["metrics"]]
        made.add_row("seasonal naive", *cells, "0", "0")
    return made


def cost_figure(results: Results) -> Any:
    """Every experiment's first metric against cost."""
    panels = {}
    for name, facts in results["experiments"].items():
        metric = facts["metrics"][0]
        rows = {
            method: [
                row[f"test_{metric}"] for row in results["rows"] if (row["experiment"], row["method"]) == (name, method)
            ]
            for method in POINTS
        }
        costs = {each["method"]: each["cost"] for each in _of(results, name)}
        courses = {}
        for method, label in COURSES.items():
            trials = facts["searches"][method]
            courses[label] = (
                [trial["gradients"] / facts["static_gradients"] for trial in trials],
                [trial[f"test_{metric}"] for trial in trials],
            )
        panels[facts["title"]] = plots.CostPanel(
            {label: (costs[method], rows[method]) for method, label in POINTS.items()},
            courses,
            {"seasonal naive": facts["reference"][metric]} if facts["reference"] else {},
            NAMES[metric] + (", higher is better" if facts["better"] == "higher" else ", lower is better"),
        )
    return plots.metric_by_cost(panels)


def write(
    results: Results, first: Mapping[str, Mapping[str | None, Training]], output: Path, command: str
) -> list[Path]:
    """Plots, `results.json` and `report.html`; the report comes first in the list.

    Args:
        results: from `results`.
        first: experiment to kind of feedback to the training whose course is drawn.
        output: the folder.
        command: to repeat it.
    """
    files = plots.save(cost_figure(results), output / "cost")
    overview = picture(
        files[-1],
        "Test result against cost, in trainings with static hyperparameters. Points: mean and range over the seeds. "
        "Steps: what a search would hand over if it ended there, chosen on validation data (one seed).",
    )
    parts = []
    for name in results["experiments"]:
        pictures = []
        for stem, figure, caption in _figures(results["experiments"][name]["title"], output, first[name]):
            written = plots.save(figure, output / f"{name}_{stem}")
            files += written
            pictures.append(picture(written[1], caption))
        parts.append(_section(results, name, pictures))
    body = _body(results, overview, parts, command)
    return [*write_report(results, "metafast run online-tuning", body, output), *files]


def _figures(title: str, output: Path, first: Mapping[str | None, Training]) -> list[tuple[str, Any, str]]:
    runs = {feedback: Run.open(output / "runs" / training.name) for feedback, training in first.items()}
    labels = {None: "static", "batch": POINTS["batch"], "epoch": POINTS["epoch"]}
    made = [
        (
            "validation",
            plots.loss_curves(
                {labels[feedback]: run for feedback, run in runs.items()},
                metric="val_loss",
                title=title,
                ylabel="validation loss",
            ),
            "Loss on all validation data after each epoch (first seed): hyperparameters that stay, and tuned ones.",
        )
    ]
    for feedback in FEEDBACK:
        state, validation = tuned_of(runs[feedback])
        made.append(
            (
                f"tuned_{feedback}",
                plots.hyperparameter_trajectories(state, validation, title=f"{title}: {POINTS[feedback]}"),
                f"What became of each hyperparameter with feedback by {feedback} (first seed), and the validation "
                "losses that moved them.",
            )
        )
    return made


def _of(results: Results, name: str) -> list[dict[str, Any]]:
    return [each for each in results["summaries"] if each["experiment"] == name]


def _number(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric in ("accuracy", "f1") else f"{value:.4f}"


def _section(results: Results, name: str, pictures: list[str]) -> str:
    facts = results["experiments"][name]
    setup = results["settings"]["setups"][name]
    examples = facts["examples"]
    static = ", ".join(f"{key} {value:g}" for key, value in setup["static"].items())
    rows = []
    for each in _of(results, name):
        cells = []
        for metric in facts["metrics"]:
            mean, low, high = (_number(metric, each[key][metric]) for key in ("mean", "low", "high"))
            cells += [mean, f"{low} – {high}"]
        values = ", ".join(f"{key} {value:g}" for key, value in each["values"].items())
        start = "from " if each["method"] in FEEDBACK else ""
        cells += [f"{each['cost']:.2f}", f"{each['seconds']:.0f}", str(each["trials"] or ""), start + values]
        rows.append((METHODS[each["method"]], cells))
    if facts["reference"]:
        cells = [cell for metric in facts["metrics"] for cell in (_number(metric, facts["reference"][metric]), "")]
        rows.append(("seasonal naive forecast", [*cells, "0", "0", "", ""]))
    heads = ["method", *(head for metric in facts["metrics"] for head in (NAMES[metric], "range"))]
    made = results_table(
        f"Test data: mean and range over {results['seeds']} seeds. Cost: examples whose gradient was computed, in "
        "static trainings, with all trials of a search; CPU seconds likewise. A search chooses by validation data with "
        "one seed; its choice is then trained with all.",
        [*heads, "cost", "CPU s", "trials", "hyperparameters"],
        rows,
    )
    return (
        f"<h2>{html.escape(facts['title'])}</h2>"
        f"<p>Data set <code>{html.escape(setup['data'])}</code>: {examples['train']:,} examples to learn from, "
        f"{examples['val']:,} to tune and choose on, {examples['test']:,} to test on, once per training. "
        f"{setup['epochs']} epochs of batches of {setup['batch_size']}; static: {html.escape(static)}; model: "
        f"{html.escape(', '.join(f'{key} {value}' for key, value in setup['model'].items()))}.</p>"
        f"{made}{''.join(pictures)}"
    )


def _body(results: Results, overview: str, parts: list[str], command: str) -> str:
    return f"""<h1>Hyperparameters tuned while training, against static ones and searches</h1>
{note(results)}
<p>Each model is trained with published hyperparameters that stay; with the same as a start and
<code>metafast.tune.OnlineTuner</code> moving them by the gradient of the validation loss; and with what a random search
and a grid choose. The tuner's own settings were chosen on validation data.</p>
{aims(results["verdicts"])}
{overview}
{"".join(parts)}
{origin(results, command)}"""
