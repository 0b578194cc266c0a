"""Data of the experiments: which rows each part has, and pictures as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metafast.data import Samples, Splits, labels_of, load, split_validation
from metafast.data._pictures import pictures

if TYPE_CHECKING:
    from datasets import Dataset


class Sizes(NamedTuple):
    """Examples of each part; None: all (of validation: a tenth of what there is to train on)."""

    train: int | None
    val: int | None
    test: int | None


class Rows(NamedTuple):
    """Row numbers of each part; validation is cut from the training split."""

    train: Tensor
    val: Tensor
    test: Tensor


def choose_rows(labels: Tensor, test: Tensor, sizes: Sizes, seed: int) -> Rows:
    """Rows of the three parts, with classes in proportion.

    Args:
        labels: of the training split.
        test: labels of the test split.
        sizes: how many.
        seed: of the choice.
    """
    share = 0.1 if sizes.val is None else sizes.val / len(labels)
    train, val = split_validation(labels, share, seed)
    return Rows(train[some(labels[train], sizes.train, seed)], val, some(test, sizes.test, seed))


def some(labels: Tensor, most: int | None, seed: int) -> Tensor:
    """At most so many rows, with classes in proportion where each has at least two."""
    if most is None or most >= len(labels):
        return torch.arange(len(labels))
    if labels.unique(return_counts=True)[1].min() < 2:
        return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return split_validation(labels, most / len(labels), seed)[1]


def picture_splits(name: str, sizes: Sizes, seed: int) -> Splits:
    """Pictures, each channel scaled to mean 0 and variance 1 over the training part."""
    train, test = load(name, "train"), load(name, "test")
    labels, test_labels = labels_of(train), labels_of(test)
    rows = choose_rows(labels, test_labels, sizes, seed)
    raw, test_raw = (torch.from_numpy(pictures(table, _picture_column(table))) for table in (train, test))
    parts = [
        Samples(x[at].float() / 255, y[at])
        for x, y, at in zip((raw, raw, test_raw), (labels, labels, test_labels), rows, strict=True)
    ]
    mean = parts[0].inputs.mean((0, 2, 3), keepdim=True)
    spread = parts[0].inputs.std((0, 2, 3), keepdim=True)
    return Splits(*(Samples((part.inputs - mean) / spread, part.labels) for part in parts))


def text_rows(name: str, sizes: Sizes, seed: int) -> list[tuple[list[str], Tensor]]:
    """Texts and labels of the three parts."""
    train, test = load(name, "train"), load(name, "test")
    labels, test_labels = labels_of(train), labels_of(test)
    rows = choose_rows(labels, test_labels, sizes, seed)
    texts, test_texts = train["text"][:], test["text"][:]
    return [
        ([x[i] for i in at], y[at])
        for x, y, at in zip((texts, texts, test_texts), (labels, labels, test_labels), rows, strict=True)
    ]


def _picture_column(table: Dataset) -> str:
    return "img" if "img" in table.column_names else "image"
