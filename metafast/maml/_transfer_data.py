"""The data sets of the transfer experiment: which ones, as pictures of one size, and as features of a backbone."""

from __future__ import annotations

import itertools
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
        return _first(found, limit).resized(size, 3)
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


def _first(classes: ClassSet, limit: int) -> ClassSet:
    members, starts = classes.members()
    kept = np.sort(np.concatenate([members[a : min(b, a + limit)] for a, b in itertools.pairwise(starts)]))
    return replace(
        classes,
        examples=classes.examples[kept],
        labels=classes.labels[kept],
        order=None if classes.order is None else classes.order[kept],
    )


def _read(source: Source, size: int, limit: int) -> ClassSet:
    """Photos of any size, resized one by one, no more of them than are wanted."""
    from metafast.data._tensors import IMAGE_COLUMNS, LABEL_COLUMNS

    arrays: list[np.ndarray[Any, Any]] = []
    labels: list[Any] = []
    taken: dict[Any, int] = {}
    for split in source.splits:
        rows = load(source.name if _has_file(source.name, split) else str(source.hub), split)
        image = next((name for name in IMAGE_COLUMNS if name in rows.column_names), None)
        column = source.label or next((name for name in LABEL_COLUMNS if name in rows.column_names), None)
        if image is None or column is None or column not in rows.column_names:
            raise ValueError(f"{source.title} must have an image and a label column, got {rows.column_names}")
        for index, label in enumerate(rows[column][:]):
            if taken.get(label, 0) == limit:
                continue
            taken[label] = taken.get(label, 0) + 1
            picture = rows[index][image].convert("RGB").resize((size, size))
            arrays.append(np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1))
            labels.append(label)
    names = sorted(taken, key=str)
    place = {name: number for number, name in enumerate(names)}
    return ClassSet(
        np.stack(arrays),
        np.array([place[label] for label in labels]),
        tuple(f"{source.name}/{name}" for name in names),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        name=source.title,
    )
