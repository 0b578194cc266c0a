"""Figures of predicted hyperparameters: regret over runs, shares, calibration, predicted against true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.plots._style import COLORS, MARKERS, figure, ordered_colors, style
from metafast.plots._tune import _panels, _title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))  # so that more methods than colours can be told apart


@dataclass(frozen=True)
class RegretCurve:
    """Mean regret of a method after some numbers of runs.

    Args:
        runs: ascending, from 1.
        mean: one per number.
        half: half of the confidence interval of each; NaN draws none.

    Example:
        >>> RegretCurve([1, 2], [0.5, 0.3], [0.1, 0.1]).mean
        [0.5, 0.3]
    """

    runs: Sequence[float]
    mean: Sequence[float]
    half: Sequence[float]


def regret_curves(
    panels: Mapping[str, Mapping[str, RegretCurve]],
    *,
    bands: Sequence[str] = (),
    title: str | None = None,
    ylabel: str = "normalized regret",
) -> Figure:
    """Regret over runs on a log axis, a panel for each suite of tasks.

    Args:
        panels: title to label to curve. Labels that panels share have one colour and one entry in the legend.
        bands: labels whose confidence interval is drawn; of all it would be one grey.
        title: above the figure.
        ylabel: of the vertical axes.

    Returns:
        The figure; the legend stands below the panels.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no `RegretCurve`.
        ValueError: no panels, or unequal lengths.

    Example:
        >>> plot = regret_curves({"digits": {"random": RegretCurve([1, 2], [0.5, 0.3], [0.1, 0.1])}})
        >>> plot.axes[0].get_yscale()
        'log'
    """
    if not panels:
        raise ValueError("panels must have at least one panel, got none")
    for name, lines in panels.items():
        for label, curve in lines.items():
            if not isinstance(curve, RegretCurve):
                raise TypeError(f"panels[{name!r}][{label!r}] must be a RegretCurve, got {type(curve).__name__}")
            if not len(curve.runs) == len(curve.mean) == len(curve.half) or not len(curve.runs):
                raise ValueError(
                    f"runs, mean and half of {label!r} in {name!r} must be equally long, "
                    f"got {len(curve.runs)}, {len(curve.mean)} and {len(curve.half)}"
                )
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    looks = {label: (COLORS[i % len(COLORS)], _DASHES[i // len(COLORS) % 3]) for i, label in enumerate(labels)}
    with style():
        plot, axes = _panels(len(panels), "runs", share=False)
        for ax, (name, lines) in zip(axes, panels.items(), strict=True):
            ax.set_title(name)
            ax.set_ylabel(ylabel)
            ax.set_yscale("log")
            lowest = min((m for c in lines.values() for m in c.mean if m > 0), default=1e-3)
            for label, curve in lines.items():
                color, dash = looks[label]
                mean, half = np.maximum(curve.mean, lowest / 2), np.asarray(curve.half, dtype=np.float64)
                if label in bands and np.isfinite(half).any():
                    low = np.maximum(mean - half, lowest / 2)
                    ax.fill_between(curve.runs, low, mean + half, color=color, alpha=0.15, linewidth=0)
                ax.plot(curve.runs, mean, color=color, linestyle=dash, label=label)
            ax.set_xlim(left=1)
        found = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        plot.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(3, len(found)))
        width, height = plot.get_size_inches()
        plot.set_size_inches(max(width, 6.5), height + 0.6 + 0.25 * -(-len(found) // 3))
        _title(plot, title)
    return plot


def share_bars(
    shares: Mapping[str, Mapping[str, float]], *, title: str | None = None, xlabel: str = "share of tasks (%)"
) -> Figure:
    """Shares as bars, a group for each method.

    Args:
        shares: method to bar, such as "after 3 runs", to a share from 0 to 1. Every method has the same bars.
        title: above the figure.
        xlabel: of the horizontal axis.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no methods, or methods with other bars.

    Example:
        >>> plot = share_bars({"random": {"1 run": 0.1, "5 runs": 0.4}, "ours": {"1 run": 0.8, "5 runs": 0.9}})
        >>> len(plot.axes[0].patches)
        4
    """
    bars = list(next(iter(shares.values()), {}))
    if not bars or any(list(each) != bars for each in shares.values()):
        raise ValueError(f"shares must give every method the same bars, got {[list(each) for each in shares.values()]}")
    with style():
        plot = figure(6.6, 0.5 + (0.13 * len(bars) + 0.18) * len(shares) + 0.5)
        ax = plot.subplots()
        thick = 0.84 / len(bars)
        for number, (bar, color) in enumerate(zip(bars, ordered_colors(len(bars)), strict=True)):
            places = [row + (number - (len(bars) - 1) / 2) * thick for row in range(len(shares))]
            ax.barh(places, [100 * each[bar] for each in shares.values()], 0.9 * thick, color=color, label=bar)
        ax.set_yticks(range(len(shares)), list(shares))
        ax.grid(visible=False, axis="y")
        ax.set_xlim(0, 100)
        ax.set_xlabel(xlabel)
        ax.set_ylim(len(shares) - 0.4, -0.6)
        plot.legend(loc="outside lower center", ncols=min(3, len(bars)))
        width, height = plot.get_size_inches()
        plot.set_size_inches(width, height + 0.25 * -(-len(bars) // 3))
        _title(plot, title)
    return plot


def calibration_curves(
    levels: Sequence[float], shares: Mapping[str, Sequence[float]], *, title: str | None = None
) -> Figure:
    """How often the truth is inside intervals, against how often it should be.

    Args:
        levels: probabilities of the intervals.
        shares: label to the share of the truth that is inside, one per level.
        title: above the figure.

    Returns:
        The figure; what is above the diagonal is too careful, below it too sure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no curves, or unequal lengths.

    Example:
        >>> plot = calibration_curves([0.5, 0.9], {"after 5 runs": [0.55, 0.9]})
        >>> plot.axes[0].get_xlabel()
        'probability of the interval'
    """
    if not shares or any(len(each) != len(levels) for each in shares.values()):
        raise ValueError(
            f"shares must give each label {len(levels)} values, got { {k: len(v) for k, v in shares.items()} }"
        )
    with style():
        plot = figure(4.6, 4.0)
        ax = plot.subplots()
        ax.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1.2)
        for i, ((label, share), color) in enumerate(zip(shares.items(), ordered_colors(len(shares)), strict=True)):
            ax.plot(levels, share, color=color, marker=MARKERS[i % len(MARKERS)], markersize=4, label=label)
        ax.set_xlabel("probability of the interval")
        ax.set_ylabel("share of scores inside")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        ax.legend()
        _title(plot, title)
    return plot


def predicted_and_true(
    panels: Mapping[str, Sequence[Sequence[float]]], *, title: str | None = None, what: str = "normalized regret"
) -> Figure:
    """Predicted values against true ones as points, a panel each.

    Args:
        panels: title to pairs (predicted, true).
        title: above the figure.
        what: they are.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no panels, or something that is no pair.

    Example:
        >>> plot = predicted_and_true({"digits": [(0.1, 0.2), (0.4, 0.3)]})
        >>> plot.axes[0].get_xlabel()
        'true normalized regret'
    """
    if not panels or not all(len(points) and all(len(each) == 2 for each in points) for points in panels.values()):
        raise ValueError("panels must map each title to pairs (predicted, true), at least one")
    with style():
        plot, axes = _panels(len(panels), f"true {what}", share=False)
        for ax, (name, points) in zip(axes, panels.items(), strict=True):
            guessed, true = np.asarray(points, dtype=np.float64).T
            ends = [min(true.min(), guessed.min()), max(true.max(), guessed.max())]
            ax.plot(ends, ends, color="#888888", linestyle="--", linewidth=1.2)
            ax.plot(true, guessed, "o", color=COLORS[0], markersize=3, alpha=0.35, markeredgewidth=0)
            ax.set_title(name)
            ax.set_ylabel("predicted")
        width, height = plot.get_size_inches()
        plot.set_size_inches(width, height + 0.5)
        _title(plot, title)
    return plot
