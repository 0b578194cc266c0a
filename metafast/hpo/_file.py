"""Predictors on disk: safetensors, with names, scales and settings beside the tensors, checked before use."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from metafast._files import Kind
from metafast.hpo._encode import Axis
from metafast.hpo._known import Family, Known
from metafast.hpo._scores import Scores
from metafast.hpo._surrogate import Settings, Surrogate

KIND = Kind(
    "metafast.hpo.Predictor",
    1,
    "predictor",
    where="the shipped one is Predictor.load('default')",
    maker="Predictor.save",
    anew="make it anew with `metafast hpo fit`",
)
_PARTS = ("fractions", "curves", "costs")


def write(surrogate: Surrogate, record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the file, whole or not at all."""
    tensors: dict[str, np.ndarray] = {}
    families = []
    for number, family in enumerate(surrogate.families):
        tensors[f"{number}.codes"] = family.codes
        for row, task in enumerate(family.tasks):
            for name in _PARTS:
                tensors[f"{number}.{row}.{name}"] = getattr(task, name)
        axes = {name: asdict(axis) for name, axis in family.axes.items()}
        families.append({"axes": axes, "tasks": [_described(task) for task in family.tasks]})
    tensors = {name: np.ascontiguousarray(part) for name, part in tensors.items()}  # else they are written wrongly
    about = {
        "settings": asdict(surrogate.settings),
        "families": families,
        "record": dict(record),
        "checksum": checksum(tensors),
    }
    KIND.write(save_file, tensors, about, path)


def read(path: str | os.PathLike[str]) -> tuple[Surrogate, dict[str, Any]]:
    """Reads and checks a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, of another version, or incomplete.
    """
    about, tensors = KIND.read(path, "np")
    if about.get("checksum") != checksum(tensors):
        raise ValueError(f"{path} is damaged: its tensors do not have the checksum that was written with them")
    try:
        settings = Settings(**{**about["settings"], "novelties": tuple(about["settings"]["novelties"])})
        families = [_family(number, described, tensors) for number, described in enumerate(about["families"])]
        return Surrogate(families, settings), dict(about["record"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is incomplete: {error!r}") from error


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of all tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()


def _described(task: Known) -> dict[str, Any]:
    return {
        "name": task.name,
        "dataset": task.dataset,
        "scores": asdict(task.scores),
        "centre": task.centre,
        "spread": task.spread,
        "reference": _plain(task.reference),
        "cost": _plain(task.cost),
        "features": {name: float(value) for name, value in task.features.items()},
    }


def _family(number: int, described: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Family:
    axes = {name: Axis(**axis) for name, axis in described["axes"].items()}
    family = Family(axes, tensors[f"{number}.codes"])
    for row, task in enumerate(described["tasks"]):
        told: dict[str, Any] = {name: math.nan if task[name] is None else task[name] for name in ("reference", "cost")}
        told.update({name: task[name] for name in ("name", "dataset", "centre", "spread", "features")})
        told.update({name: tensors[f"{number}.{row}.{name}"] for name in _PARTS})
        family.tasks.append(Known(scores=Scores(**task["scores"]), **told))
    return family


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else number
