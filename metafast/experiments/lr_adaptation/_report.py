"""The tables, the plots and the HTML report."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from metafast import plots
from metafast._page import facts_table, picture
from metafast.experiments._report import aims, note, origin, results_table, write_report
from metafast.experiments.lr_adaptation._controller import NEVER
from metafast.experiments.lr_adaptation._methods import METHODS
from metafast.experiments.lr_adaptation._recipes import ADAPTED, HELD_OUT
from metafast.experiments.lr_adaptation._train import history_of, labels_of_rates
from metafast.experiments.lr_adaptation._verdicts import MEASURES
from metafast.runs import Run

Results = Mapping[str, Any]
Rows = list[tuple[str, list[str]]]
# as many as there are colours; grid and cosine are the same methods from another rate
DRAWN = ("fixed", "cosine_tuned", "hypergradient", "schedule_free", "prodigy", "controller", "adapted")
STARTS = {"fixed": "fixed rate", "controller": "controller"}
_HEADS = ["method", "accuracy %", "precision", "recall", "F1", "steps to threshold", "epochs", "CPU s", "overhead %",
          "CPU s before", "from rate", "final rate", "watchdog"]  # fmt: skip
_SHORT = ("method", "accuracy %", "F1", "steps to threshold", "CPU s", "overhead %")  # what fits into a terminal


def table(results: Results, name: str) -> Table:
    """One pair for the terminal."""
    heads, rows = _table_of(results, name)
    shown = [at for at, head in enumerate(heads) if heads != _HEADS or head in _SHORT]
    made = Table(title=_caption(results, name), title_justify="left")
    for at in shown:
        made.add_column(heads[at], justify="right" if at else "left")
    for label, cells in rows:
        made.add_row(*([label, *cells][at] for at in shown))
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
    for name in results["pairs"]:
        pictures = []
        for stem, figure, caption in _figures(results, name, output / "runs"):
            written = plots.save(figure, output / f"{name.replace('/', '-')}_{stem}")
            files += written
            pictures.append(picture(written[1], caption))
        parts.append(_section(results, name, pictures))
    body = _body(results, parts, command)
    return [*write_report(results, "metafast run lr-adaptation", body, output), *files]


def _figures(results: Results, name: str, root: Path) -> list[tuple[str, Any, str]]:
    facts = results["pairs"][name]
    sweep = _sweep(results, name)
    if sweep:
        lines = {label: {rate: value / 100 for rate, value in sweep["accuracy"][key]} for key, label in STARTS.items()}
        drawn = plots.accuracy_by_rate(lines, title=facts["title"], line_of=STARTS["fixed"])
        return [("sweep", drawn, "Test accuracy against the rate where the training started, mean over the seeds.")]
    losses, rates = {}, {}
    for method in DRAWN:
        names = [row["training"] for row in results["rows"] if (row["pair"], row["method"]) == (name, method)]
        if names:
            runs = [Run.open(root / each) for each in names]
            losses[METHODS[method]] = _mean_loss(runs)
            rates[METHODS[method]] = history_of(runs[0])
    layers = Run.open(root / facts["layers"])
    highest = float(np.nanmax(losses[METHODS["fixed"]][1]))
    return [
        (
            "loss",
            plots.loss_curves(losses, title=facts["title"], top=1.5 * highest if math.isfinite(highest) else None),
            "Training loss, mean over the seeds. Grid and untuned cosine are left out.",
        ),
        (
            "rates",
            plots.learning_rates(rates, title=facts["title"], ylabel="effective learning rate"),
            "Effective learning rates of the first seed. The averaging of schedule-free AdamW is not in its rate.",
        ),
        (
            "layers",
            plots.rate_heatmap(history_of(layers), labels_of_rates(layers), title=facts["title"]),
            "What the controller does where each tensor has a rate of its own (first seed; test accuracy "
            f"{facts['layers_accuracy']:.1f} %).",
        ),
    ]


def _mean_loss(runs: list[Run]) -> tuple[NDArray[Any], NDArray[Any]]:
    curves = [run.curve("loss") for run in runs]
    return curves[0].steps, np.mean([curve.values for curve in curves], axis=0)


def _sweep(results: Results, name: str) -> dict[str, Any] | None:
    return next((each for each in results["sweeps"] if each["pair"] == name), None)


def _table_of(results: Results, name: str) -> tuple[list[str], Rows]:
    sweep = _sweep(results, name)
    if sweep:
        rates = [rate for rate, _ in sweep["accuracy"]["fixed"]]
        rows = [
            (
                label,
                [*(f"{value:.1f}" for _, value in sweep["accuracy"][key]), f"{sweep['within'][key]} of {len(rates)}"],
            )
            for key, label in STARTS.items()
        ]
        return ["from rate", *(f"{rate:g}" for rate in rates), "within a point"], rows
    return _HEADS, [(METHODS[each["method"]], _cells(each)) for each in _of(results, name)]


def _cells(each: Mapping[str, Any]) -> list[str]:
    reached = [step for step in each["to_threshold"] if step is not None]
    steps = f"{sum(reached) / len(reached):.0f}" if reached else "never"
    some = f" ({len(reached)} of {each['seeds']} seeds)" if 0 < len(reached) < each["seeds"] else ""
    return [
        *(_with_half(each["mean"][measure], each["half"][measure]) for measure in MEASURES),
        steps + some,
        "" if each["epochs"] is None else f"{each['epochs']:.2f}",
        f"{each['seconds']:.1f}",
        f"{each['overhead']:+.0f}" if each["method"] != "fixed" else "",
        f"{each['search_seconds']:.0f}" if each["search_seconds"] else "",
        f"{each['rate']:g}",
        f"{each['final_rate']:.2g}",
        str(each["events"]) if each["method"] in ("controller", "layers", "adapted") else "",
    ]


def _with_half(mean: float, half: float) -> str:
    return f"{mean:.1f} ± {half:.1f}" if math.isfinite(half) else f"{mean:.1f}"


def _caption(results: Results, name: str) -> str:
    facts = results["pairs"][name]
    seen = "" if facts["seen"] == NEVER else f" ({facts['seen']})"
    return f"{facts['title']}{seen}, test data, mean of {results['seeds']} seeds"


def _of(results: Results, name: str) -> list[dict[str, Any]]:
    return [each for each in results["summaries"] if each["pair"] == name]


def _overview(results: Results) -> str:
    """A row for each pair, a column for each method; the best of each row is marked by a star."""
    methods = [method for method in METHODS if method not in results["missing"]]
    rows: Rows = []
    for name, facts in results["pairs"].items():
        found = {each["method"]: each["mean"]["accuracy"] for each in _of(results, name)}
        if found:
            best = max(found, key=found.__getitem__)
            cells = [f"{found[method]:.1f}{' *' if method == best else ''}" for method in methods]
            rows.append((facts["title"], [*cells, facts["seen"]]))
    if not rows:
        return ""
    return results_table(
        "Test accuracy in %, mean over the seeds; * the best of its row.",
        ["", *(METHODS[method] for method in methods), "the controller's past"],
        rows,
        pairs=False,
    )


def _section(results: Results, name: str, pictures: list[str]) -> str:
    facts, setup = results["pairs"][name], results["settings"]["setups"][name]
    examples = facts["examples"]
    sizes = ", ".join(f"{key} {value}" for key, value in {**setup["sizes"], **setup["encoding"]}.items())
    heads, rows = _table_of(results, name)
    told = ""
    if "threshold" in facts:
        told = (
            f" Threshold: {100 * facts['threshold']:.1f} % of validation accuracy, 95 % of the best that Adam at 0.001 "
            f"reaches. The grid chose {facts['best_rate']:g}. The controller was adapted by 5 runs of {setup['steps']} "
            f"steps, in {facts['adaptation_seconds']:.0f} CPU seconds."
        )
    caption = (
        "Test data: mean over the seeds and, after ±, half of the 95 % confidence interval (Student's t); precision, "
        "recall and F1 are means over classes. Steps are counted to the first evaluation at the threshold. CPU seconds "
        "are those of a training's steps, overhead that of a step against Adam at 0.001, by the fastest seed; before: "
        "of all trials of the grid, or of the adaptation."
        if "threshold" in facts
        else "Test accuracy in % by starting rate, mean over the seeds; within a point of the best fixed rate, which "
        "is chosen by validation data."
    )
    return (
        f"<h2>{html.escape(facts['title'])}</h2>"
        f"<p>Data set <code>{html.escape(setup['data'])}</code> ({html.escape(facts['seen'])}): {examples['train']:,} "
        f"examples to learn from, {examples['val']:,} to choose on, {examples['test']:,} to test on, once per "
        f"training. {setup['steps']:,} steps with batches of {setup['batch_size']}; model: {html.escape(sizes)}."
        f"{told}</p>"
        f"{results_table(caption, heads, rows, pairs=False)}{''.join(pictures)}"
    )


def _held_out(results: Results) -> str:
    record = results["controller"]
    pairs = results["pairs"]
    seen = [name for name in pairs if name in HELD_OUT and not pairs[name]["held_out"]]
    checked = (
        f"These pairs are not held out and count for nothing: {', '.join(seen)}."
        if seen
        else "None of the data sets and none of the kinds of models of the held-out pairs are among them."
    )
    told = [f"{name} ({pairs[name]['seen']})" for name in pairs if pairs[name]["seen"] != NEVER]
    known = (
        f"Of all pairs here it knows something of {', '.join(told)}." if told else "It knows nothing of any pair here."
    )
    facts = {
        "learned from": ", ".join(record["meta_training"]["data"]),
        "on": ", ".join(record["meta_training"]["models"]),
        "stopped by": ", ".join(record["meta_validation"]["data"]),
    }
    return (
        f"<h2>What the controller has seen</h2><p>By its own record. {html.escape(checked)} {html.escape(known)} "
        f"Adaptation is judged on {html.escape(', '.join(ADAPTED))}, chosen beforehand.</p>{facts_table(facts)}"
    )


def _others(results: Results) -> str:
    lines = [
        f"{results['pairs'][pair]['title']}: "
        + ", ".join(f"{METHODS[method]} {points:+.1f}" for method, points in sorted(ahead.items(), key=lambda x: -x[1]))
        for pair, ahead in results["winners"].items()
    ]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>Where others win</h2><p>Points of accuracy ahead of the controller.</p><ul>{items}</ul>"


def _body(results: Results, parts: list[str], command: str) -> str:
    gaps = [*results["missing"].values(), *(f"{name} is left out: {why}" for name, why in results["left_out"].items())]
    told = "".join(f'<p class="note">{html.escape(gap)}</p>' for gap in gaps)
    return f"""<h1>A learning rate set by a meta-learner, against fixed rates, schedules and adaptive optimizers</h1>
{note(results)}
{told}
<p>Adam with batches of 32 from a rate of 0.001: fixed, with a schedule, or under
<code>metafast.schedule.LRController</code>, as shipped and adapted to the task by five runs. The best of seven
fixed rates and a cosine from it cost seven trainings before; schedule-free AdamW and Prodigy have their own rates.
Nothing was chosen on test data.</p>
{aims(results["verdicts"])}
{_overview(results)}
{_others(results)}
{_held_out(results)}
{"".join(parts)}
{origin(results, command)}"""
