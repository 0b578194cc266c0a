"""Figures: what they draw, that legends cover nothing, what they refuse."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the plots extra is not installed")

from metafast import plots
from metafast.runs import Run

CURVES = {f"run {i}": (np.arange(1, 30), np.exp(-np.arange(1, 30) / (5 + i))) for i in range(3)}
NAN = float("nan")


def overlaps(figure):
    """Whether the legend of the figure covers any axes."""
    figure.draw_without_rendering()
    boxes = [legend.get_window_extent() for legend in figure.legends]
    return any(box.overlaps(ax.get_window_extent()) for box in boxes for ax in figure.axes)


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_loss_curves_in_one_panel():
    figure = plots.loss_curves(CURVES, title="a title", legend_title="run")
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines] == labels(figure) == list(CURVES)
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "step", "training loss")
    assert not overlaps(figure)


def test_panels_share_axes_colors_and_one_legend():
    figure = plots.loss_curves({"left": CURVES, "right": {"run 2": CURVES["run 2"]}}, ordered=True)
    left, right = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["left", "right"]
    assert left.get_ylim() == right.get_ylim()
    assert left.lines[2].get_color() == right.lines[0].get_color()
    assert labels(figure) == list(CURVES)
    assert not overlaps(figure)


def test_many_lines_have_colors_of_their_own():
    figure = plots.loss_curves({f"run {i}": ([1, 2], [1.0, 0.5]) for i in range(12)})
    assert len({tuple(line.get_color()) for line in figure.axes[0].lines}) == 12


def test_a_run_draws_its_metric(tmp_path):
    with Run.create(tmp_path) as run:
        run.log(step=1, loss=1.0, other=3.0)
        run.log(step=2, loss=0.5, other=2.0)
    figure = plots.loss_curves({"a": run, "b": Run.open(run.path).curve("loss")}, metric="other")
    assert figure.axes[0].lines[0].get_ydata().tolist() == [3.0, 2.0]
    assert figure.axes[0].lines[1].get_ydata().tolist() == [1.0, 0.5]


def test_gaps_smoothing_and_top():
    values = [1.0, NAN, 3.0, 0.0, float("inf"), 5.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = plots.loss_curves({"a": (range(6), values)}).axes[0].lines[0]
        assert np.isnan(line.get_ydata()).tolist() == [False, True, False, True, True, False]
        smooth = plots.loss_curves({"a": (range(6), values)}, smooth=2, top=4.0).axes[0]
    assert smooth.lines[0].get_ydata()[[0, 2, 3, 5]].tolist() == [1.0, 3.0, 1.5, 5.0]
    assert smooth.get_ylim()[1] == 4.0


def test_nothing_finite_still_draws():
    plots.loss_curves({"a": ([1, 2], [NAN, NAN])}).draw_without_rendering()
    plots.learning_rates({"a": [(1, [0.0]), (2, [NAN])]}).draw_without_rendering()


def test_learning_rates_take_histories():
    figure = plots.learning_rates({"tensor": [(1, [1e-2, 1e-4]), (2, [1e-1, 1e-5])], "fixed": ([1, 2], [1e-3, 1e-3])})
    ax = figure.axes[0]
    assert np.allclose(ax.lines[0].get_ydata(), 1e-3)
    assert len(ax.collections) == 1  # the range of the two rates
    crowded = plots.learning_rates({str(i): [(1, [1e-2, 1e-4]), (2, [1e-1, 1e-5])] for i in range(4)})
    assert len(crowded.axes[0].collections) == 0
    assert not overlaps(crowded)


def test_learning_rates_of_an_optimizer():
    optim = pytest.importorskip("metafast.optim")
    weight = torch.nn.Parameter(torch.ones(3))
    opt = optim.AdamW([weight], lr=1e-3, hypergrad="global")
    for _ in range(5):
        opt.zero_grad()
        weight.square().sum().backward()
        opt.step()
    line = plots.learning_rates({"global": opt.lr_history}).axes[0].lines[0]
    assert len(line.get_ydata()) == len(opt.lr_history) > 0


def test_accuracy_by_rate():
    results = {"fixed": {1e-2: 0.9, 1e-4: 0.5}, "adapted": {1e-4: 0.9, 1e-2: 0.91}}
    figure = plots.accuracy_by_rate(results, line_of="fixed", zoom=10, title="a title")
    whole, close = figure.axes
    assert list(whole.lines[0].get_xdata()) == [1e-4, 1e-2]
    assert whole.get_ylim() == (0, 103)
    assert close.get_ylim()[0] == pytest.approx(81)
    assert labels(figure) == ["fixed", "adapted", "1 point below the best\nfixed"]
    assert not overlaps(figure)
    assert len(plots.accuracy_by_rate(results).axes) == 1


def test_saved_files_are_the_same_each_time(tmp_path):
    first = plots.save(plots.loss_curves(CURVES), tmp_path / "new" / "a.b")
    second = plots.save(plots.loss_curves(CURVES), str(tmp_path / "c"))
    assert [file.name for file in first] == ["a.b.png", "a.b.svg"]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    with pytest.raises(TypeError, match="figure must be a matplotlib Figure, got list"):
        plots.save([], tmp_path / "x")


def test_the_look_ends_with_the_plot():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.loss_curves(CURVES)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: plots.loss_curves([]), TypeError, "curves must map labels to curves, got list"),
        (lambda: plots.loss_curves({}), ValueError, "must not be empty"),
        (lambda: plots.loss_curves({"panel": {}}), ValueError, "must not be empty"),
        (lambda: plots.loss_curves({"a": ([1], [1.0]), "b": {}}), TypeError, "mixes"),
        (lambda: plots.loss_curves({"a": 3}), TypeError, r"'a' must be \(steps, values\) or a Run, got int"),
        (lambda: plots.loss_curves({"a": ([1, 2], [1.0])}), ValueError, "equally long"),
        (lambda: plots.loss_curves({"a": ([], [])}), ValueError, "at least 1"),
        (lambda: plots.loss_curves(CURVES, smooth=0), ValueError, "smooth must be an integer of at least 1"),
        (lambda: plots.loss_curves(CURVES, top=-1), ValueError, "top must be positive"),
        (lambda: plots.learning_rates({"a": 3}), TypeError, r"'a' must be a list of \(step, rates\)"),
        (lambda: plots.learning_rates({"a": []}), ValueError, "must have entries"),
        (lambda: plots.learning_rates({"a": [(1, [1.0]), (2, [1.0, 2.0])]}), ValueError, "same number of rates"),
        (lambda: plots.accuracy_by_rate({"a": 1}), TypeError, "results must map a method"),
        (lambda: plots.accuracy_by_rate({"a": {}}), ValueError, "must not be empty"),
        (lambda: plots.accuracy_by_rate({"a": {0.0: 0.5}}), ValueError, "rate must be positive"),
        (lambda: plots.accuracy_by_rate({"a": {0.1: 95.0}}), ValueError, "accuracy from 0 to 1, got 95.0"),
        (lambda: plots.accuracy_by_rate({"a": {0.1: 0.5}}, line_of="b"), ValueError, r"line_of must be one of \['a'\]"),
        (lambda: plots.accuracy_by_rate({"a": {0.1: 0.5}}, zoom=0), ValueError, "zoom must be above 0"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_without_matplotlib_the_error_says_how_to_get_it():
    code = "import sys; sys.modules['matplotlib'] = None\nfrom metafast import plots\n"
    code += "try:\n    plots.loss_curves({'a': ([1], [1.0])})\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'metafast[plots]'" in done.stdout, done.stderr
