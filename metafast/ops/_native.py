"""Finds and loads the native op libraries, and says once, clearly, when they are missing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent.parent / "lib"
HOW_TO_BUILD = (
    "build them with a C++20 compiler: `pip install --no-build-isolation .` in the source tree "
    "(for CUDA also nvcc on the PATH); `metafast env` shows what is there"
)


@dataclass(frozen=True)
class NativeLibrary:
    """A native library: whether it was loaded, and if not, why."""

    backend: str
    loaded: bool
    reason: str


def _load(backend: str, wanted: bool, why_not: str) -> NativeLibrary:
    if not wanted:
        return NativeLibrary(backend, False, why_not)
    path = next((_FOLDER / f"libmetafast_{backend}{suffix}" for suffix in (".so", ".dylib")
                 if (_FOLDER / f"libmetafast_{backend}{suffix}").exists()), None)  # fmt: skip
    if path is None:
        return NativeLibrary(backend, False, f"no native library in {_FOLDER}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return NativeLibrary(backend, False, f"{path.name} does not load: {error}")
    return NativeLibrary(backend, True, path.name)


LIBRARIES = {
    "cpu": _load("cpu", True, ""),
    "cuda": _load("cuda", torch.version.cuda is not None, "this torch has no CUDA"),
}

_warned: set[str] = set()


def warn_missing(backend: str) -> None:
    """One warning for each missing library, at its first use."""
    library = LIBRARIES[backend]
    if library.loaded or backend in _warned:
        return
    _warned.add(backend)
    warnings.warn(
        f"metafast runs its slow PyTorch reference on {backend}: {library.reason}. To get the fused kernels, "
        f"{HOW_TO_BUILD}.",
        RuntimeWarning,
        stacklevel=3,
    )
