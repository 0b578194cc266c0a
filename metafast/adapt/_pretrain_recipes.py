"""The three backbones that the package trains itself: networks, data, settings, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from metafast.adapt import _pretrain_pictures as pictures
from metafast.adapt import _pretrain_text as texts
from metafast.data import ClassSet

OBJECTIVES = ("classes", "episodes")


class Examples(Protocol):
    """Where batches come from."""

    @property
    def outputs(self) -> int:
        """Classes."""

    def batch(self, random: np.random.Generator, size: int, per_class: int) -> tuple[Tensor, Tensor]:
        """Inputs and class numbers: `per_class` examples of each of some classes, or any (`per_class` 1)."""


@dataclass(frozen=True)
class Recipe:
    """One backbone.

    Args:
        title: what it is, for people.
        data: gives the batches to learn from and the classes to choose on.
        network: with random weights, of `seed` and `sizes`.
        sizes: of the network.
        pairs: how often a step also learns which texts belong together; its examples then have `pairs`.
        objective: "classes" (tell all training classes apart) or "episodes" (nearest prototypes of single examples).
        steps: of AdamW.
        size: examples of a step.
        lr: its highest rate.
        checks: ways and shots of the episodes it is judged by.
    """

    title: str
    data: Callable[[], tuple[Any, dict[str, ClassSet]]]
    network: Callable[..., nn.Module]
    objective: str
    steps: int
    size: int
    lr: float
    checks: tuple[tuple[int, int], ...]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    pairs: float = 0.0


RECIPES = {
    "omniglot": Recipe(
        "Conv4 on the 25 background alphabets of Omniglot to learn on",
        pictures.omniglot,
        pictures.omniglot_network,
        "classes",
        steps=2000,
        size=128,
        lr=2e-3,
        checks=((20, 1), (20, 5)),
    ),
    "cifar": Recipe(
        "Conv4 on the 64 training classes of CIFAR-FS",
        pictures.cifar,
        pictures.cifar_network,
        "classes",
        steps=1200,
        size=64,
        lr=2e-3,
        checks=((5, 1), (5, 5)),
    ),
    "text": Recipe(
        "one layer of BERT and a convolution on the 50 training relations of FewRel",
        texts.text,
        texts.text_network,
        "classes",
        steps=600,
        size=80,
        lr=1e-3,
        checks=((5, 1), (5, 5)),
        pairs=0.5,
    ),
}
