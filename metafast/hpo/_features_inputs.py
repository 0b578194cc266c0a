"""A data set in any of the usual forms as a small sample of inputs and all of its targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]
MODALITIES = ("image", "text", "series", "audio", "table")
KINDS = ("classes", "numbers", "sequences")  # of targets
SAMPLED = 800  # examples that are looked at
AUDIO_LENGTH = 1000  # a row of numbers from this length on is taken for a waveform
INPUT_COLUMNS = ("image", "img", "text", "sentence", "tokens", "question", "array", "audio", "inputs", "target")
TARGET_COLUMNS = ("label", "labels", "fine_label", "intent", "relation", "future_target", "targets", "transcript")


@dataclass(frozen=True)
class Sample:
    """What features are computed from.

    Args:
        modality: one of `MODALITIES`.
        inputs: at most `SAMPLED` of them: one array, or a list of rows of unequal length (words for text).
        at: their row numbers.
        examples: rows of the whole.
        kind: one of `KINDS`.
        targets: of the whole: class numbers `[N]`, numbers `[N, K]`, or a list of sequences of symbols.
    """

    modality: str
    inputs: Any
    at: Array
    examples: int
    kind: str
    targets: Any


def sample_of(name: str, data: Any, modality: str | None, columns: tuple[str, str] | None) -> Sample:
    """The sample of a data set; `name` is for messages.

    Raises:
        TypeError: a form that cannot be read.
        ValueError: no examples, unequal lengths, missing columns, an unknown modality.
    """
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality must be one of {MODALITIES} or None, got {modality!r}")
    inputs, targets = _parts(name, data, columns)
    count = len(inputs)
    if count == 0:
        raise ValueError(f"{name} must have at least one example, got none")
    if len(targets) != count:
        raise ValueError(f"{name} must have as many targets as inputs, got {len(targets)} and {count}")
    at = np.arange(count) if count <= SAMPLED else np.sort(np.random.default_rng(0).permutation(count)[:SAMPLED])
    kind, targets = _targets(name, targets)
    taken = _rows(inputs, at)
    found, taken = _inputs(name, taken, kind, modality)
    return Sample(found, taken, at, count, kind, targets)


def _parts(name: str, data: Any, columns: tuple[str, str] | None) -> tuple[Any, Any]:
    names = getattr(data, "column_names", None) or (list(data) if isinstance(data, Mapping) else None)
    if names is not None:
        chosen = columns or (_column(name, names, INPUT_COLUMNS), _column(name, names, TARGET_COLUMNS))
        missing = [column for column in chosen if column not in names]
        if missing:
            raise ValueError(f"{name} has no column {missing[0]!r}; it has {list(names)}")
        return (data[chosen[0]], data[chosen[1]]) if isinstance(data, Mapping) else _table(data, chosen)
    if isinstance(data, list | tuple) and len(data) == 2:
        return _plain(data[0]), _plain(data[1])
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | Tensor | np.ndarray):
        return _pairs(name, data)
    raise TypeError(
        f"{name} must be (inputs, targets), a mapping or a datasets.Dataset of columns, or a data set of pairs, "
        f"got {type(data).__name__}"
    )


def _column(name: str, names: Sequence[str], known: Sequence[str]) -> str:
    for each in known:
        if each in names:
            return each
    raise ValueError(f"{name} has columns {list(names)}, none of {known}; name them with columns=(inputs, targets)")


class _Column:
    """A column of a `datasets.Dataset`, of which only the wanted rows are decoded."""

    def __init__(self, table: Any, name: str) -> None:
        self.table, self.name = table.with_format(None), name

    def __len__(self) -> int:
        return len(self.table)

    def rows(self, at: Array) -> list[Any]:
        return list(self.table[[int(i) for i in at]][self.name])


def _table(table: Any, chosen: tuple[str, str]) -> tuple[Any, Any]:
    return _Column(table, chosen[0]), list(table.with_format(None)[chosen[1]][:])


def _pairs(name: str, data: Any) -> tuple[Any, Any]:
    """A map-style data set; the targets of all are read only where that is cheap, else those of the sample."""
    count = len(data)
    at = range(count) if count <= SAMPLED else np.random.default_rng(0).permutation(count)[:SAMPLED].tolist()
    rows = [data[int(i)] for i in at]
    if not all(isinstance(row, list | tuple) and len(row) == 2 for row in rows):
        raise TypeError(f"{name}[i] must be a pair (input, target), got {type(rows[0]).__name__}")
    inputs, targets = [_plain(row[0]) for row in rows], [_plain(row[1]) for row in rows]
    known = getattr(data, "targets", None)
    if known is not None and len(known) == count and count > SAMPLED:
        return _Sparse(inputs, np.asarray(at), count), _plain(known)
    return inputs, targets


class _Sparse:
    """Inputs of which only some rows were read; the others are not asked for."""

    def __init__(self, read: list[Any], at: Array, count: int) -> None:
        self.read, self.count = dict(zip(at.tolist(), read, strict=True)), count

    def __len__(self) -> int:
        return self.count

    def rows(self, at: Array) -> list[Any]:
        return [self.read[int(i)] for i in at]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (
            value.numpy() if value.dtype.is_complex or str(value.dtype) != "torch.bfloat16" else value.float().numpy()
        )
    return value


def _rows(inputs: Any, at: Array) -> Any:
    if hasattr(inputs, "rows"):
        return inputs.rows(at)
    if isinstance(inputs, np.ndarray):
        return inputs[at]
    return [_plain(inputs[int(i)]) for i in at]


def _targets(name: str, targets: Any) -> tuple[str, Any]:
    targets = _plain(targets)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "iub" and targets.ndim == 1:
        return "classes", np.unique(targets, return_inverse=True)[1]
    if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
        return "numbers", targets.reshape(len(targets), -1)
    first = targets[0]
    if isinstance(first, str | bool | int | np.integer) or (isinstance(first, np.ndarray | Tensor) and first.ndim == 0):
        values = np.asarray([each.item() if hasattr(each, "item") else each for each in targets])
        if values.dtype.kind != "f":
            return "classes", np.unique(values, return_inverse=True)[1]
        return "numbers", values[:, None]
    if isinstance(first, float):
        return "numbers", np.asarray(targets, dtype=np.float64)[:, None]
    rows = [np.asarray(_plain(each)) for each in targets]
    if all(row.dtype.kind == "f" for row in rows) and len({row.shape for row in rows}) == 1:
        return "numbers", np.stack(rows).reshape(len(rows), -1)
    if all(row.dtype.kind in "iuUS" or row.size == 0 for row in rows):
        return "sequences", [row.ravel() for row in rows]
    raise TypeError(
        f"{name}: targets must be class numbers, numbers, or sequences of symbols, got {type(first).__name__}"
    )


def _inputs(name: str, inputs: Any, kind: str, wanted: str | None) -> tuple[str, Any]:
    """The modality and the inputs as an array, or a list of rows."""
    if isinstance(inputs, list):
        first = inputs[0]
        if isinstance(first, str):
            return "text", [row.lower().split() for row in inputs]
        if isinstance(first, list | tuple | np.ndarray) and len(first) and isinstance(first[0], str):
            return "text", [[str(word).lower() for word in row] for row in inputs]
        if isinstance(first, dict) and "array" in first:
            inputs = [row["array"] for row in inputs]
        rows = [np.asarray(row) for row in inputs]
        if any(row.dtype.kind not in "fiub" for row in rows):
            raise TypeError(f"{name}: inputs must be numbers, texts or pictures, got {type(first).__name__}")
        if hasattr(first, "getbands"):  # a picture of PIL
            small = [row if row.ndim == 3 else row[..., None] for row in rows]
            return "image", _equal([row.transpose(2, 0, 1) for row in small])
        if len({row.shape for row in rows}) != 1:
            length = float(np.median([len(row) for row in rows]))
            return wanted or ("audio" if length >= AUDIO_LENGTH else "series"), rows
        inputs = np.stack(rows)
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "fiub" or inputs.ndim == 0:
        raise TypeError(f"{name}: inputs must be numbers, texts or pictures, got {type(inputs).__name__}")
    if inputs.ndim == 1:
        inputs = inputs[:, None]
    found = wanted or _guess(inputs, kind)
    if found == "image" and inputs.ndim == 3:
        inputs = inputs[:, None]
    if found == "image" and inputs.ndim == 4 and inputs.shape[-1] in (1, 3, 4) and inputs.shape[1] not in (1, 3, 4):
        inputs = inputs.transpose(0, 3, 1, 2)
    if found == "image" and inputs.ndim != 4:
        raise ValueError(f"{name}: images must be [N, C, H, W] or [N, H, W], got {list(inputs.shape)}")
    return found, inputs


def _guess(inputs: Array, kind: str) -> str:
    if inputs.ndim >= 4 or (inputs.ndim == 3 and inputs.dtype.kind == "u"):
        return "image"
    if inputs.ndim == 3:
        return "series"
    if inputs.dtype.kind in "iu" and inputs.shape[1] > 1 and inputs.min() >= 0:
        return "text"
    if inputs.shape[1] >= AUDIO_LENGTH:
        return "audio"
    return "series" if kind == "numbers" and inputs.shape[1] > 1 else "table"


def _equal(pictures: list[Array]) -> Array:
    """Pictures of several sizes cut to the smallest."""
    channels = min(each.shape[0] for each in pictures)
    height, width = min(each.shape[1] for each in pictures), min(each.shape[2] for each in pictures)
    return np.stack([each[:channels, :height, :width] for each in pictures])
