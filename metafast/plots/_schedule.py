"""Figures of learning-rate controllers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.plots._style import COLORS, figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def meta_training_curve(record: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """The score of the validation suite over meta-training, and which controller was kept.

    Args:
        record: `LRController.record`.
        title: above the figure.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: a record without validation.

    Example:
        >>> plot = meta_training_curve({"validation_scores": [[25, -0.3], [50, -0.5]], "kept_update": 50})
        >>> plot.axes[0].get_xlabel()
        'update'
    """
    scores = record.get("validation_scores")
    if not scores:
        raise ValueError("record must have validation_scores; the controller was trained without a validation suite")
    updates, values = np.asarray(scores, dtype=np.float64).T
    with style():
        plot = figure(6.0, 3.6)
        ax = plot.subplots()
        ax.plot(updates, values, color=COLORS[0])
        kept = record.get("kept_update")
        at = np.flatnonzero(updates == kept)
        if at.size:
            ax.plot(updates[at], values[at], "o", color=COLORS[1], label=f"kept: update {kept}")
            ax.legend()
        ax.set_xlabel("update")
        ax.set_ylabel("validation suite: log loss, lower is better")
        if title:
            ax.set_title(title)
    return plot
