"""The figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metafast.plots._style import COLORS, MARKERS, figure, ordered_colors, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
MOST_BANDS = 3


def loss_curves(
    curves: Mapping[str, Any],
    *,
    metric: str = "loss",
    title: str | None = None,
    ylabel: str = "training loss",
    legend_title: str | None = None,
    ordered: bool = False,
    smooth: int = 1,
    top: float | None = None,
) -> Figure:
    """A metric over steps on a log axis, one line per label, or one panel per label.

    Args:
        curves: label to curve. A curve is `(steps, values)`, what `Run.curve` returns, or a `Run` (its `metric`).
            A mapping of mappings gives panels side by side, with common axes and one legend.
        metric: which metric of a `Run`.
        title: above the figure.
        ylabel: of the vertical axis.
        legend_title: above the legend.
        ordered: the labels are an ordered series, such as starting rates: colours go from dark to light.
        smooth: length of a running mean, in logged points.
        top: where the vertical axis ends, so that one exploding run does not flatten the others.

    Returns:
        The figure; the legend stands outside the axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no curve.
        ValueError: no curves, unequal lengths, `smooth` below 1, or `top` not positive.

    Example:
        >>> plot = loss_curves({"fixed": ([1, 2, 3], [2.0, 1.0, 0.5]), "adapted": ([1, 2, 3], [2.0, 0.7, 0.2])})
        >>> len(plot.axes[0].lines)
        2
    """
    if isinstance(smooth, bool) or not isinstance(smooth, int) or smooth < 1:
        raise ValueError(f"smooth must be an integer of at least 1, got {smooth!r}")
    if top is not None and not (math.isfinite(top) and top > 0):
        raise ValueError(f"top must be positive and finite, got {top!r}")
    panels = {
        name: {label: _line(f"{name}: {label}" if name else label, curve, metric) for label, curve in lines.items()}
        for name, lines in _panels("curves", curves).items()
    }
    with style():
        plot, axes, colors = _grid(panels, title, ordered)
        for ax, lines in zip(axes, panels.values(), strict=True):
            for label, (steps, values) in lines.items():
                ax.plot(steps, _positive(_running_mean(values, smooth)), color=colors[label], label=label)
            ax.set_yscale("log")
            ax.set_xlabel("step")
        axes[0].set_ylabel(ylabel)
        if top is not None:
            axes[0].set_ylim(top=top)
        _quiet_log_axis(axes[0].yaxis, _extent(panels, top))
        _legend(plot, axes, legend_title)
    return plot


def learning_rates(
    histories: Mapping[str, Any],
    *,
    title: str | None = None,
    ylabel: str = "learning rate",
    legend_title: str | None = None,
    ordered: bool = False,
) -> Figure:
    """Learning rates over steps on a log axis; where there are several rates at a step, their geometric mean.

    With up to three lines in a panel, a band shows the range of the rates too.

    Args:
        histories: label to history. A history is an optimizer's `lr_history`: a list of `(step, rates)` with one rate
            or a list of rates; or a pair of arrays `(steps, rates)`. A mapping of mappings gives panels side by side.
        title: above the figure.
        ylabel: of the vertical axis.
        legend_title: above the legend.
        ordered: as in `loss_curves`.

    Returns:
        The figure; the legend stands outside the axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no history.
        ValueError: no histories, or an empty one.

    Example:
        >>> plot = learning_rates({"per tensor": [(1, [1e-3, 1e-4]), (2, [2e-3, 2e-4])]})
        >>> plot.axes[0].get_yscale()
        'log'
    """
    panels = {
        name: {label: _history(f"{name}: {label}" if name else label, value) for label, value in lines.items()}
        for name, lines in _panels("histories", histories).items()
    }
    with style():
        plot, axes, colors = _grid(panels, title, ordered)
        for ax, lines in zip(axes, panels.values(), strict=True):
            for label, (steps, rates) in lines.items():
                with np.errstate(divide="ignore", invalid="ignore"):
                    mean = np.exp(np.log(rates).mean(1))
                if rates.shape[1] > 1 and len(lines) <= MOST_BANDS:
                    ax.fill_between(
                        steps, _positive(rates.min(1)), rates.max(1), color=colors[label], alpha=0.13, linewidth=0
                    )
                ax.plot(steps, _positive(mean), color=colors[label], label=label)
            ax.set_yscale("log")
            ax.set_xlabel("step")
        axes[0].set_ylabel(ylabel)
        _quiet_log_axis(axes[0].yaxis)
        _legend(plot, axes, legend_title)
    return plot


def accuracy_by_rate(
    results: Mapping[str, Mapping[float, float]],
    *,
    title: str | None = None,
    ylabel: str = "test accuracy (%)",
    line_of: str | None = None,
    zoom: float | None = None,
) -> Figure:
    """Final accuracy against the starting learning rate, one line per method: the flatter, the less tuning it needs.

    Args:
        results: method to {starting rate: accuracy from 0 to 1}.
        title: above the figure.
        ylabel: of the vertical axis.
        line_of: a method; a dashed line marks one point below its best rate.
        zoom: adds a panel that shows only the points of accuracy below the best of all, this many.

    Returns:
        The figure; the legend stands outside the axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: results of another shape.
        ValueError: nothing to draw, a rate that is not positive, an accuracy outside 0 to 1, an unknown `line_of`,
                or a `zoom` out of range.

    Example:
        >>> plot = accuracy_by_rate({"fixed": {1e-4: 0.5, 1e-3: 0.9}, "adapted": {1e-4: 0.9, 1e-3: 0.9}})
        >>> plot.axes[0].get_xscale()
        'log'
    """
    if not isinstance(results, Mapping) or not all(isinstance(row, Mapping) for row in results.values()):
        raise TypeError(f"results must map a method to {{rate: accuracy}}, got {type(results).__name__}")
    if not results or not all(results.values()):
        raise ValueError("results must not be empty, nor any of its methods")
    for method, row in results.items():
        for rate, value in row.items():
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"results[{method!r}]: a starting rate must be positive and finite, got {rate!r}")
            if not 0 <= value <= 1:
                raise ValueError(f"results[{method!r}][{rate!r}] must be an accuracy from 0 to 1, got {value!r}")
    if line_of is not None and line_of not in results:
        raise ValueError(f"line_of must be one of {list(results)}, got {line_of!r}")
    if zoom is not None and not (math.isfinite(zoom) and 0 < zoom <= 100):
        raise ValueError(f"zoom must be above 0 and at most 100 points, got {zoom!r}")
    with style():
        plot = figure(6.8 if zoom is None else 10.2, 3.9)
        axes = list(plot.subplots(1, 1 if zoom is None else 2, squeeze=False)[0])
        for ax in axes:
            for index, (method, row) in enumerate(results.items()):
                rates = sorted(row)
                ax.plot(
                    rates,
                    [100 * row[rate] for rate in rates],
                    color=COLORS[index % len(COLORS)],
                    marker=MARKERS[index % len(MARKERS)],
                    # earlier ones are larger, so that points that coincide all show
                    markersize=max(5.0, 9.0 - 1.5 * index),
                    markeredgecolor="white",
                    markeredgewidth=0.8,
                    label=method,
                    zorder=3 + index,
                )
            if line_of is not None:
                best = 100 * max(results[line_of].values())
                label = f"1 point below the best\n{line_of}"
                ax.axhline(best - 1, color="#777777", linewidth=1.2, linestyle=(0, (4, 3)), label=label)
            ax.set_xscale("log")
            _quiet_log_axis(ax.xaxis)
            ax.set_xlabel("starting learning rate")
        axes[0].set_ylim(0, 103)
        axes[0].set_yticks(range(0, 101, 20))
        axes[0].set_ylabel(ylabel)
        if zoom is not None:
            top = 100 * max(max(row.values()) for row in results.values())
            axes[1].set_ylim(top - zoom, top + 0.06 * zoom)
            axes[1].set_title(f"the top {zoom:g} points")
        _title(plot, title)
        _legend(plot, axes, None)
    return plot


def _panels(argument: str, value: Any) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument} must map labels to curves, got {type(value).__name__}; write {{'my run': curve}}")
    nested = [isinstance(inner, Mapping) for inner in value.values()]
    if any(nested) and not all(nested):
        raise TypeError(f"{argument} mixes curves and mappings of curves; give either one panel or all panels")
    panels = value if all(nested) and nested else {"": value}
    if not value or not all(panels.values()):
        raise ValueError(f"{argument} must not be empty, nor any of its panels")
    return panels


def _line(label: str, curve: Any, metric: str) -> Line:
    if hasattr(curve, "curve") and callable(curve.curve):  # a Run
        curve = curve.curve(metric)
    try:
        steps, values = (np.asarray(part, dtype=np.float64) for part in curve)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label!r} must be (steps, values) or a Run, got {type(curve).__name__}: {error}") from error
    if steps.ndim != 1 or steps.shape != values.shape or steps.size == 0:
        raise ValueError(
            f"{label!r}: steps and values must be equally long, at least 1, got {steps.shape} and {values.shape}"
        )
    return steps, values


def _history(label: str, history: Any) -> Line:
    try:
        if isinstance(history, tuple) and len(history) == 2:
            steps, rates = history
            rows = [np.atleast_1d(np.asarray(row, dtype=np.float64)) for row in rates]
        else:
            steps = [entry[0] for entry in history]
            rows = [np.atleast_1d(np.asarray(entry[1], dtype=np.float64)) for entry in history]
        at = np.asarray(steps, dtype=np.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise TypeError(f"{label!r} must be a list of (step, rates), got {type(history).__name__}: {error}") from error
    if not rows or at.shape != (len(rows),) or len({row.shape for row in rows}) > 1 or rows[0].ndim != 1:
        raise ValueError(f"{label!r} must have entries, each with the same number of rates, got {len(rows)} entries")
    return at, np.stack(rows)


def _running_mean(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    if length == 1:
        return values
    known = np.isfinite(values)
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - length, 0)
    sums, counts = (np.concatenate([[0.0], np.cumsum(x)]) for x in (np.where(known, values, 0.0), known))
    mean = (sums[ends] - sums[starts]) / np.maximum(counts[ends] - counts[starts], 1)
    return np.where(known, mean, np.nan)  # a gap stays a gap


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A log axis has no place for zero, and a gap says so."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _grid(
    panels: Mapping[str, Mapping[str, Any]], title: str | None, ordered: bool
) -> tuple[Figure, list[Axes], dict[str, Any]]:
    count = len(panels)
    plot = figure(6.8 if count == 1 else min(3.3 * count + 1.2, 15), 3.9)
    axes = list(plot.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])
    for ax, name in zip(axes, panels, strict=True):
        ax.set_title(name)
    _title(plot, title)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    if ordered or len(labels) > len(COLORS):
        palette: Sequence[Any] = ordered_colors(len(labels))
    else:
        palette = COLORS
    return plot, axes, dict(zip(labels, palette, strict=False))


def _title(plot: Figure, title: str | None) -> None:
    if title:
        plot.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")


def _legend(plot: Figure, axes: list[Axes], title: str | None) -> None:
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if len(entries) > 1 or title:
        plot.legend(list(entries.values()), list(entries), loc="outside right upper", title=title, alignment="left")


def _extent(panels: Mapping[str, Mapping[str, Line]], top: float | None) -> tuple[float, float]:
    values = np.concatenate([_positive(line[1]) for lines in panels.values() for line in lines.values()])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 10.0)
    return low, high if top is None else min(high, top)


def _quiet_log_axis(axis: Any, extent: tuple[float, float] | None = None) -> None:
    """Ticks with labels only: powers of ten, or 1, 2 and 5 where the axis spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_minor_locator(NullLocator())
    if extent is not None and extent[1] / extent[0] < 100:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
