"""Series by name, as windows to forecast from: split by time, scaled by what was there to learn from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metafast._checks import fraction, integer
from metafast.data._load import load

# Name: (splits to read, columns that are series of their own; none: the rows of the column "target" are).
KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "electricity": (("train",), ()),
    "ett": (("ETTh1", "ETTh2"), ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL")),
    "m4": (("hourly",), ()),
}


class Windows(NamedTuple):
    """Pasts `[N, length]` and what followed them, `[N, horizon]`, float32."""

    inputs: Tensor
    targets: Tensor


class ForecastSplits(NamedTuple):
    """Three parts, one after the other in time: learn on `train`, choose on `val`, report on `test`, once."""

    train: Windows
    val: Windows
    test: Windows


def load_series(
    name: str,
    splits: Sequence[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """The series of a data set, by their names.

    "ett" is the six loads of either transformer of ETT-small, hourly; "m4" the hourly series of M4, with what was to be
    forecast at their ends; "electricity" the hub's hourly loads of 321 clients. Any other data set can be read that has
    columns of numbers, or a column `target` of lists.

    Args:
        name: for `load`: a path, then METAFAST_DATA, then the Hugging Face hub.
        splits: to read. Default: all of a known set, else "train".
        columns: columns that are one series each. Default: those of a known set, else the lists in `target`.
        path: as in `load`.

    Returns:
        Name to values, float32 `[T]`; lengths may differ.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has it.
        ImportError: the `datasets` package is missing.
        ValueError: no such column, or values that are no finite numbers.

    Example:
        >>> load_series("no such name")
        Traceback (most recent call last):
        ...
        ValueError: name must be letters, digits, '.', '_' and '-' (hub: owner/name), got 'no such name'
    """
    known = KNOWN.get(name, (("train",), ()))
    for argument, value in (("splits", splits), ("columns", columns)):
        if isinstance(value, str):
            raise TypeError(f"{argument} must be a list of names, got the text {value!r}; write [{value!r}]")
    splits = known[0] if splits is None else tuple(splits)
    columns = known[1] if columns is None else tuple(columns)
    found: dict[str, Tensor] = {}
    for split in splits:
        table = load(name, split, path).with_format(None)
        missing = [column for column in columns or ("target",) if column not in table.column_names]
        if missing:
            raise ValueError(f"columns: {name!r} has no {missing}; it has {table.column_names}")
        if columns:
            found |= {f"{split}/{column}": _values(f"{split}/{column}", table[column][:]) for column in columns}
            continue
        names = next((table[key][:] for key in ("item_id", "id") if key in table.column_names), range(len(table)))
        ends = table["future_target"][:] if "future_target" in table.column_names else [[]] * len(table)
        for label, past, end in zip(names, table["target"][:], ends, strict=True):
            found[f"{split}/{label}"] = _values(f"{split}/{label}", [*past, *end])
    return found


def forecast_splits(
    series: Mapping[str, Tensor] | Sequence[Tensor],
    length: int,
    horizon: int,
    *,
    val: float = 0.1,
    test: float = 0.2,
    stride: int = 1,
) -> ForecastSplits:
    """Windows of series, split by time, each series scaled to mean 0 and variance 1 over its training part.

    The last `test` of each series is the test part, the `val` before it the validation part. What is to be forecast
    lies in one part alone; the past of a window may reach back into the part before.

    Args:
        series: values `[T]` of each.
        length: steps of the past.
        horizon: steps to forecast.
        val: share of the validation part, above 0 and below 1.
        test: likewise of the test part.
        stride: steps from one window to the next; memory is 4 (length + horizon) bytes for each window.

    Returns:
        `ForecastSplits(train, val, test)` of `Windows(inputs [N, length], targets [N, horizon])`, in units of the
        standard deviation of each series.

    Raises:
        TypeError: something that is no tensor of numbers.
        ValueError: a size out of range, no series, or one that is too short.

    Example:
        >>> parts = forecast_splits([torch.arange(100.0)], length=8, horizon=4)
        >>> [len(part.inputs) for part in parts], parts.test.targets.shape
        ([59, 7, 17], torch.Size([17, 4]))
    """
    length, horizon = integer("length", length, minimum=1), integer("horizon", horizon, minimum=1)
    stride, val, test = integer("stride", stride, minimum=1), fraction("val", val), fraction("test", test)
    if val + test >= 1:
        raise ValueError(f"val + test must be below 1, got {val} + {test}")
    named = dict(series) if isinstance(series, Mapping) else {str(i): values for i, values in enumerate(series)}
    if not named:
        raise ValueError("series must not be empty")
    parts: list[list[Windows]] = [[], [], []]
    for name, values in named.items():
        if not isinstance(values, Tensor) or not values.is_floating_point():
            raise TypeError(f"series[{name!r}] must be a tensor of floating-point numbers, got {_kind(values)}")
        if values.dim() != 1 or not bool(values.isfinite().all()):
            raise ValueError(f"series[{name!r}] must be finite and have one dimension, got shape {tuple(values.shape)}")
        total = len(values)
        first, second = total - round((val + test) * total), total - round(test * total)
        ends = ((length, first), (max(first, length), second), (max(second, length), total))
        short = [part for part, (start, end) in zip(("training", "validation", "test"), ends, strict=True)
                 if end - start < horizon]  # fmt: skip
        if short:
            raise ValueError(
                f"series[{name!r}] has {total} values, too few for a window of {length} + {horizon} steps in its "
                f"{' and '.join(short)} part; shorten the window, leave the series out, or give another share"
            )
        scaled = _scaled(values, first)
        for part, (start, end) in zip(parts, ends, strict=True):
            rows = scaled[start - length : end].unfold(0, length + horizon, stride)
            part.append(Windows(rows[:, :length], rows[:, length:]))
    return ForecastSplits(*(Windows(*map(torch.cat, zip(*part, strict=True))) for part in parts))


def seasonal_naive(inputs: Tensor, horizon: int, season: int) -> Tensor:
    """The forecast that repeats the last season of the past.

    Args:
        inputs: pasts `[N, length]`.
        horizon: steps to forecast.
        season: steps of a season, such as 24 for a day of hours; at most `length`.

    Returns:
        `[N, horizon]`.

    Raises:
        ValueError: a season longer than the past.

    Example:
        >>> seasonal_naive(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), horizon=5, season=2)
        tensor([[3., 4., 3., 4., 3.]])

    Source:
        R. Hyndman, G. Athanasopoulos, Forecasting: Principles and Practice, section 5.2.
    """
    horizon, season = integer("horizon", horizon, minimum=1), integer("season", season, minimum=1)
    if inputs.dim() != 2 or season > inputs.shape[1]:
        raise ValueError(
            f"inputs must be [N, length] with a length of at least season={season}, got {list(inputs.shape)}"
        )
    return inputs[:, -season:].repeat(1, -(-horizon // season))[:, :horizon]


def _values(name: str, values: Any) -> Tensor:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"series {name!r} must hold numbers: {error}") from None
    bad = int((~np.isfinite(array)).sum())
    if array.ndim != 1 or bad:
        raise ValueError(f"series {name!r} must hold finite numbers, got shape {array.shape} and {bad} that are not")
    return torch.from_numpy(array)


def _scaled(values: Tensor, first: int) -> Tensor:
    known = values[:first].double()
    spread = float(known.std(correction=0))
    return ((values.double() - known.mean()) / (spread if spread > 0 else 1.0)).float()


def _kind(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
