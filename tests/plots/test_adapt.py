"""The figures of few-shot adaptation."""

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from metafast.plots import accuracy_bars, accuracy_by_time, save

BARS = {"fine-tuning": (0.5, 0.01), "ours": (0.625, 0.02)}
POINTS = {"fine-tuning": (0.05, 0.5, 0.01), "ours": (0.5, 0.6, 0.01)}


def test_bars_are_percent_and_one_is_coloured(tmp_path):
    figure = accuracy_bars({"1-shot": BARS, "5-shot": BARS, "far": BARS, "farther": BARS}, highlight="ours")
    assert len(figure.axes) == 4
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([50, 62.5])
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0", "62.5"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["fine-tuning", "ours"]
    assert all(file.stat().st_size > 5000 for file in save(figure, tmp_path / "bars"))


def test_time_is_in_milliseconds_on_a_log_axis(tmp_path):
    figure = accuracy_by_time({"1-shot": POINTS, "5-shot": {"ours": (0.01, 0.9, float("nan"))}})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in axes.lines[:2]] == pytest.approx([50, 500])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fine-tuning", "ours"]
    assert all(file.stat().st_size > 5000 for file in save(figure, tmp_path / "time"))


@pytest.mark.parametrize("draw", [accuracy_bars, accuracy_by_time])
@pytest.mark.parametrize("panels", [{}, {"1-shot": {}}])
def test_nothing_to_draw_is_refused(draw, panels):
    with pytest.raises(ValueError, match="panels must map each title to at least one method"):
        draw(panels)


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="seconds of 'ours' in '1-shot' must be above 0, got 0"):
        accuracy_by_time({"1-shot": {"ours": (0, 0.5, 0.1)}})
