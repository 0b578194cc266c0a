"""The parts of the predictor, each against what it must be."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from metafast.hpo import FloatRange, IntRange, Predictor, Space, synthetic_tasks
from metafast.hpo._acquire import neighbours, worth
from metafast.hpo._encode import Axis, axes_of, canonical, canonical_names, distances, encode, matern
from metafast.hpo._known import Family, families_of
from metafast.hpo._portfolio import next_of_portfolio
from metafast.hpo._posterior import Grid, Joint, Mixture, condition
from metafast.hpo._scores import Scores, tame
from metafast.hpo._surrogate import Surrogate, recoded
from metafast.hpo._tuned import surprise, tuned
from tests.hpo.model_cases import line, tasks


@pytest.mark.parametrize("n", [0, 1, 6])
def test_beliefs_are_those_of_the_whole_mixture_of_processes(n):
    rng, points = np.random.default_rng(n), 20
    root = rng.standard_normal((2, points, points))
    known, new = root @ root.mT / points
    joint = Joint(rng.standard_normal(points), known[:n], new[:n], known.diagonal(), new.diagonal(), np.full(n, 0.05))
    grid = Grid(np.array([0.5, 1, 2]), np.array([0.3, 0.4, 0.3]), np.array([0.1, 1]), np.array([0.5, 0.5]), 0.3, 5.0)
    observed = rng.standard_normal(n)
    logs, means, variances = [], [], []
    for novelty in grid.novelties:
        for scale, weight in zip(grid.scales, grid.scale_weights, strict=True):
            full = scale**2 * (known + novelty * new) + grid.wide**2
            left, mean = full[:n, :n] + scale**2 * 0.05 * np.eye(n), grid.centre + scale * joint.mean
            log = multivariate_normal.logpdf(observed, mean[:n], left) if n else 0.0
            logs.append(math.log(0.5 * weight) + log)
            means.append(mean + full[:, :n] @ np.linalg.solve(left, observed - mean[:n]))
            taken = (full[:n] * np.linalg.solve(left, full[:n])).sum(0)
            variances.append(full.diagonal() - taken + scale**2 * 0.02)
    mixture, evidence = condition(joint, grid, observed, 0.02)
    assert evidence == pytest.approx(np.logaddexp.reduce(logs))
    np.testing.assert_allclose(mixture.weights, np.exp(logs - np.logaddexp.reduce(logs)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mixture.means, means, atol=1e-9)
    np.testing.assert_allclose(mixture.variances, variances, rtol=1e-8)


def test_a_mixture_of_one_is_a_gaussian():
    one = Mixture(np.ones(1), np.array([[1.0, -2.0]]), np.array([[4.0, 0.25]]))
    np.testing.assert_allclose(one.quantile(0.95), norm.ppf(0.95, [1, -2], [2, 0.5]), atol=1e-6)
    np.testing.assert_allclose(one.log_density(np.zeros(2)), norm.logpdf(0, [1, -2], [2, 0.5]))
    gain = np.maximum(np.random.default_rng(0).normal(1, 2, 400_000) - 0.5, 0).mean()
    assert one.improvement(0.5)[0] == pytest.approx(gain, rel=0.01)


@pytest.mark.parametrize(
    ("name", "short"),
    [("learningRate", "lr"), ("optimizer/lr", "lr"), ("wd", "weight_decay"), ("num-layers", "layers"), ("foo", "foo")],
)
def test_names_that_mean_the_same(name, short):
    assert canonical(name) == short


def test_two_names_never_become_one():
    assert canonical_names(["lr", "learning_rate", "eta"]) == {
        "lr": "lr",
        "learning_rate": "learning_rate",
        "eta": "eta",
    }


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-5, 1), st.floats(1e-6, 1e-3), st.floats(0.01, 10))
def test_values_lie_at_the_same_place_whatever_axis_they_come_from(value, low, high):
    one, two = Axis(True, True, 1e-4, 0.1), Axis(True, True, low, high)
    assert two.from_code(one, np.array([one.code(value)]))[0] == pytest.approx(two.code(value), abs=1e-9)
    straight = Axis(True, False, 0.0, 2.0)
    assert straight.from_code(one, np.array([one.code(value)]))[0] == pytest.approx(straight.code(value), abs=1e-9)


def test_codes_of_hard_values():
    log, momentum = Axis(True, True, 1e-3, 1.0), Axis(True, False, 0.0, 0.99, to_one=True)
    assert log.code(0) == -0.5 and math.isnan(log.code(None)) and math.isnan(log.code("auto"))
    assert momentum.code(0.9) == pytest.approx(0.5) and math.isfinite(momentum.code(1.0))
    names = Axis(False)
    assert names.code("Adam") == names.code(" adam") != names.code("sgd")
    moved = log.from_code(names, np.array([names.code("sgd")]))
    assert math.isnan(moved[0])


def test_absent_hyperparameters_are_alike():
    axes = {"a": Axis(True), "b": Axis(False)}
    codes = encode(axes, [{"a": 0.5, "b": "x"}, {"b": "y"}, {"a": 0.0}, {"b": "x"}])
    squares = distances(list(axes.values()), codes, codes)
    np.testing.assert_array_equal(squares, squares.T)
    np.testing.assert_allclose(squares[0], [0.0, 2.0, 1.25, 1.0])
    assert np.linalg.eigvalsh(matern(squares, 0.5)).min() > -1e-9


def test_a_table_gives_back_its_own_values():
    family = families_of(tasks())[0]
    names = tuple(family.axes)
    weights, left = family.weights(names, family.codes, 0.3, 1e-6)
    np.testing.assert_allclose(weights @ family.tasks[0].curves[:, -1], family.tasks[0].curves[:, -1], atol=1e-2)
    assert left.max() < 1e-3
    far = family.codes[:1] + 9.0
    assert family.weights(names, far, 0.3, 1e-6)[1][0] > 0.99


def test_tasks_that_share_a_table_share_a_family():
    assert [len(family.tasks) for family in families_of([*tasks(), line("a"), line("b")])] == [len(tasks()), 2]


def test_another_space_is_read_on_the_known_axes():
    known = axes_of(Space(lr=[1e-3, 1e-2, 1e-1], layers=[2, 3, 4]))
    own = axes_of(Space(num_layers=IntRange(1, 5), learning_rate=FloatRange(1e-4, 1.0, log=True)))
    codes = encode(own, [{"num_layers": 3, "learning_rate": 0.01}])
    order = [list(own).index(name) for name in ("lr", "layers")]
    np.testing.assert_allclose(recoded(own, known, ("lr", "layers"), codes[:, order]), [[0.5, 0.5]])


@pytest.mark.parametrize(
    ("metric", "direction", "scores", "kind"),
    [
        ("val_loss", "minimize", [], "log"),
        ("wer", "minimize", [0.5], "error"),
        ("accuracy", "maximize", [], "same"),
        ("energy", "minimize", [1.0, 100.0], "log"),
        ("energy", "minimize", [-1.0, 100.0], "negative"),
        ("energy", "minimize", [], "negative"),
        ("loss", "minimize", [-0.5], "negative"),
    ],
)
def test_how_metrics_are_read(metric, direction, scores, kind):
    read = Scores.of(metric, direction, scores)
    assert read.kind == kind
    values = np.array([0.25, 0.5])
    np.testing.assert_allclose(read.outward(read.inward(values)), values)
    assert (np.diff(read.inward(values)) > 0) == (direction == "maximize")


@given(st.lists(st.sampled_from([0.1, 0.5, 0.9, math.nan, math.inf, -math.inf, -1e30]), min_size=1, max_size=9))
def test_tamed_scores_are_finite_and_keep_the_best(scores):
    values = np.array(scores)
    for reference in (None, 0.2):
        calm = tame(values, reference)
        assert np.isfinite(calm).all()
        if np.isfinite(values).any():
            assert calm.max() >= values[np.isfinite(values)].max()


def test_the_portfolio_covers_what_the_first_leaves_open():
    family = families_of([line("a", 0.0), line("b", 0.25), line("c", 1.0), line("d", 1.0)])[0]
    values = np.array([task.curves[:, -1] for task in family.tasks], float)
    weights = np.full(4, 0.25)
    first = next_of_portfolio(family.tasks, values, weights, 0)
    second = next_of_portfolio(family.tasks, np.concatenate([values[:, [first]], values], 1), weights, 1)
    assert {first, second} in ({4, 0}, {4, 1})


def test_cheap_ones_are_preferred_and_certainty_ends_in_the_mean():
    beliefs = Mixture(np.ones(1), np.array([[0.0, 0.0, -1.0]]), np.full((1, 3), 0.04))
    assert worth(beliefs, 0.0, np.array([2.0, 0.0, 0.0])).argmax() == 1
    assert worth(beliefs, 50.0, None).argmax() in (0, 1)


def test_neighbours_stay_in_the_space():
    space = Space(lr=FloatRange(1e-4, 1.0, log=True), width=IntRange(4, 8), kind=["a", "b"])
    start = {"lr": 1.0, "width": 8, "kind": "b"}
    near = neighbours(space, [start], np.random.default_rng(0), 20)
    for config in near:
        space.check(config)
    assert len({config["lr"] for config in near}) > 5 and {config["kind"] for config in near} == {"b"}


def test_settings_are_tuned_by_leaving_data_sets_out(monkeypatch):
    monkeypatch.setattr("metafast.hpo._tuned.TRIED", {"strength": (1e-3, 1.2)})
    said = []
    model = Surrogate(families_of(tasks(4)))
    found = tuned(model, said.append)
    assert found.strength > 1e-3 and len(said) == 1
    worse = Surrogate(model.families, replace(model.settings, strength=1e-3, novelties=(1e-3,)))
    assert surprise(model) < surprise(worse)
    family = model.families[0]
    alone = Surrogate([Family(family.axes, family.codes, family.tasks[:1])])
    assert tuned(alone) == alone.settings


def test_synthetic_tasks_are_those_of_their_seed():
    one, two = synthetic_tasks(2, seed=4), synthetic_tasks(1, seed=4)
    np.testing.assert_array_equal(one[0].curves, two[0].curves)
    assert not np.array_equal(one[0].curves, one[1].curves, equal_nan=True)
    assert len(Predictor(one).tasks) == 2
