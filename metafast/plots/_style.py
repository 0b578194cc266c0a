"""One look for all plots: readable at half width, safe for colour-blind readers, no ink without meaning."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette in an order whose neighbours differ in lightness too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.title_fontsize": 9.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "metafast",  # the same data give the same file
}


def matplotlib() -> Any:
    """The matplotlib package, or an error that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("metafast.plots needs matplotlib: pip install 'metafast[plots]'") from error
    return matplotlib


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of metafast's plots, for plots of your own.

    Raises:
        ImportError: matplotlib is missing.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with style():
        ...     axes = Figure().subplots()
        >>> axes.spines["top"].get_visible()
        False
    """
    with matplotlib().rc_context(STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, laid out so that nothing overlaps."""
    matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def ordered_colors(count: int) -> list[Any]:
    """Colours for an ordered series, dark to light, without the yellow that fades on white."""
    # perceptually even, and read the same with any colour vision
    table = matplotlib().colormaps["viridis"]
    return [table(0.0 if count == 1 else 0.88 * index / (count - 1)) for index in range(count)]


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> list[Path]:
    """Write a figure as PNG and SVG.

    Args:
        figure: from a function of this module, or any other figure.
        path: the file without an ending; the folder is made if missing.
        dpi: dots per inch of the PNG.

    Returns:
        The two files.

    Raises:
        TypeError: `figure` is no figure.
        OSError: the files cannot be written.

    Example:
        >>> import tempfile
        >>> from metafast.plots import loss_curves
        >>> plot = loss_curves({"AdamW": ([1, 2], [0.5, 0.4])})
        >>> [file.name for file in save(plot, tempfile.mkdtemp() + "/loss")]
        ['loss.png', 'loss.svg']
    """
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a matplotlib Figure, got {type(figure).__name__}")
    stem = Path(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    with style():
        figure.savefig(files[0], dpi=dpi)
        figure.savefig(files[1], metadata={"Date": None})
    return files
