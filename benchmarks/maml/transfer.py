"""Does an initialization learned on some data sets help on others? `metafast maml transfer`, over several seeds.

    python -m benchmarks.maml.transfer --seeds 0 1 2

The experiment of the command line with the data sets at hand: 5 ways, 1 shot, Adam with rate 0.001, 4 tasks of a
meta-step, 1,000 meta-steps, 10 steps of fine-tuning with rate 0.01 and with the rate that is best on validation sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.convergence.study import RESULTS
from metafast.maml.transfer import STARTS, Options, run
from metafast.metrics import steps_to_threshold

from .learning_results import Results, made_by

NAME = "transfer"
THRESHOLD = 0.9  # of the best mean accuracy on a data set after `steps`
CHOSEN = "chosen"  # the rate that is best on the validation sets
SETTINGS: dict[str, Any] = {"shots": 1, "queries": 5, "course": 20, "pretrain_steps": 1000}


def measure(seed: int, runs: Path) -> dict[str, Any]:
    """One seed of the experiment; its row of the results."""
    options = Options(seed=seed, **SETTINGS)
    output = runs / f"{NAME}-{seed}"
    report = run(options, output, resume=(output / "options.json").exists(), tell=print, progress=False)
    rows = []
    for row in report.rows:
        kept = {key: row[key] for key in ("start", "data", "inner_lr", "accuracy", "f1", "course", "seconds_per_step")}
        rates = {other["inner_lr"] for other in report.rows if other["start"] == row["start"]}
        if row["inner_lr"] == options.inner_lr:
            rows.append({**kept, "rate": str(options.inner_lr)})
        if row["inner_lr"] != options.inner_lr or len(rates) == 1:
            rows.append({**kept, "rate": CHOSEN})
    return {
        "seed": seed, "rows": rows, "data": report.data, "backbone": report.backbone,
        "device_hours": round(report.device_hours, 4), "phases": [asdict(phase) for phase in report.phases],
        "settings": asdict(options), **made_by(),
    }  # fmt: skip


def summary(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The mean over seeds of each data set, start and rate, with steps and milliseconds to a common threshold."""
    seeds = list(content["rows"].values())
    rows: list[dict[str, Any]] = []
    sets = list(dict.fromkeys(row["data"] for row in seeds[0]["rows"]))
    for first in sorted(seeds[0]["rows"], key=lambda row: sets.index(row["data"])):
        place = {key: first[key] for key in ("data", "start", "rate")}
        members = [row for seed in seeds for row in seed["rows"] if all(row[k] == v for k, v in place.items())]
        rows.append(
            {
                **place,
                "inner_lr": sorted({row["inner_lr"] for row in members}),
                "accuracy": _mean([row["accuracy"] for row in members]),
                "f1": _mean([row["f1"] for row in members]),
                "course": [_mean(points) for points in zip(*(row["course"] for row in members), strict=True)],
                "ms_per_step": 1e3 * sum(row["seconds_per_step"] for row in members) / len(members),
            }
        )
    for row in rows:
        row["threshold"] = THRESHOLD * max(other["accuracy"][0] for other in rows if other["data"] == row["data"])
        means = [mean for mean, _ in row["course"]]
        row["steps"] = steps_to_threshold(list(range(len(means))), means, row["threshold"])
    return rows


def _mean(pairs: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean of `(mean, half width)` over seeds; their episodes are the same, so that the interval does not shrink."""
    return sum(mean for mean, _ in pairs) / len(pairs), sum(half for _, half in pairs) / len(pairs)


def table(content: dict[str, Any]) -> str:
    """A row for each data set, start and rate."""
    seeds = list(content["rows"].values())
    first, settings = seeds[0], seeds[0]["settings"]
    lines = [
        f"**Transfer to unseen data sets, {settings['ways']}-way {settings['shots']}-shot, after {settings['steps']} "
        f"steps of fine-tuning** (test accuracy and macro F1, %; the threshold is {THRESHOLD:g} of the best accuracy)",
        "",
        "| data | start | rate | accuracy | macro F1 | steps to the threshold | ms to it, a task |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary(content):
        rate = row["rate"] if row["rate"] != CHOSEN else "best on validation: " + _list(row["inner_lr"])
        steps = f"> {len(row['course']) - 1}" if row["steps"] is None else row["steps"]
        time = "" if row["steps"] is None else f"{row['steps'] * row['ms_per_step']:.1f}"
        lines.append(
            f"| {row['data']} | {STARTS[row['start']]} | {rate} | {_percent(row['accuracy'])} | {_percent(row['f1'])} "
            f"| {steps} ({100 * row['threshold']:.1f} %) | {time} |"
        )
    parts = "; ".join(f"{part}: {', '.join(titles)}" for part, titles in first["data"].items())
    hours = sum(seed["device_hours"] for seed in seeds) / len(seeds)
    lines += [
        "",
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}, {settings['episodes']} test episodes each. {parts}. Backbone: "
        f"{first['backbone']}. {hours:.2f} core-hours a seed; {first['machine']['cpu']}, threads: {first['threads']}; "
        f"torch {first['machine']['torch']}; commit {_list({seed['commit'][:7] for seed in seeds})}.",
    ]
    return "\n".join(lines)


def _percent(value: Sequence[float]) -> str:
    return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values))


def plot(content: dict[str, Any], path: Path) -> None:
    """The course of fine-tuning on each data set, each start at the rate that is best for it on validation."""
    from metafast.plots import adaptation_curves

    panels: dict[str, dict[str, Any]] = {}
    for row in summary(content):
        if row["rate"] == CHOSEN:
            panels.setdefault(row["data"], {})[STARTS[row["start"]]] = row["course"]
    steps = next(iter(content["rows"].values()))["settings"]["steps"]
    adaptation_curves(panels, title="Fine-tuning on data sets never seen", trained=steps).savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/maml"), help="folder of records and checkpoints")
    parser.add_argument("--output", type=Path, default=RESULTS / f"maml_{NAME}.json", help="the plot goes beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    results = Results(args.output, NAME, {"title": "Transfer to unseen data sets", "settings": SETTINGS})
    for seed in args.seeds:
        if not results.has(NAME, seed, asdict(Options(seed=seed, **SETTINGS))):
            results.add(NAME, seed, measure(seed, args.runs))
    plot(results.content, args.output.with_suffix(".png"))
    print(table(results.content))


if __name__ == "__main__":
    main()
