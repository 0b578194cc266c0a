"""Figures of few-shot adaptation: what each method reaches, and in what time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.plots._figures import _quiet_log_axis
from metafast.plots._style import COLORS, MARKERS, figure, style
from metafast.plots._tune import _title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # most panels side by side
OTHERS = "#9AA5B1"


def accuracy_bars(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    highlight: str | None = None,
    title: str | None = None,
    xlabel: str = "test accuracy (%)",
) -> Figure:
    """Accuracy of each method with its interval, a panel for each sort of tasks.

    Args:
        panels: title to method to `(mean, half width)`, shares from 0 to 1.
        highlight: the method drawn in colour; the others are grey.
        title: above the figure.
        xlabel: of the horizontal axes.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no panels, or an empty one.

    Example:
        >>> plot = accuracy_bars({"5-way 1-shot": {"fine-tuning": (0.5, 0.01), "ours": (0.6, 0.01)}})
        >>> [round(bar.get_width()) for bar in plot.axes[0].patches]
        [50, 60]
    """
    _check(panels)
    longest = max(len(methods) for methods in panels.values())
    with style():
        plot, axes = _grid(len(panels), 0.24 * longest + 0.75)
        for place, (ax, (name, methods)) in enumerate(zip(axes, panels.items(), strict=True)):
            means, halves = 100 * np.asarray(list(methods.values()), dtype=np.float64).T
            rows = np.arange(len(methods))
            colors = [COLORS[0] if label == highlight else OTHERS for label in methods]
            ax.barh(rows, means, 0.72, color=colors, xerr=np.nan_to_num(halves), error_kw={"elinewidth": 1.1})
            for row, mean in zip(rows, means, strict=True):
                ax.text(
                    1.5, float(row), f"{mean:.1f}", va="center", fontsize=8.5, color="white" if mean > 14 else "#222222"
                )
            ax.set_yticks(rows, list(methods) if place % COLUMNS == 0 or _labels_differ(panels) else [""] * len(rows))
            ax.set_ylim(len(rows) - 0.4, -0.6)
            ax.set_xlim(0, 100)
            ax.grid(visible=False, axis="y")
            ax.set_title(name, fontsize=10)
        _label_last_row(axes, xlabel)
        _title(plot, title)
    return plot


def accuracy_by_time(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str | None = None,
    xlabel: str = "milliseconds per task",
    ylabel: str = "test accuracy (%)",
) -> Figure:
    """Accuracy against the time that adapting to one task takes, a panel for each sort of tasks.

    Args:
        panels: title to method to `(seconds, mean, half width)`; accuracies are shares from 0 to 1.
        title: above the figure.
        xlabel: of the horizontal axes, which are logarithmic.
        ylabel: of the vertical axes.

    Returns:
        The figure; the legend stands below the panels.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no panels, an empty one, or a time that is not above 0.

    Example:
        >>> plot = accuracy_by_time({"5-way 1-shot": {"fine-tuning": (0.05, 0.5, 0.01), "ours": (0.04, 0.6, 0.01)}})
        >>> plot.axes[0].get_xscale()
        'log'
    """
    _check(panels)
    labels = list(dict.fromkeys(label for methods in panels.values() for label in methods))
    looks = {label: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    with style():
        plot, axes = _grid(len(panels), 2.6)
        for place, (ax, (name, methods)) in enumerate(zip(axes, panels.items(), strict=True)):
            for label, (seconds, mean, half) in methods.items():
                if not seconds > 0:
                    raise ValueError(f"seconds of {label!r} in {name!r} must be above 0, got {seconds!r}")
                color, marker = looks[label]
                ax.errorbar(
                    [1000 * seconds], [100 * mean], [100 * half], color=color, marker=marker, linestyle="none",
                    label=label, markersize=7, markeredgecolor="white",
                )  # fmt: skip
            times = [1000 * seconds for seconds, *_ in methods.values()]
            ax.set_xscale("log")
            ax.set_xlim(min(times) / 1.6, 1.6 * max(times))
            _quiet_log_axis(ax.xaxis, (min(times) / 1.6, 1.6 * max(times)))
            ax.set_title(name, fontsize=10)
            if place % COLUMNS == 0:
                ax.set_ylabel(ylabel)
        _label_last_row(axes, xlabel)
        found: dict[str, Any] = {}
        for ax in axes:
            found |= {text: handle for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        plot.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(4, len(found)))
        width, height = plot.get_size_inches()
        plot.set_size_inches(max(width, 6.5), height + 0.3 + 0.25 * -(-len(found) // 4))
        _title(plot, title)
    return plot


def _check(panels: Mapping[str, Mapping[str, Any]]) -> None:
    if not panels or not all(panels.values()):
        raise ValueError(f"panels must map each title to at least one method, got {dict(panels)}")


def _labels_differ(panels: Mapping[str, Mapping[str, Any]]) -> bool:
    return len({tuple(methods) for methods in panels.values()}) > 1


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    plot = figure(2.9 * columns + 1.2, height * rows + 0.5)
    axes = list(plot.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return plot, axes[:count]


def _label_last_row(axes: Sequence[Axes], xlabel: str) -> None:
    for ax in axes[max(0, len(axes) - COLUMNS) :]:
        ax.set_xlabel(xlabel)
