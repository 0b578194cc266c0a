"""The table, the plots and the HTML report of `metafast demo`."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from metafast import plots
from metafast._page import facts_table, page, picture, write_text
from metafast.cli._demo_train import GRANULARITY, METHODS, RATES, SETUPS, splits
from metafast.runs import Run, versions

Row = dict[str, Any]
POINT = 0.01
HEADS = {"fixed": "fixed\nrate", "hypergradient": "hyper-\ngradient", "cosine": "cosine\nschedule"}


def table(name: str, rows: list[Row]) -> Table:
    """The results of one data set for the terminal."""
    threshold = f"{100 * SETUPS[name].threshold:.0f} %"
    made = Table(
        title=f"{SETUPS[name].title}, AdamW: test accuracy in %, steps until {threshold} on validation",
        title_justify="left",
    )
    made.add_column("starting\nrate", justify="right", no_wrap=True)
    for method in METHODS:
        made.add_column(HEADS[method], justify="right", no_wrap=True)
        made.add_column(f"steps to\n{threshold}", justify="right", style="dim")
    good = {(row["method"], row["rate"]) for row in rows if row["test_accuracy"] >= best_fixed(rows) - POINT}
    cells = {(row["method"], row["rate"]): row for row in rows}
    for rate in RATES:
        line = [_plain(rate)]
        for method in METHODS:
            row = cells[method, rate]
            value = f"{100 * row['test_accuracy']:.1f}"
            line += [f"[bold green]{value}[/]" if (method, rate) in good else value, _steps(row)]
        made.add_row(*line)
    made.add_section()
    line = ["ms per step"]
    for method in METHODS:
        line += [f"{milliseconds(rows, method):.2f}", ""]
    made.add_row(*line)
    return made


def summary(name: str, rows: list[Row]) -> str:
    """What the rows of one data set say, in sentences made from their numbers."""
    rows = [row for row in rows if row["data"] == name]
    limit = best_fixed(rows) - POINT
    counts = {method: sum(r["test_accuracy"] >= limit for r in rows if r["method"] == method) for method in METHODS}
    top = max(row["test_accuracy"] for row in rows)
    winners = {m: [r["rate"] for r in rows if r["method"] == m and r["test_accuracy"] == top] for m in METHODS}
    best = " and of ".join(f"{METHODS[m]} from {_listed(rates)}" for m, rates in winners.items() if rates)
    reach = {
        method: [100 * end(r["test_accuracy"] for r in rows if r["method"] == method) for end in (min, max)]
        for method in METHODS
    }
    text = (
        f"From the worst to the best of {len(RATES)} starting rates, the test accuracy is "
        f"{reach['hypergradient'][0]:.1f} to {reach['hypergradient'][1]:.1f} % with the hypergradient, "
        f"{reach['fixed'][0]:.1f} to {reach['fixed'][1]:.1f} % with a fixed rate, "
        f"and {reach['cosine'][0]:.1f} to {reach['cosine'][1]:.1f} % with the cosine schedule. "
        f"Within 1 point of the best fixed rate ({100 * best_fixed(rows):.1f} %): "
        f"{counts['hypergradient']} of {len(RATES)} with the hypergradient, "
        f"{counts['fixed']} with a fixed rate, {counts['cosine']} with the cosine schedule. "
        f"The best accuracy, {100 * top:.1f} %, is that of {best}."
    )
    lost = [
        row["rate"] for row in rows if row["method"] == "hypergradient" and row["test_accuracy"] < limit - 4 * POINT
    ]
    if lost:
        text += (
            f" Starting from {_listed(lost)} the hypergradient run ends more than 5 points below the best fixed rate."
        )
    return text


def best_fixed(rows: list[Row]) -> float:
    """The best test accuracy that a fixed rate reached."""
    return max(float(row["test_accuracy"]) for row in rows if row["method"] == "fixed")


def milliseconds(rows: list[Row], method: str) -> float:
    """The median over the starting rates."""
    values = sorted(row["ms_per_step"] for row in rows if row["method"] == method)
    return float(values[len(values) // 2])


def write(
    output: Path, session: Path, settings: Mapping[str, Any], runs: Mapping[str, Run], rows: list[Row], seconds: float
) -> list[Path]:
    """Plots, `results.json` and `report.html`; the report comes first in the list."""
    files: list[Path] = []
    pictures: dict[str, list[tuple[Path, str]]] = {}
    for name in settings["data"]:
        pictures[name] = []
        for stem, figure, caption in _figures(name, runs, rows):
            written = plots.save(figure, output / f"{name}_{stem}")
            files += written
            pictures[name].append((written[1], caption))
    facts = {"settings": dict(settings), "granularity": GRANULARITY, "versions": versions(), "results": rows}
    results = output / "results.json"
    write_text(results, json.dumps(facts, indent=2) + "\n")
    report = output / "report.html"
    write_text(report, _html(output, session, settings, pictures, rows, seconds))
    return [report, results, *files]


def _figures(name: str, runs: Mapping[str, Run], rows: list[Row]) -> list[tuple[str, Any, str]]:
    title = SETUPS[name].title

    def panels(curve: Any) -> dict[str, dict[str, Any]]:
        return {
            text: {_power(rate): curve(runs[f"{name}-{method}-{rate:g}"]) for rate in RATES}
            for method, text in METHODS.items()
        }

    def rates(run: Run) -> list[tuple[int, list[float]]]:
        logged = [(row["step"], row["rates"]) for row in run.rows() if row["kind"] == "metrics" and "rates" in row]
        return [(0, [run.config["rate"]] * len(logged[0][1])), *logged]

    by_rate = {
        text: {row["rate"]: row["test_accuracy"] for row in rows if (row["data"], row["method"]) == (name, method)}
        for method, text in METHODS.items()
    }
    return [
        (
            "accuracy",
            plots.accuracy_by_rate(
                by_rate, title=f"{title}: the flatter, the less tuning", line_of=METHODS["fixed"], zoom=10
            ),
            "Test accuracy at the end against the starting learning rate. The dashed line is one point below the best "
            "fixed rate; what is on it or above did as well as a rate found by trying seven.",
        ),
        (
            "loss",
            plots.loss_curves(
                panels(lambda run: run),
                title=f"{title}: training loss",
                top=2 * math.log(SETUPS[name].classes),
                legend_title="starting rate",
                ordered=True,
            ),
            "Training loss, each point the mean since the one before. Lines that stay on top have learned nothing; "
            "losses beyond the axis are cut off.",
        ),
        (
            "rate",
            plots.learning_rates(
                panels(rates), title=f"{title}: learning rate", legend_title="starting rate", ordered=True
            ),
            "The learning rate in use, from the starting rate at step 0. The hypergradient moves it while the network "
            "trains, and one that is far too large is lowered before the first step.",
        ),
    ]


def _html(
    output: Path,
    session: Path,
    settings: Mapping[str, Any],
    pictures: Mapping[str, list[tuple[Path, str]]],
    rows: list[Row],
    seconds: float,
) -> str:
    body = []
    for name in settings["data"]:
        mine = [row for row in rows if row["data"] == name]
        setup, parts = SETUPS[name], splits(name, settings["seed"])
        sizes = [len(part.labels) for part in parts]
        subset = (
            f" (a subset: the complete set has {setup.total:,} training images)" if sum(sizes[:2]) < setup.total else ""
        )
        best = best_fixed(mine)
        error = 100 * math.sqrt(best * (1 - best) / sizes[2])
        body.append(f"<h2>{html.escape(setup.title)}</h2>")
        body.append(f'<p class="lead">{html.escape(summary(name, rows))}</p>')
        body.append(
            f"<p>{sizes[0]:,} images to learn from, {sizes[1]:,} to validate on, {sizes[2]:,} to test on{subset}; "
            f"{mine[0]['steps']:,} steps of {setup.batch_size} images. One seed: read a difference below about "
            f"{2 * error:.1f} points (two standard errors on the test images) as no difference.</p>"
        )
        body += [picture(file, caption) for file, caption in pictures[name]]
        body.append(_html_table(name, mine))
    flags = " ".join(
        [f"--seed {settings['seed']}"]
        + ["--quick"] * bool(settings["quick"])
        + [f"--data {settings['data'][0]}"] * (len(settings["data"]) == 1)
    )
    quick = (
        '<p class="note">Made with <code>--quick</code>: a fifth of the training. It shows that everything works; '
        "the numbers are no result.</p>"
        if settings["quick"]
        else ""
    )
    return page(
        "metafast demo",
        f"""<h1>How much does the starting learning rate matter?</h1>
