import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from metafast.plots import (
    RegretCurve,
    calibration_curves,
    predicted_and_true,
    regret_curves,
    save,
    share_bars,
)

RUNS = list(range(1, 26))
CURVES = {
    f"method {i}": RegretCurve(RUNS, [0.5 / (run * (i + 1)) for run in RUNS], [0.01] * len(RUNS)) for i in range(9)
}


def test_regret_curves_can_be_told_apart_and_are_in_the_legend_once(tmp_path):
    plot = regret_curves({"one": CURVES, "two": CURVES}, bands=["method 0"], title="regret")
    lines = plot.axes[0].lines
    assert len({(line.get_color(), str(line.get_linestyle()), str(line._dash_pattern)) for line in lines}) == 9
    assert [text.get_text() for text in plot.legends[0].get_texts()] == list(CURVES)
    assert len(plot.axes[0].collections) == 1
    assert all(file.stat().st_size > 5_000 for file in save(plot, tmp_path / "regret"))


def test_zero_regret_and_missing_bands_are_drawn():
    curve = RegretCurve([1, 2, 3], [0.1, 0.0, 0.0], [float("nan")] * 3)
    plot = regret_curves({"one": {"ours": curve}}, bands=["ours"])
    assert min(plot.axes[0].lines[0].get_ydata()) > 0 and not plot.axes[0].collections


def test_bars_calibration_and_points():
    shares = {name: {"1 run": 0.2, "5 runs": 0.9} for name in ("a", "b", "c")}
    assert [patch.get_width() for patch in share_bars(shares, title="t").axes[0].patches] == pytest.approx(
        [20, 20, 20, 90, 90, 90]
    )
    assert len(calibration_curves([0.5, 0.9], {"x": [0.4, 0.8], "y": [0.5, 0.9]}).axes[0].lines) == 3
    assert len(predicted_and_true({"a": [(0, 1)], "b": [(1, 1), (0, 0)]}).axes) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: regret_curves({}), ValueError, "at least one panel"),
        (lambda: regret_curves({"a": {"b": ([1], [2])}}), TypeError, r"panels\['a'\]\['b'\] must be a RegretCurve"),
        (lambda: regret_curves({"a": {"b": RegretCurve([1], [], [])}}), ValueError, "equally long, got 1, 0 and 0"),
        (lambda: share_bars({}), ValueError, "the same bars"),
        (lambda: share_bars({"a": {"x": 1.0}, "b": {"y": 1.0}}), ValueError, "the same bars"),
        (lambda: calibration_curves([0.5], {"a": [0.1, 0.2]}), ValueError, "1 values, got"),
        (lambda: predicted_and_true({"a": []}), ValueError, "pairs"),
    ],
)
def test_what_cannot_be_drawn_says_so(call, error, message):
    with pytest.raises(error, match=message):
        call()
