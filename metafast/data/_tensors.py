"""Columns of a data set as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "intent")


def to_tensors(
    dataset: Dataset, image: str | None = None, label: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The images and labels of a data set as two tensors.

    Args:
        dataset: from `load`.
        image: name of the image column; default is the one that is there ("image" or "img").
        label: name of the label column; default is "label", "fine_label" or "intent".
        dtype: `torch.uint8` for 0 to 255, a floating type for 0 to 1.

    Returns:
        `(images, labels)`: `[N, C, H, W]` of `dtype`, and `[N]` of int64.

    Raises:
        TypeError: `dataset` is no data set, or `dtype` is neither uint8 nor floating.
        ValueError: no such column, images of several sizes, labels that are no class numbers.

    Example:
        >>> import datasets, PIL.Image
        >>> rows = {"image": [PIL.Image.new("L", (3, 2), color=255)], "label": [4]}
        >>> images, labels = to_tensors(datasets.Dataset.from_dict(rows))
        >>> images.shape, images.max().item(), labels.tolist()
        (torch.Size([1, 1, 2, 3]), 1.0, [4])
    """
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list):
        raise TypeError(
            f"dataset must be one split, a datasets.Dataset as load() gives it, got {type(dataset).__name__}"
        )
    if dtype is not torch.uint8 and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be torch.uint8 or a floating type, got {dtype}")
    image = _column("image", image, IMAGE_COLUMNS, columns)
    label = _column("label", label, LABEL_COLUMNS, columns)
    arrays = [np.asarray(picture) for picture in dataset.with_format(None)[image]]
    if not arrays:
        raise ValueError("dataset must not be empty")
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"column {image!r} must hold images of one size, got {len(shapes)} such as {shapes[0]} and {shapes[1]}; "
            "resize them first with dataset.map"
        )
    if arrays[0].dtype != np.uint8 or arrays[0].ndim not in (2, 3):
        raise ValueError(f"column {image!r} must hold 8-bit images, got {arrays[0].dtype} of shape {arrays[0].shape}")
    pixels = torch.from_numpy(np.stack(arrays))  # [N, H, W] or [N, H, W, C]
    pixels = pixels.unsqueeze(1) if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return _as(pixels, dtype), labels_of(dataset, label)


def labels_of(dataset: Dataset, label: str | None = None) -> Tensor:
    """The label column as `[N]` int64.

    Args:
        dataset: from `load`.
        label: name of the column; default is "label", "fine_label" or "intent".

    Raises:
        ValueError: no such column, or values that are no class numbers.

    Example:
        >>> import datasets
        >>> labels_of(datasets.Dataset.from_dict({"label": [1, 0]}))
        tensor([1, 0])
    """
    label = _column("label", label, LABEL_COLUMNS, dataset.column_names)
    values = np.asarray(dataset.with_format(None)[label][:])
    if values.ndim != 1 or values.dtype.kind not in "iu" or (values.size and values.min() < 0):
        raise ValueError(
            f"column {label!r} must hold class numbers from 0 on, got {values.dtype}, shape {values.shape}"
        )
    return torch.from_numpy(values.astype(np.int64))


def _as(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return pixels if dtype is torch.uint8 else (pixels.to(torch.float32) / 255).to(dtype)


def _column(kind: str, name: Any, usual: tuple[str, ...], columns: list[str]) -> str:
    if name is None:
        for candidate in usual:
            if candidate in columns:
                return candidate
        raise ValueError(f"{kind}: none of the usual columns {usual} is there; name one of {columns} by {kind}=")
    if name not in columns:
        raise ValueError(f"{kind} must be one of the columns {columns}, got {name!r}")
    return str(name)
