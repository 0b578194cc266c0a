"""The data sets of the transfer experiment: which ones, as pictures of one size, and as features of a backbone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metafast.data import ClassSet, all_classes, load
from metafast.data._class_sets import permutation
from metafast.data._few_shot import of_dataset
from metafast.data._reading import Reading, first, joined


@dataclass(frozen=True)
class Source:
    """One data set, or some groups of its classes.

    Args:
        title: for people.
        name: for `metafast.data.load`; a file under METAFAST_DATA goes before the hub.
        splits: of its rows.
        hub: its name on the hub, where that is another.
        label: the label's column, where it is not the usual one.
        groups: what part of its groups of classes: `(first, last)` of a fixed order of them, as shares; None: all.
    """

    title: str
    name: str
    splits: tuple[str, ...] = ("train", "test")
    hub: str | None = None
    label: str | None = None
    groups: tuple[float, float] | None = None


@dataclass(frozen=True)
class Recipe:
    """Data sets to learn on, to choose on, and to test on, and the size that their pictures are brought to."""

    name: str
    size: int
    backbone: str
    train: tuple[Source, ...]
    val: tuple[Source, ...]
    test: tuple[Source, ...]


HUB = Recipe(
    "hub",
    128,
    "microsoft/resnet-50",
    train=(
        Source("CIFAR-100", "cifar100"),
        Source("Caltech-256", "caltech256", ("train",), hub="ilee0022/Caltech-256"),
        Source("Flowers-102", "flowers102", hub="nelorth/oxford-flowers"),
    ),
    val=(
        Source("Stanford Cars", "stanford_cars", hub="Donghyun99/Stanford-Cars"),
        Source("FGVC Aircraft", "fgvc_aircraft", hub="Donghyun99/FGVC-Aircraft"),
    ),
    test=(
        Source("Oxford-IIIT Pet", "oxford_pets", hub="timm/oxford-iiit-pet"),
        Source("SUN397", "sun397", hub="tanganke/sun397"),
    ),
)
LOCAL = Recipe(
    "local",
    32,
    "own",
    train=(
        Source("CIFAR-100, 15 superclasses", "cifar100", groups=(0.0, 0.75)),
        Source("Omniglot, 25 alphabets", "omniglot", ("background",), groups=(0.0, 25 / 30)),
    ),
    val=(
        Source("CIFAR-100, 5 other superclasses", "cifar100", groups=(0.75, 1.0)),
        Source("Omniglot, 5 other alphabets", "omniglot", ("background",), groups=(25 / 30, 1.0)),
    ),
    test=(
        Source("Fashion-MNIST", "fashion_mnist"),
        Source("MNIST", "mnist"),
        Source("CIFAR-10", "cifar10"),
    ),
)
RECIPES = {"hub": HUB, "local": LOCAL}


def pictures(source: Source, size: int, limit: int) -> ClassSet:
    """The classes of a source as `[M, 3, size, size]` bytes, at most `limit` pictures of each class.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        ValueError: it has no labels.
    """
    if source.hub is None:
        found = all_classes(source.name, source.splits[0] if len(source.splits) == 1 else None)
        if source.groups is not None:
            found = _part(found, *source.groups)
        return first(found, limit).resized(size, 3)
    return _read(source, size, limit)


def featured(images: ClassSet, extract: Callable[[Tensor], Tensor], batch: int = 256) -> ClassSet:
    """The same classes as float32 features, which `extract` makes of normalized pictures `[N, 3, H, W]`."""
    scale, shift = (torch.from_numpy(values)[:, None, None] for values in images.affine())
    parts: list[np.ndarray[Any, Any]] = []
    for start in range(0, len(images.examples), batch):
        x = torch.from_numpy(images.examples[start : start + batch]).float() * scale + shift
        parts.append(extract(x).float().cpu().numpy())
    return replace(images, examples=np.concatenate(parts), mean=(0.0,), std=(1.0,), turned_classes=False)


def merged(sets: Sequence[ClassSet]) -> tuple[Tensor, Tensor]:
    """All examples of several sets and their class numbers, counted through all sets."""
    inputs, labels, offset = [], [], 0
    for one in sets:
        x, y = one.tensors()
        inputs.append(x)
        labels.append(y + offset)
        offset += one.classes
    return torch.cat(inputs), torch.cat(labels)


def at_hand(recipe: Recipe, timeout: float = 3.0) -> bool:
    """Whether a recipe's data sets are in METAFAST_DATA, or the hub answers."""
    sources = (*recipe.train, *recipe.val, *recipe.test)
    if all(_has_file(source.name, split) for source in sources for split in source.splits):
        return True
    try:
        with socket.create_connection(("huggingface.co", 443), timeout):
            return True
    except OSError:
        return False


def _has_file(name: str, split: str) -> bool:
    root = os.environ.get("METAFAST_DATA")
    return bool(root) and (Path(str(root)) / name / f"{split}.parquet").is_file()


def _part(classes: ClassSet, first: float, last: float) -> ClassSet:
    units = sorted(set(classes.groups))
    order = [units[i] for i in permutation(len(units), 0)]
    wanted = set(order[round(first * len(units)) : round(last * len(units))])
    return classes.select(lambda _, group: group in wanted)


def _read(source: Source, size: int, limit: int) -> ClassSet:
    """Photos of any size, resized one by one, no more of them than are wanted."""
    reading, parts = Reading(size=size, limit=limit), []
    for split in source.splits:
        rows = load(source.name if _has_file(source.name, split) else str(source.hub), split)
        parts.append(of_dataset(rows, source.label, source.name, reading))
    found = first(joined(parts), limit)
    names = tuple(f"{source.name}/{name.removeprefix(f'{source.name} ')}" for name in found.names)
    return replace(found, names=names, name=source.title)
