"""Columns of compressed pictures as one array, decoded in threads, once per machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

Array = np.ndarray[Any, Any]


def pictures(rows: Dataset, column: str) -> Array:
    """The pictures of a column as `[M, C, H, W]` uint8.

    What was decoded is kept in the user's cache folder (`$XDG_CACHE_HOME/metafast` or `~/.cache/metafast`) under a hash
    of the compressed pictures; where that cannot be written, they are decoded again the next time.

    Args:
        rows: one split of a data set.
        column: name of the image column.

    Raises:
        ValueError: pictures of several sizes, or not of 8 bits.
    """
    import datasets

    raw = rows.cast_column(column, datasets.Image(decode=False))[column][:]
    encoded = [item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes() for item in raw]
    file = _folder() / f"pictures-{_digest(encoded)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        kept = np.load(file, allow_pickle=False)
        if kept.dtype == np.uint8 and kept.ndim == 4 and len(kept) == len(encoded):
            return kept
    decoded = _decode(encoded, column)
    with contextlib.suppress(OSError):
        _write(file, decoded)
    return decoded


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metafast"


def _digest(encoded: list[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for item in encoded:
        digest.update(len(item).to_bytes(8, "little") + item)
    return digest.hexdigest()


def _decode(encoded: list[bytes], column: str) -> Array:
    from PIL import Image

    def decode(items: list[bytes]) -> list[Array]:
        found = []
        for item in items:
            with Image.open(io.BytesIO(item)) as picture:
                found.append(np.asarray(picture))
        return found

    # one task per picture would cost more than decoding it
    parts = [encoded[at : at + 512] for at in range(0, len(encoded), 512)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        decoded = [picture for part in pool.map(decode, parts) for picture in part]
    shapes = sorted({picture.shape for picture in decoded})
    if len(shapes) != 1 or decoded[0].dtype != np.uint8 or len(shapes[0]) not in (2, 3):
        raise ValueError(
            f"column {column!r} must hold 8-bit pictures of one size, got {shapes[:3]} of {decoded[0].dtype}; "
            "resize them first with dataset.map"
            if decoded
            else f"column {column!r} must not be empty"
        )
    stack = np.stack(decoded)
    return stack[:, None] if stack.ndim == 3 else np.ascontiguousarray(stack.transpose(0, 3, 1, 2))


def _write(file: Path, array: Array) -> None:
    """Whole or not at all: other processes may read and write the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        try:
            np.save(part, array, allow_pickle=False)
            part.close()
            os.replace(part.name, file)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
