"""Columns of compressed pictures as one array, decoded in threads, once per machine."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.data._cache import kept

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]


def pictures(rows: Dataset, column: str, size: int | None = None) -> Array:
    """The pictures of a column as `[M, C, H, W]` uint8.

    What was decoded is kept in the user's cache folder.

    Args:
        rows: one split of a data set.
        column: name of the image column.
        size: height and width that each picture is brought to, in three channels; None: they are taken as they are.

    Raises:
        ValueError: pictures of several sizes, or not of 8 bits.
    """
    import datasets

    raw = rows.cast_column(column, datasets.Image(decode=False))[column][:]
    encoded = [item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes() for item in raw]
    return kept(
        "pictures",
        encoded if size is None else [f"{size}".encode(), *encoded],
        lambda: _decode(encoded, column, size),
        lambda array: array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(encoded),
    )


def _decode(encoded: list[bytes], column: str, size: int | None) -> Array:
    from PIL import Image

    def decode(items: list[bytes]) -> list[Array]:
        found = []
        for item in items:
            with Image.open(io.BytesIO(item)) as picture:
                sized = picture if size is None else picture.convert("RGB").resize((size, size))
                found.append(np.asarray(sized))
        return found

    # one task per picture would cost more than decoding it
    parts = [encoded[at : at + 512] for at in range(0, len(encoded), 512)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = [picture for part in pool.map(decode, parts) for picture in part]
    shapes = sorted({picture.shape for picture in decoded})
    if len(shapes) != 1 or decoded[0].dtype != np.uint8 or len(shapes[0]) not in (2, 3):
        raise ValueError(
            f"column {column!r} must hold 8-bit pictures of one size, got {shapes[:3]} of {decoded[0].dtype}; "
            "give size= for one size, or resize them first with dataset.map"
            if decoded
            else f"column {column!r} must not be empty"
        )
    stack = np.stack(decoded)
    return stack[:, None] if stack.ndim == 3 else np.ascontiguousarray(stack.transpose(0, 3, 1, 2))
