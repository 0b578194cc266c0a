"""The heat map of learning rates."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.colors import LogNorm

from metafast.plots import rate_heatmap, save


def test_a_row_for_each_layer_in_log_colours(tmp_path):
    plot = rate_heatmap([(0, [1e-3, 1e-3]), (10, [1e-2, 1e-5]), (30, [0.0, np.nan])], ["first", "second"], title="Net")
    axes, bar = plot.axes
    mesh = axes.collections[0]
    assert isinstance(mesh.norm, LogNorm) and (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((1e-5, 1e-2))
    assert mesh.get_array().tolist() == [[1e-3, 1e-2, None], [1e-3, 1e-5, None]]
    assert axes.get_xlim() == (0, 50) and axes.get_ylim() == (2, 0)  # the first on top
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second"]
    assert bar.get_ylabel() == "learning rate"
    assert [file.suffix for file in save(plot, tmp_path / "rates")] == [".png", ".svg"]


def test_many_layers_and_a_constant_rate():
    names = [f"layer{number}" for number in range(100)]
    axes = rate_heatmap(([5], [[0.1] * 100]), names).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == names[::3]
    norm = axes.collections[0].norm
    assert norm.vmin < 0.1 < norm.vmax and norm.vmax / norm.vmin == pytest.approx(10)


@pytest.mark.parametrize(
    ("history", "labels", "error", "text"),
    [
        ([(0, [1.0])], ["a", "b"], ValueError, "name each of the 1 rates, got 2"),
        ([(0, [1.0])], "a", TypeError, "list of texts"),
        ([(0, [1.0])], [1], TypeError, "list of texts"),
        ([(0, [0.0])], ["a"], ValueError, "positive and finite, got none"),
        ([(5, [1.0]), (5, [1.0])], ["a"], ValueError, "ascending steps"),
        ([], ["a"], ValueError, "must have entries"),
        (3, ["a"], TypeError, "list of \\(step, rates\\)"),
    ],
)
def test_what_is_no_heat_map(history, labels, error, text):
    with pytest.raises(error, match=text):
        rate_heatmap(history, labels)
