"""Tables of results, such as CSV files, as tasks to learn from."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metafast.hpo._conditions import holds
from metafast.hpo._metrics import direction_of
from metafast.hpo._rows import Row, space_of, task_of_rows
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask

_WORDS = {"true": True, "false": False, "none": None, "": None}


def task_of_table(
    source: str | os.PathLike[str] | Mapping[str, Sequence[Any]],
    *,
    score: str,
    name: str | None = None,
    dataset: str | None = None,
    space: Space | None = None,
    curve: Mapping[str, float] | None = None,
    seconds: str | None = None,
    ignore: Sequence[str] = (),
    metric: str | None = None,
    direction: str | None = None,
    reference: float | None = None,
    features: Mapping[str, float] | None = None,
) -> MetaTask:
    """A table with one run a row as a task to learn from.

    Empty cells of hyperparameters are ones that a run does not have; a score that is empty or NaN is of a failed run.
    Rows of one configuration are averaged.

    Args:
        source: a .csv or .parquet file, or columns by name.
        score: the column of the final scores.
        name: of the task. None: the file's name.
        dataset: what is left out as one when a predictor is judged. None: `name`.
        space: what was searched; its hyperparameters are columns. None: all other columns whose values differ.
        curve: columns of earlier scores, and at which fraction of the budget they were measured: `{"acc_5": 0.25}`.
        seconds: the column of the costs.
        ignore: columns that are no hyperparameters, such as seeds.
        metric: name of the score. None: `score`.
        direction: "maximize" or "minimize". None: the known one of the metric.
        reference: as in `MetaTask`.
        features: likewise.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: missing columns or one twice, scores that are no numbers, an unknown direction, rows outside the
            space, or fewer than 2 finished configurations.
        ImportError: a .parquet file without pyarrow.

    Example:
        >>> columns = {"lr": [0.1, 0.1, 0.2], "seed": [0, 1, 0], "accuracy": [0.5, 0.7, 0.9]}
        >>> task = task_of_table(columns, score="accuracy", ignore=["seed"], name="mine")
        >>> task.configs, task.final.round(3).tolist()
        ([{'lr': 0.1}, {'lr': 0.2}], [0.6, 0.9])
    """
    columns, what = _columns(source)
    curve = dict(curve or {})
    for fraction in curve.values():
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ValueError(f"curve must map columns to fractions of the budget between 0 and 1, got {fraction!r}")
    told = [score, *curve, *([seconds] if seconds else []), *ignore]
    wanted = [*told, *(space.dimensions if space else ())]
    if missing := [column for column in wanted if column not in columns]:
        raise ValueError(f"{what} has no column {missing}; it has {list(columns)}")
    if twice := [column for column, count in Counter(wanted).items() if count > 1]:
        raise ValueError(f"columns {twice} have two meanings; each is a score, a cost, ignored, or a hyperparameter")
    metric = metric or score
    direction = direction or direction_of(metric)
    if direction is None:
        raise ValueError(f"which way round is {metric!r}? give direction='maximize' or 'minimize'")
    count = len(columns[score])
    names = list(space.dimensions) if space else [column for column in columns if column not in told]
    configs = [{key: columns[key][row] for key in names if not _empty(columns[key][row])} for row in range(count)]
    space = space or space_of(configs, what)
    ordered = sorted(curve, key=lambda column: curve[column])
    rows = []
    for row, config in enumerate(configs):
        points = [(curve[column], _number(columns, column, row, what)) for column in ordered]
        points.append((1.0, _number(columns, score, row, what)))
        cost = _number(columns, seconds, row, what) if seconds else math.nan
        rows.append(Row(_checked(config, space, row, what), points, cost))
    if isinstance(source, str | os.PathLike):
        name = name or Path(source).stem
    return task_of_rows(
        rows,
        space,
        what=what,
        name=name or "table",
        dataset=dataset,
        metric=metric,
        direction=direction,
        reference=reference,
        features=features,
    )


def _columns(source: Any) -> tuple[dict[str, list[Any]], str]:
    if isinstance(source, Mapping):
        columns = {str(key): list(values) for key, values in source.items()}
        what = "the table"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        what = f"table {path.name}"
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{what} must be a .csv or a .parquet file, or columns by name")
        columns = _csv(path, what) if path.suffix == ".csv" else _parquet(path, what)
    else:
        raise TypeError(f"source must be a .csv or .parquet file or columns by name, got {type(source).__name__}")
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be equally long, got {lengths}")
    if not columns or not any(lengths.values()):
        raise ValueError(f"{what} is empty")
    return columns, what


def _csv(path: Path, what: str) -> dict[str, list[Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError(f"{what} is empty")
    header = [column.strip() for column in lines[0]]
    _check_header(header, what)
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise ValueError(f"{what}: row {number} has {len(line)} cells, the header has {len(header)}")
    return {key: [_value(line[index]) for line in lines[1:]] for index, key in enumerate(header)}


def _parquet(path: Path, what: str) -> dict[str, list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(".parquet files need pyarrow: pip install pyarrow, or save the table as .csv") from error
    table = parquet.read_table(path)
    _check_header(table.column_names, what)
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _check_header(header: Sequence[str], what: str) -> None:
    if twice := [key for key, count in Counter(header).items() if count > 1]:
        raise ValueError(f"{what} has the columns {twice} twice; rename or remove one of each")


def _value(cell: str) -> Any:
    cell = cell.strip()
    if cell.lower() in _WORDS:
        return _WORDS[cell.lower()]
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _number(columns: Mapping[str, list[Any]], column: str, row: int, what: str) -> float:
    value = columns[column][row]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise ValueError(f"{what}: column {column!r} must hold numbers, got {value!r} in row {row + 1}")
    return float(value)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _checked(config: Config, space: Space, row: int, what: str) -> Config:
    """A configuration of the space, in which whole floats may stand for integers and None for nothing."""
    config = {key: value for key, value in config.items() if key in space.dimensions}
    for key, dimension in space.dimensions.items():
        if key not in config and holds(dimension, None) and space.active(key, config):
            config[key] = None
        value = config.get(key)
        if isinstance(value, float) and value.is_integer() and holds(dimension, int(value)):
            config[key] = int(value) if not holds(dimension, value) else value
    try:
        space.check(config)
    except ValueError as error:
        raise ValueError(f"{what}: row {row + 1} is of another space: {error}") from None
    return {key: config[key] for key in space.dimensions if key in config}
