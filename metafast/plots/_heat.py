"""The learning rate of every layer over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metafast.plots._figures import _history, _title
from metafast.plots._style import figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMED = 40  # rows whose names fit; of more, every second, third … is named


def rate_heatmap(
    history: Any,
    labels: Sequence[str],
    *,
    title: str | None = None,
    colorbar: str = "learning rate",
) -> Figure:
    """Learning rates of layers over steps as colours on a log scale: a row for each layer, the first on top.

    A rate that is zero or not finite stays blank.

    Args:
        history: a list of `(step, rates)` as `lr_history` of an optimizer and `LRController.history` are, or a pair of
            arrays `(steps, rates)`.
        labels: a name for each rate.
        title: above the figure.
        colorbar: what the colours are.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: something that is no history, or labels that are no texts.
        ValueError: an empty history, steps that do not ascend, no rate to draw, or as many labels as there are not
            rates.

    Example:
        >>> plot = rate_heatmap([(0, [1e-3, 1e-3]), (10, [2e-3, 1e-4])], ["conv.weight", "linear.weight"])
        >>> [text.get_text() for text in plot.axes[0].get_yticklabels()]
        ['conv.weight', 'linear.weight']
    """
    steps, rates = _history("history", history)
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels must be a list of texts, got {labels!r}")
    if len(labels) != rates.shape[1]:
        raise ValueError(f"labels must name each of the {rates.shape[1]} rates, got {len(labels)}")
    if not (np.diff(steps) > 0).all():
        raise ValueError("history must have ascending steps")
    with np.errstate(invalid="ignore"):
        drawn = np.ma.masked_where(~(np.isfinite(rates) & (rates > 0)), rates)
    if not drawn.count():
        raise ValueError("history must have a rate that is positive and finite, got none")
    with style():
        from matplotlib.colors import LogNorm

        rows = len(labels)
        plot = figure(8.2, min(max(2.4, 1.3 + 0.16 * rows), 8.0))
        axes = plot.subplots()
        low, high = float(drawn.min()), float(drawn.max())
        if high < 1.05 * low:  # a constant rate in the middle of a decade's colours
            low, high = low / math.sqrt(10), high * math.sqrt(10)
        mesh = axes.pcolormesh(
            _edges(steps), np.arange(rows + 1), drawn.T, norm=LogNorm(low, high), cmap="viridis", rasterized=True
        )
        every = -(-rows // MOST_NAMED)
        axes.set_yticks(np.arange(0, rows, every) + 0.5, [labels[row] for row in range(0, rows, every)], fontsize=7.5)
        axes.set_ylim(rows, 0)
        axes.grid(False)
        axes.set_xlabel("step")
        plot.colorbar(mesh, ax=axes, label=colorbar)
        _title(plot, title)
    return plot


def _edges(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rate holds from its step to the next; the last one as long as the one before."""
    last = steps[-1] - steps[-2] if len(steps) > 1 else 1.0
    return np.append(steps, steps[-1] + last)
