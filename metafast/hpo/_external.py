"""Searches that others have made and published: TaskSet's Adam8p and the SVM set, as tasks to learn from."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from metafast._dimensions import Choice, FloatRange
from metafast.hpo._conditions import when
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask

_POINTS = (1, 2, 4, 8, 15, 25, 38, 50)  # of TaskSet's 51, the first of which is before any step
_ADAM8P = {
    "learning_rate": (1e-8, 10.0),
    "beta1": (0.0, 0.9999),
    "beta2": (0.0, 0.999999),
    "epsilon": (1e-10, 1e3),
    "l1": (1e-8, 10.0),
    "l2": (1e-8, 10.0),
    "linear_decay": (1e-7, 1e-4),
    "exponential_decay": (1e-6, 1e-3),
}
_KERNELS = ("linear", "polynomial", "rbf")
_META = 22


def taskset_tasks(path: str | os.PathLike[str] | None = None, scores: str = "valid") -> list[MetaTask]:
    """The eight tasks of TaskSet with 1,000 settings of Adam each: recurrent networks that classify texts of IMDB.

    All eight are of one data set, so that each is a `dataset` of its own here: they are left out one by one.

    Args:
        path: a Parquet file or its folder. Default: where `metafast.data.load` looks.
        scores: "train", "valid" or "test": of which part the losses are. Default "valid".

    Raises:
        DatasetNotFoundError: it is nowhere.
        ValueError: scores of another part.

    Source:
        L. Metz et al., Using a thousand optimization tasks to learn hyperparameter search strategies, 2020.
    """
    if scores not in ("train", "valid", "test"):
        raise ValueError(f'scores must be "train", "valid" or "test", got {scores!r}')
    columns = _columns("taskset_adam8p", path)
    space = Space({name: FloatRange(*ends, log=not name.startswith("beta")) for name, ends in _ADAM8P.items()})
    fractions = np.array(_POINTS) / _POINTS[-1]
    tasks = []
    for name, rows in _groups(columns["task"]).items():
        curves = np.array([columns[f"{scores}_loss"][row] for row in rows], float)[:, _POINTS]
        configs: list[Config] = [{key: columns[key][row] for key in _ADAM8P} for row in rows]
        words = name.removeprefix("FixedTextRNNClassification_imdb_").split("_")
        size = int("".join(c for c in words[1] if c.isdigit()))
        features = {
            "modality_text": 1.0,
            "log10_classes": math.log10(2),
            "log10_length": math.log10(int(words[0].removeprefix("patch"))),
            "log10_width": math.log10(size),
            "gated": float(words[1].startswith(("LSTM", "GRU"))),
            "averaged": float("avg" in words),
        }
        unknown = np.full(len(rows), math.nan)
        tasks.append(
            MetaTask(
                f"taskset/{name}", f"taskset/{name}", space, configs, curves, fractions, unknown, "loss", "minimize",
                math.log(2), features,
            )
        )  # fmt: skip
    return tasks


def svm_tasks(path: str | os.PathLike[str] | None = None) -> list[MetaTask]:
    """Support vector machines on 40 data sets, 288 settings each: accuracy, kernel, C, and gamma or degree.

    The features are the 22 of the source, whose names it does not give.

    Args:
        path: a Parquet file or its folder. Default: where `metafast.data.load` looks.

    Raises:
        DatasetNotFoundError: it is nowhere.

    Source:
        M. Wistuba, N. Schilling, L. Schmidt-Thieme, Two-stage transfer surrogate model, ECML 2016.
    """
    columns = _columns("tst_svm", path)
    space = Space(
        kernel=Choice(_KERNELS),
        C=FloatRange(2.0**-5, 2.0**6, log=True),
        gamma=FloatRange(1e-4, 1e3, log=True),
        degree=Choice([2, 3, 4, 5, 6, 7, 8, 9, 10]),
        conditions=[when("kernel", "rbf", "gamma"), when("kernel", "polynomial", "degree")],
    )
    tasks = []
    for name, rows in _groups(columns["dataset"]).items():
        configs = [_svm_config({key: columns[key][row] for key in columns}) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: sorted((k, str(v)) for k, v in configs[row].items()))
        accuracy = np.array([[columns["accuracy"][rows[row]]] for row in order], float)
        features = {f"meta_{number:02d}": float(columns[f"meta_{number:02d}"][rows[0]]) for number in range(_META)}
        unknown = np.full(len(rows), math.nan)
        tasks.append(
            MetaTask(
                f"svm/{name}", f"svm/{name}", space, [configs[row] for row in order], accuracy, np.ones(1), unknown,
                features=features,
            )
        )  # fmt: skip
    return tasks


def _svm_config(row: dict[str, Any]) -> Config:
    kernel = str(row["kernel"])
    config: Config = {"kernel": kernel, "C": float(f"{2.0 ** (6 * row['c_scaled']):.6g}")}
    if kernel == "rbf":
        config["gamma"] = float(f"{10.0 ** (4 * row['gamma_scaled']):.4g}")
    elif kernel == "polynomial":
        config["degree"] = round(10.0 ** row["degree_scaled"])
    return config


def _columns(name: str, path: str | os.PathLike[str] | None) -> dict[str, list[Any]]:
    from metafast.data import load

    table: dict[str, list[Any]] = load(name, "train", Path(path) if path is not None else None).to_dict()
    return table


def _groups(column: list[Any]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for row, value in enumerate(column):
        groups.setdefault(value, []).append(row)
    return groups
