"""Data sets of few classes, whose parts differ by their rows: tasks of them differ by their examples alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from metafast.data._class_sets import ClassSet, ClassSplits
from metafast.data._reading import Reading
from metafast.data._splits import split_validation

# splits to train and to test on; GLUE keeps the labels of its test parts to itself
ROW_SETS = {
    "ag_news": ("train", "test"),
    "imdb": ("train", "test"),
    **{f"glue/{task}": ("train", "validation") for task in ("cola", "mrpc", "qnli", "qqp", "rte", "sst2")},
    "glue/mnli": ("train", "validation_matched"),
}
Reader = Callable[[str, str | None, str | None, Reading], ClassSet]


def split_rows(name: str, path: str | None, reading: Reading, read: Reader) -> ClassSplits:
    """Nine tenths of the training rows, the last tenth, and the test rows, all with the same classes."""
    train, test = (read(name, split, path, reading) for split in ROW_SETS[name])
    learn, choose = (rows.numpy() for rows in split_validation(torch.from_numpy(train.labels).long(), 0.1, seed=0))
    first, second = (
        replace(train, examples=train.examples[rows], labels=train.labels[rows]) for rows in (learn, choose)
    )
    return ClassSplits(first, second, test)
