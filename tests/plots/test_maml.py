"""The figures of meta-learning."""

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from metafast.plots import adaptation_curves, meta_learning_curves, save


def test_learning_curves_show_means_in_percent_with_bands(tmp_path):
    curve = ([0, 10, 20], [0.2, 0.5, 0.9], [0.05, 0.04, 0.01])
    figure = meta_learning_curves({"MAML": curve, "ANIL": curve}, title="Omniglot")
    axes = figure.axes[0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([20, 50, 90])
    low, high = axes.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((15, 91))
    assert [file.stat().st_size > 5000 for file in save(figure, tmp_path / "curve")] == [True, True]


def test_adaptation_starts_before_the_first_step():
    points = [(40.0, 0.5), (1.0, 0.2), (0.5, 0.1)]
    figure = adaptation_curves({"a": {"MAML": points}, "b": {"MAML": points}}, percent=False, log=True, trained=1)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0, 1, 2]
    assert figure.axes[0].get_yscale() == "log"
    narrow = adaptation_curves({"MAML": points[1:]}, percent=False, log=True)
    assert narrow.axes[0].get_yscale() == "linear"  # a log axis would show no tick


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: meta_learning_curves({}), ValueError),
        (lambda: meta_learning_curves({"a": ([1, 2], [1.0], [0.1])}), ValueError),
        (lambda: meta_learning_curves({"a": 3}), TypeError),
        (lambda: adaptation_curves({"a": [1.0, 2.0]}), TypeError),
        (lambda: adaptation_curves({"a": []}), ValueError),
    ],
)
def test_what_is_no_curve_is_refused(call, error):
    with pytest.raises(error):
        call()
