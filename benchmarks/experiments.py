"""What `metafast run` found, as a committed result: numbers with machine and commit, and figures.

python -m benchmarks.experiments online-tuning FOLDER    writes benchmarks/results/online_tuning.json and .png
python -m benchmarks.experiments lr-adaptation FOLDER    writes benchmarks/results/lr_adaptation.json and pictures
python -m benchmarks.experiments hp-prediction FOLDER    writes benchmarks/results/hp_prediction.json and pictures
python -m benchmarks.experiments rapid-adaptation FOLDER    writes benchmarks/results/rapid_adaptation.json and pictures
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance, write_results
from metafast import plots
from metafast.experiments.online_tuning import cost_figure


def _online_tuning(found: dict[str, Any], folder: Path, stem: Path) -> list[Path]:
    picture, vector = plots.save(cost_figure(found), stem)
    vector.unlink()
    return [picture]


def _lr_adaptation(found: dict[str, Any], folder: Path, stem: Path) -> list[Path]:
    """The command's own pictures: every sweep, and the rates of the layers of one pair."""
    made = []
    wanted = [(each["pair"], "sweep") for each in found["sweeps"]] + [("cifar10/resnet18", "layers")]
    for pair, kind in wanted:
        source = folder / f"{pair.replace('/', '-')}_{kind}.png"
        if source.exists():
            made.append(stem.with_name(f"{stem.name}_{source.name}"))
            shutil.copyfile(source, made[-1])
    return made


def _hp_prediction(found: dict[str, Any], folder: Path, stem: Path) -> list[Path]:
    """The command's own pictures: regret on all suites, and shares and calibration of the first."""
    names = ["regret", *(f"{next(iter(found['suites']))}_{kind}" for kind in ("shares", "calibration"))]
    made = []
    for name in names:
        source = folder / f"{name}.png"
        if source.exists():
            made.append(stem.with_name(f"{stem.name}_{name}.png"))
            shutil.copyfile(source, made[-1])
    return made


def _rapid_adaptation(found: dict[str, Any], folder: Path, stem: Path) -> list[Path]:
    """The command's own pictures: accuracy, course and time of each data set."""
    made = []
    for name in found["settings_done"]:
        for kind in ("accuracy", "course", "time"):
            made.append(stem.with_name(f"{stem.name}_{name}_{kind}.png"))
            shutil.copyfile(folder / f"{name}_{kind}.png", made[-1])
    return made


def _mean_regrets(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Task to method to the mean regret over seeds at each look, as one text: thousands of searches fit a file."""
    groups: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["method"]), []).append(row["found"])
    made: dict[str, dict[str, str]] = {}
    for (task, method), found in groups.items():
        means = [sum(column) / len(column) for column in zip(*found, strict=True)]
        made.setdefault(task, {})[method] = " ".join(f"{mean:.4f}" for mean in means)
    return made


PICTURES = {
    "online-tuning": _online_tuning,
    "lr-adaptation": _lr_adaptation,
    "hp-prediction": _hp_prediction,
    "rapid-adaptation": _rapid_adaptation,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=PICTURES)
    parser.add_argument("folder", type=Path, help="the --output of the command")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder")
    options = parser.parse_args(argv)
    found = json.loads((options.folder / "results.json").read_text(encoding="utf-8"))
    if options.experiment == "hp-prediction":
        found["tasks"] = _mean_regrets(found.pop("rows"))
        for facts in found["suites"].values():
            facts.pop("points")
    for row in [*found.get("rows", []), *found.get("sweep_rows", [])]:
        row.pop("looks", None)  # curves stay in the run records: they would be most of the file
    name = options.experiment.replace("-", "_")
    stem = options.output / name
    write_results(stem.with_suffix(".json"), {**provenance(name), **found})
    for file in [stem.with_suffix(".json"), *PICTURES[options.experiment](found, options.folder, stem)]:
        print(file)
    for verdict in found["verdicts"]:
        print(verdict["line"])


if __name__ == "__main__":
    main()
