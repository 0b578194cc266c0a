"""The figure of tuning."""

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from metafast.plots import hyperparameter_trajectories, save
from metafast.tune import Tuned


def tuned(units, steps=4):
    history = [(10 * step, [10.0 ** (-3 + step) * (1 + unit) for unit in range(units)]) for step in range(steps)]
    return Tuned("tensor", {f"layer{unit}": 1.0 for unit in range(units)}, history)


def test_a_panel_for_each_beside_the_validation_loss(tmp_path):
    momentum = Tuned("global", {"all": 0.8}, [(0, [0.9]), (10, [0.85]), (20, [0.8])])
    state = {"lr": tuned(3), "momentum": momentum, "weights": tuned(20)}
    figure = hyperparameter_trajectories(state, [(10, 2.0), (20, 0.1)], title="Run")
    loss, rate, flipped, many = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["validation loss", "lr", "1 − momentum", "weights"]
    assert len(rate.lines) == 3 and rate.get_yscale() == "log" and loss.get_yscale() == "log"
    assert flipped.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.15, 0.2])
    assert flipped.get_yscale() == "linear"
    assert len(many.lines) == 1 and len(many.collections) == 1  # mean and range
    assert [file.suffix for file in save(figure, tmp_path / "tuning")] == [".png", ".svg"]


def test_without_a_validation_curve_and_with_values_that_are_not_positive():
    shift = Tuned("element", {"all": 1.0}, [(0, [-1.0]), (10, [float("nan")]), (20, [1.0])])
    figure = hyperparameter_trajectories({"shift": shift})
    assert len(figure.axes) == 1 and figure.axes[0].get_yscale() == "linear"


def test_a_tensor_whose_history_is_its_mean():
    large = Tuned("element", {str(i): 0.0 for i in range(300)}, [(0, [0.1]), (10, [0.2])])
    assert len(hyperparameter_trajectories({"weights": large}).axes[0].lines) == 1


@pytest.mark.parametrize(("state", "error"), [({}, ValueError), ([1], TypeError), ({"lr": [1.0]}, TypeError)])
def test_what_is_no_state_is_refused(state, error):
    with pytest.raises(error):
        hyperparameter_trajectories(state)
