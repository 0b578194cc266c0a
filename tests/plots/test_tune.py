"""The figure of tuning."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from metafast.plots import CostPanel, hyperparameter_trajectories, metric_by_cost, population_schedules, save
from metafast.tune import Tuned
from metafast.tune.population import Leg, PopulationResult


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


def test_a_population_with_the_past_of_the_best_in_colour():
    def leg(member, number, rate, kind, value, source=None):
        return Leg(member, number, 5 * number, 5 * number + 5, {"rate": rate, "kind": kind}, 0, source, value)

    legs = [leg(0, 0, 1.0, "a", 3.0), leg(1, 0, 20.0, "b", 1.0), leg(0, 1, 4.0, "b", 0.5, source=1)]
    legs += [Leg(1, 1, 5, 10, {"rate": 3.0, "kind": "b"}, 0, None, None, "ValueError: no")]
    figure = population_schedules(PopulationResult(Path("nowhere"), legs, "min"), title="Population")
    value, rate, kind = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["value", "rate", "kind"]
    assert value.lines[2].get_xydata().tolist() == [[5, 1.0], [10, 0.5]]  # from where it took over
    assert len(value.lines) == 4 and value.lines[-1].get_xydata().tolist() == [[5, 1.0], [10, 0.5]]
    assert rate.get_yscale() == "log" and [label.get_text() for label in rate.get_yticklabels()] == ["1", "4", "20"]
    assert rate.lines[0].get_xydata().tolist() == [[0, 20.0], [5, 20.0], [5, 4.0], [10, 4.0]]
    assert [label.get_text() for label in kind.get_yticklabels()] == ["a", "b"]
    assert kind.lines[0].get_ydata().tolist() == [1, 1, 1, 1]
    assert len(rate.collections[0].get_segments()) == 3  # the failed leg is not drawn
    with pytest.raises(TypeError, match="result must be"):
        population_schedules({"rate": 1})


def test_results_against_costs_in_one_colour_per_label():
    accuracy = CostPanel(
        {"static": (1.0, [0.5, 0.7]), "adaptive": (1.2, [0.8])}, {"search": ([1, 2, 3], [0.4, 0.6, 0.6])}, ylabel="acc"
    )
    error = CostPanel({"adaptive": (1.3, [0.2])}, {"search": ([1, 2], [0.4, 0.3])}, {"naive": 0.5}, "MAE")
    figure = metric_by_cost({"A": accuracy, "B": error}, title="Both")
    left, right = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["A", "B"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["acc", "MAE"]
    colors = [{line.get_label(): line.get_color() for line in ax.lines} for ax in (left, right)]
    assert colors[0]["adaptive"] == colors[1]["adaptive"] != colors[0]["static"]
    assert left.lines[1].get_ydata().tolist() == pytest.approx([0.6])  # the mean of the seeds
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["adaptive", "naive", "search, so far", "static"]


@pytest.mark.parametrize(
    ("panels", "error", "text"),
    [
        ({}, ValueError, "at least one panel"),
        ({"A": {"static": (1, [1])}}, TypeError, "CostPanel"),
        ({"A": CostPanel({"static": (0.0, [1.0])})}, ValueError, "cost above 0"),
        ({"A": CostPanel({"static": (1.0, [])})}, ValueError, "at least one value"),
        ({"A": CostPanel({}, {"search": ([1, 2], [0.1])})}, ValueError, "got 2 and 1"),
    ],
)
def test_what_is_no_cost_panel(panels, error, text):
    with pytest.raises(error, match=text):
        metric_by_cost(panels)