<p>The same small CNN, the same initial weights and the same batches, trained from {len(RATES)} starting learning rates
between {_plain(RATES[0])} and {_plain(RATES[-1])} in three ways: AdamW with a <strong>fixed</strong> rate; AdamW with a
<strong>hypergradient</strong>, which adapts the rate while it trains
(<code>metafast.optim.AdamW(..., hypergrad="{GRANULARITY}")</code>, defaults otherwise); and AdamW with a
<strong>cosine schedule</strong> from the starting rate to zero.</p>
{quick}
{"".join(body)}
<h2>What this shows, and what it does not</h2>
<ul>
<li>The question is robustness: how much a poor starting rate costs. It is not whether a hypergradient beats a fixed
rate or a schedule whose rate was tuned: for that, compare the best entries of the columns.</li>
<li>A starting rate that is far too large can wreck the weights within the first steps. The rows for large rates show
whether a method escaped that here.</li>
<li>Test images were used once, at the end of each run.
Steps to the threshold are counted on the validation images.</li>
<li>Small networks, one seed, one machine.
<code>benchmarks/convergence</code> has more data sets, models and seeds.</li>
<li>Milliseconds per step are the CPU time of forward pass, backward pass and optimizer on one thread;
<code>benchmarks/throughput</code> measures the optimizers properly.</li>
</ul>
<h2>How it was made</h2>
<p>Took {seconds:.0f} s. To repeat it: <code>metafast demo {html.escape(flags)}</code>. Every training is a run record
in <code>{html.escape(os.path.relpath(session, output))}</code>:
<code>metafast.runs.list_runs("{html.escape(str(session))}")</code>.</p>
{facts_table(versions())}""",
    )


def _html_table(name: str, rows: list[Row]) -> str:
    threshold = f"{100 * SETUPS[name].threshold:.0f} %"
    limit = best_fixed(rows) - POINT
    cells = {(row["method"], row["rate"]): row for row in rows}
    heads = "".join(f'<th colspan="2">{html.escape(text)}</th>' for text in METHODS.values())
    subheads = f"<th>accuracy</th><th>steps to {threshold}</th>" * len(METHODS)
    lines = []
    for rate in RATES:
        line = f"<th>10<sup>{_exponent(rate)}</sup></th>".replace("-", "−")
        for method in METHODS:
            row = cells[method, rate]
            mark = ' class="good"' if row["test_accuracy"] >= limit else ""
            line += f"<td{mark}>{100 * row['test_accuracy']:.1f}</td><td>{_steps(row)}</td>"
        lines.append(f"<tr>{line}</tr>")
    times = "".join(f"<td>{milliseconds(rows, method):.2f}</td><td></td>" for method in METHODS)
    return (
        f'<div class="wide"><table class="results"><caption>Test accuracy in %, and steps until {threshold} on the '
        "validation images (– : never). Green: within one point of the best fixed rate.</caption>"
        f'<thead><tr><th rowspan="2">starting rate</th>{heads}</tr><tr>{subheads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody><tfoot><tr><th>CPU ms per step</th>{times}</tr></tfoot></table></div>"
    )


def _steps(row: Row) -> str:
    return "–" if row["steps_to_threshold"] is None else str(row["steps_to_threshold"])


def _exponent(rate: float) -> int:
    return round(math.log10(rate))


def _power(rate: float) -> str:
    return f"$10^{{{_exponent(rate)}}}$"


def _plain(rate: float) -> str:
    return "1" if rate == 1 else f"1e{_exponent(rate)}"


def _listed(rates: list[float]) -> str:
    texts = [_plain(rate) for rate in rates]
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]
