"""Splits off validation data, and finds out where two splits share examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from metafast._checks import fraction, integer
from metafast.data import Batches


def holdout(dataset: Dataset[Any], share: float = 0.1, seed: int = 0) -> tuple[Subset[Any], Subset[Any]]:
    """Splits a training set into a part to train on and a part for hypergradients, disjoint and by the seed alone.

    Args:
        dataset: with a length and numbered examples; the training set, never the test set.
        share: of the examples that are held out, above 0 and below 1; at least one example. Default 0.1.
        seed: of the permutation. Default 0.

    Returns:
        `(train, val)`, subsets in the data set's order.

    Raises:
        TypeError, ValueError: no such data set, fewer than two examples, or a share outside (0, 1).

    Example:
        >>> train, val = holdout(range(10), 0.2, seed=0)
        >>> len(train), len(val), set(train.indices) & set(val.indices)
        (8, 2, set())
    """
    share = fraction("share", share)
    seed = integer("seed", seed, minimum=0)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"dataset must have a length and numbered examples, got {type(dataset).__name__}; "
            "a stream has to be split where it is made"
        )
    count = len(dataset)
    if count < 2:
        raise ValueError(f"dataset must have at least 2 examples to be split, got {count}")
    held = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(dataset, sorted(order[held:])), Subset(dataset, sorted(order[:held]))


def split_loader(loader: Any, share: float, seed: int) -> tuple[Any, Any]:
    """A training loader without the examples that are held out, and a loader of these, both made like the given one."""
    if isinstance(loader, Batches):
        parts = holdout(TensorDataset(*loader.tensors), share, seed)
        some, others = ([tensor[torch.tensor(part.indices)] for tensor in loader.tensors] for part in parts)
        size, order, shuffle = loader.batch_size, loader.seed, loader.shuffle
        return (
            Batches(*some, batch_size=size, seed=order, shuffle=shuffle, drop_last=loader.drop_last),
            Batches(*others, batch_size=size, seed=order, shuffle=shuffle),
        )
    plain = isinstance(loader, DataLoader) and loader.batch_size is not None
    if not plain or isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "train_loader must be a DataLoader of numbered examples or metafast.data.Batches to be split, got "
            f"{type(loader).__name__}; split the data yourself and give val_loader: metafast.tune.holdout(dataset, 0.1)"
        )
    if type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise ValueError(
            f"train_loader has a {type(loader.sampler).__name__}, which would not know what is held out; split the "
            "data yourself and give val_loader: metafast.tune.holdout(dataset, 0.1)"
        )
    train, val = holdout(loader.dataset, share, seed)
    shared = {"batch_size": loader.batch_size, "collate_fn": loader.collate_fn, "pin_memory": loader.pin_memory}
    return (
        DataLoader(
            train,
            shuffle=isinstance(loader.sampler, RandomSampler),
            drop_last=loader.drop_last,
            num_workers=loader.num_workers,
            persistent_workers=loader.persistent_workers,
            worker_init_fn=loader.worker_init_fn,
            generator=loader.generator,
            **shared,
        ),
        DataLoader(val, shuffle=True, generator=torch.Generator().manual_seed(seed), **shared),
    )


def check_disjoint(train: Any, val: Any) -> None:
    """Raises where validation and training data are seen to share examples: the same data set, or common numbers."""
    (base, some), (other, others) = _resolved(train), _resolved(val)
    if base is None or other is None or not _same(base, other):
        return
    numbers = set(range(len(base)) if some is None else some)
    shared = numbers & set(range(len(other)) if others is None else others)
    if shared:
        raise ValueError(
            f"val_loader and train_loader share {len(shared)} of the validation examples; hypergradients need data "
            "that the training does not see: train, val = metafast.tune.holdout(dataset, 0.1, seed=0)"
        )


def _resolved(data: Any) -> tuple[Any, Sequence[int] | None]:
    """The data set at the bottom, and which of its examples."""
    if isinstance(data, DataLoader):
        data = data.dataset
    numbers: Sequence[int] | None = None
    while isinstance(data, Subset):
        own = list(map(int, data.indices))
        numbers = own if numbers is None else [own[i] for i in numbers]
        data = data.dataset
    if isinstance(data, TensorDataset | Batches):
        return data.tensors[0], numbers
    return (data, numbers) if hasattr(data, "__len__") and hasattr(data, "__getitem__") else (None, None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.data_ptr() == b.data_ptr() and a.shape == b.shape
    return a is b
