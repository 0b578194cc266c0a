"""Figures of meta-learning: validation over training, and what each inner step gains; both with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metafast.plots._figures import _grid, _legend, _panels, _quiet_log_axis
from metafast.plots._style import MARKERS, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def meta_learning_curves(
    curves: Mapping[str, Any],
    *,
    title: str | None = None,
    ylabel: str = "validation accuracy (%)",
    xlabel: str = "meta-step",
    percent: bool = True,
    log: bool = False,
) -> Figure:
    """A validation metric over meta-training with its 95 % interval, one line per label, or one panel per label.

    Args:
        curves: label to `(steps, means, half widths)`, each a sequence of one length. A mapping of mappings gives
            panels side by side, with common axes and one legend.
        title: above the figure.
        ylabel: of the vertical axis.
        xlabel: of the horizontal axis.
        percent: the values are shares from 0 to 1, drawn in percent. Default True.
        log: a logarithmic vertical axis, for losses, where the values span a decade. Default False.

    Returns:
        The figure; the legend stands outside the axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no curve.
        ValueError: no curves, or unequal lengths.

    Example:
        >>> plot = meta_learning_curves({"MAML": ([0, 100, 200], [0.2, 0.6, 0.8], [0.02, 0.02, 0.01])})
        >>> len(plot.axes[0].lines)
        1
    """
    panels = {
        name: {label: _band(f"{name}: {label}" if name else label, curve) for label, curve in lines.items()}
        for name, lines in _panels("curves", curves).items()
    }
    return _draw(panels, title, ylabel, xlabel, percent, log, markers=False)


def adaptation_curves(
    curves: Mapping[str, Any],
    *,
    title: str | None = None,
    ylabel: str = "test accuracy (%)",
    percent: bool = True,
    log: bool = False,
    trained: int | None = None,
) -> Figure:
    """A metric before adaptation and after each inner step, with its 95 % interval, one line per learner.

    Args:
        curves: label to a list of `(mean, half width)`, from step 0 on, as `Evaluation.per_step` is.
            A mapping of mappings gives panels side by side.
        title: above the figure.
        ylabel: of the vertical axis.
        percent: the values are shares from 0 to 1, drawn in percent. Default True.
        log: a logarithmic vertical axis, for losses, where the values span a decade. Default False.
        trained: a thin line marks this number of steps, that of the training.

    Returns:
        The figure; the legend stands outside the axes.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no curve.
        ValueError: no curves, or an empty one.

    Example:
        >>> plot = adaptation_curves({"MAML": [(0.2, 0.01), (0.7, 0.02), (0.9, 0.01)], "random": [(0.2, 0.01)] * 3})
        >>> len(plot.axes[0].lines)
        2
    """
    panels: dict[str, dict[str, Band]] = {}
    for name, lines in _panels("curves", curves).items():
        panels[name] = {}
        for label, steps in lines.items():
            means, widths = _columns(f"{name}: {label}" if name else label, steps)
            panels[name][label] = _band(label, (range(len(means)), means, widths))
    plot = _draw(panels, title, ylabel, "inner steps", percent, log, markers=True)
    from matplotlib.ticker import MaxNLocator

    for axes in plot.axes:
        if trained is not None:
            axes.axvline(trained, color="#777777", linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return plot


def _draw(
    panels: Mapping[str, Mapping[str, Band]],
    title: str | None,
    ylabel: str,
    xlabel: str,
    percent: bool,
    log: bool,
    markers: bool,
) -> Figure:
    scale = 100.0 if percent else 1.0
    extent = _decades(panels, scale) if log else None
    with style():
        plain = {name: {label: (band[0], band[1]) for label, band in lines.items()} for name, lines in panels.items()}
        plot, axes, colors = _grid(plain, title, False)
        for ax, lines in zip(axes, panels.values(), strict=True):
            for index, (label, (steps, means, widths)) in enumerate(lines.items()):
                low, high = scale * (means - widths), scale * (means + widths)
                ax.fill_between(steps, low, high, color=colors[label], alpha=0.16, linewidth=0)
                marker = MARKERS[index % len(MARKERS)] if markers and len(steps) <= 25 else None
                ax.plot(
                    steps, scale * means, color=colors[label], label=label, marker=marker, markeredgecolor="white",
                    markeredgewidth=0.8,
                )  # fmt: skip
            ax.set_xlabel(xlabel)
        if extent is not None:
            for ax in axes:
                ax.set_yscale("log")
            _quiet_log_axis(axes[0].yaxis, extent)
        axes[0].set_ylabel(ylabel)
        _legend(plot, axes, None)
    return plot


def _decades(panels: Mapping[str, Mapping[str, Band]], scale: float) -> tuple[float, float] | None:
    """The smallest and largest value drawn, where a logarithmic axis has room for ticks and for all of them."""
    means = scale * np.concatenate([band[1] for lines in panels.values() for band in lines.values()])
    low, high = float(np.nanmin(means)), float(np.nanmax(means))
    return (low, high) if low > 0 and high >= 10 * low else None


def _columns(label: str, steps: Any) -> tuple[list[float], list[float]]:
    try:
        rows = [(float(step[0]), float(step[1])) for step in steps]
    except (TypeError, IndexError, ValueError) as error:
        raise TypeError(f"{label!r} must be a list of (mean, half width), got {type(steps).__name__}") from error
    return [row[0] for row in rows], [row[1] for row in rows]


def _band(label: str, curve: Sequence[Any]) -> Band:
    try:
        steps, means, widths = (np.asarray(part, dtype=np.float64) for part in curve)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{label!r} must be (steps, means, half widths), got {type(curve).__name__}: {error}"
        ) from error
    if steps.ndim != 1 or steps.shape != means.shape or steps.shape != widths.shape or steps.size == 0:
        raise ValueError(
            f"{label!r}: steps, means and half widths must be equally long, at least 1, "
            f"got {steps.shape}, {means.shape} and {widths.shape}"
        )
    return steps, means, np.nan_to_num(widths)  # a single episode has no interval
