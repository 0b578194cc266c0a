"""Disjoint, seeded, stratified splits, and the bundled digits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metafast._checks import fraction as check_fraction
from metafast._checks import integer


class Samples(NamedTuple):
    """Inputs and class numbers, equally long."""

    inputs: Tensor
    labels: Tensor


class Splits(NamedTuple):
    """Three disjoint parts: learn on `train`, choose on `val`, report on `test`, once."""

    train: Samples
    val: Samples
    test: Samples


def split_validation(labels: Tensor, fraction: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of a training and a validation part: disjoint, complete, each class in proportion.

    Args:
        labels: `[N]` class numbers (int64) of the training split.
        fraction: share of the validation part, above 0 and below 1; each class is rounded, and gives at least one
            sample to either part where it has two.
        seed: of the choice.

    Returns:
        `(train, val)`: sorted int64 indices; together all of `range(N)`, in common none.

    Raises:
        TypeError: `labels` is no integer tensor.
        ValueError: a fraction outside (0, 1), or too few samples to have both parts.

    Example:
        >>> train, val = split_validation(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), fraction=0.25, seed=1)
        >>> len(train), len(val), set(train.tolist()) & set(val.tolist())
        (6, 2, set())
    """
    if (
        not isinstance(labels, Tensor)
        or labels.is_floating_point()
        or labels.is_complex()
        or labels.dtype is torch.bool
    ):
        raise TypeError(f"labels must be an integer tensor of class numbers, got {_describe(labels)}")
    if labels.dim() != 1:
        raise ValueError(f"labels must have one dimension [N], got shape {tuple(labels.shape)}")
    share = check_fraction("fraction", fraction)
    generator = torch.Generator().manual_seed(integer("seed", seed, minimum=0))
    chosen = []
    for value in labels.unique():
        members = (labels == value).nonzero().squeeze(1).cpu()
        count = round(share * len(members))
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    val = torch.cat(chosen).sort().values if chosen else torch.empty(0, dtype=torch.int64)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[val] = False
    train = mask.nonzero().squeeze(1)
    if len(val) == 0 or len(train) == 0:
        raise ValueError(f"labels has {len(labels)} samples, too few for two parts; give at least two of a class")
    return train, val


def digits(
    seed: int = 0, val_fraction: float = 0.15, test_fraction: float = 0.2, dtype: torch.dtype = torch.float32
) -> Splits:
    """The 1,797 handwritten digits that come with scikit-learn: real 8x8 images, always there, no download.

    Args:
        seed: of the split.
        val_fraction: share of the validation part, of the whole.
        test_fraction: share of the test part, of the whole.
        dtype: `torch.uint8` for 0 to 255, a floating type for 0 to 1.

    Returns:
        `Splits(train, val, test)` of `Samples(inputs [N, 1, 8, 8], labels [N])`, stratified by class.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: fractions that leave nothing to train on.

    Example:
        >>> parts = digits(seed=0)
        >>> [len(part.labels) for part in parts], parts.train.inputs.shape[1:]
        ([1169, 269, 359], torch.Size([1, 8, 8]))

    Source:
        E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998, test part.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "metafast.data.digits needs scikit-learn: pip install 'metafast[demo]' (or pip install scikit-learn)"
        ) from error
    val_share, test_share = check_fraction("val_fraction", val_fraction), check_fraction("test_fraction", test_fraction)
    if val_share + test_share >= 1:
        raise ValueError(f"val_fraction + test_fraction must be below 1, got {val_fraction} + {test_fraction}")
    if dtype is not torch.uint8 and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be torch.uint8 or a floating type, got {dtype}")
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16  # scikit-learn counts ink from 0 to 16
    images = (grey * 255).round().to(torch.uint8) if dtype is torch.uint8 else grey.to(dtype)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    rest, test = split_validation(labels, test_share, seed)
    train, val = split_validation(labels[rest], val_share / (1 - test_share), seed + 1)
    train, val = rest[train], rest[val]
    return Splits(*(Samples(images[part], labels[part]) for part in (train, val, test)))


def _describe(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"
