"""MAML by learn2learn 0.2.0 (Arnold et al. 2020): `clone()` and `adapt()`.

Its build fails on Python 3.11, and importing the whole package needs gym; its MAML is three files of pure Python. Where
learn2learn is not installed those files are used as they are, from a source distribution that

    python -m benchmarks.peers.maml_learn2learn

downloads with pip and unpacks into build/peers.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .maml_problem import MetaGradient, Problem

VERSION = "0.2.0"
FOLDER = Path(__file__).resolve().parents[2] / "build" / "peers" / f"learn2learn-{VERSION}"
# Each module with the file that defines it; packages first, so that their __init__ does not pull the rest in.
_MODULES = {
    "learn2learn": None,
    "learn2learn.algorithms": None,
    "learn2learn.utils": "utils/__init__.py",
    "learn2learn.algorithms.base_learner": "algorithms/base_learner.py",
    "learn2learn.algorithms.maml": "algorithms/maml.py",
}


def available() -> bool:
    """Installed, or unpacked by this module."""
    return (FOLDER / "learn2learn").is_dir() or importlib.util.find_spec("learn2learn") is not None


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient."""
    learner = _maml()(problem.model, lr=problem.lr, first_order=problem.order == 1)
    start = list(problem.model.parameters())

    def meta_gradient() -> list[Tensor]:
        for p in start:
            p.grad = None
        for index in range(problem.tasks):
            sx, sy, qx, qy = problem.task(index)
            clone = learner.clone()
            for _ in range(problem.steps):
                clone.adapt(problem.loss_fn(clone(sx), sy))
            (problem.loss_fn(clone(qx), qy) / problem.tasks).backward()
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in start]

    return meta_gradient


def _maml() -> Any:
    if not (FOLDER / "learn2learn").is_dir():
        from learn2learn.algorithms.maml import MAML

        return MAML
    for name, file in _MODULES.items():
        if name in sys.modules:
            continue
        if file is None:
            sys.modules[name] = ModuleType(name)
            continue
        spec = importlib.util.spec_from_file_location(name, FOLDER / "learn2learn" / file)
        if spec is None or spec.loader is None:
            raise ImportError(f"learn2learn is not there: run python -m {__name__}")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["learn2learn.algorithms.maml"].MAML


def fetch() -> None:
    """Downloads the source distribution with pip and unpacks it, once."""
    if available():
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation",
             "--no-binary", ":all:", "-d", folder, f"learn2learn=={VERSION}"],
            check=True,
        )  # fmt: skip
        (archive,) = Path(folder).glob("*.tar.gz")
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(FOLDER.parent, filter="data")


if __name__ == "__main__":
    fetch()
    print(FOLDER)
