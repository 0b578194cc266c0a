"""The frozen backbones: pre-trained once in the experiment's folder, or given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from metafast.adapt import Backbone, freeze, pretrain, pretrained
from metafast.experiments.rapid_adaptation._recipes import Setup

OWN = ("omniglot", "cifar", "text")
_loaded: dict[tuple[str, str], Backbone] = {}  # the jobs of a process share them


def file_of(root: Path, name: str) -> Path:
    """Where a data set's own backbone is kept; `root` is the folder of the records."""
    return root.parent / "backbones" / f"{name}.safetensors"


def backbone(setup: Setup, name: str, root: Path) -> Backbone:
    """The backbone of a data set.

    Args:
        setup: the data set.
        name: its name.
        root: the folder of the records.

    Raises:
        FileNotFoundError: it was not pre-trained yet.
        OSError: no such model of transformers.
    """
    key = (setup.backbone, str(file_of(root, name)))
    if key not in _loaded:
        if setup.backbone in OWN:
            _loaded[key] = pretrained(setup.backbone, file_of(root, name))
        else:
            from transformers import AutoModel

            _loaded[key] = freeze(AutoModel.from_pretrained(setup.backbone))
    return _loaded[key]


def make(setup: Setup, name: str, root: Path, seed: int, progress: Callable[[int], None]) -> dict[str, Any]:
    """Pre-trains a data set's own backbone, where it has one, and says how.

    Args:
        setup: the data set.
        name: its name.
        root: the folder of the records.
        seed: of the pre-training.
        progress: called with its steps.
    """
    if setup.backbone in OWN:
        made = pretrain(
            setup.backbone, file_of(root, name), seed=seed, steps=setup.pretrain_steps, objective=setup.objective,
            progress=progress,
        )  # fmt: skip
        return dict(made.about)
    return {"title": f"{setup.backbone}, of transformers"}
