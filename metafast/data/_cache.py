"""Arrays that took long to make, kept in the user's cache folder under a hash of what they were made of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def kept(kind: str, content: Iterable[bytes], make: Callable[[], Array], fits: Callable[[Array], bool]) -> Array:
    """The array that `make` gives, made once per machine.

    It lies in `$XDG_CACHE_HOME/metafast` or `~/.cache/metafast`; where that cannot be written it is made every time.

    Args:
        kind: first part of the file's name.
        content: all that the array depends on.
        make: makes it.
        fits: whether what was found can be it.
    """
    digest = hashlib.blake2b(digest_size=16)
    for item in content:
        digest.update(len(item).to_bytes(8, "little") + item)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metafast"
    file = folder / f"{kind}-{digest.hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        found: Array = np.load(file, allow_pickle=False)
        if fits(found):
            return found
    made = make()
    with contextlib.suppress(OSError):
        _write(file, made)
    return made


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
