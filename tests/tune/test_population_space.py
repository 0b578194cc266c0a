"""Search spaces of populations."""

import collections

import numpy as np
import pytest
import torch

from metafast.tune.population import Choice, FloatRange, IntRange
from metafast.tune.population._space import Space

DIMENSIONS = [
    Choice([32, 64, 128]),
    Choice(["relu", "gelu", None]),
    Choice([7]),
    IntRange(1, 5),
    IntRange(1, 1000, log=True),
    IntRange(-3, 3),
    FloatRange(-1.0, 2.0),
    FloatRange(1e-5, 1.0, log=True),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=repr)
def test_values_are_inside_and_survive_the_way_to_the_unit_interval_and_back(dimension):
    rng = np.random.default_rng(0)
    for unit in [0.0, 1.0, *rng.random(50)]:
        value = dimension.decode(unit)
        code = dimension.encode(value)
        assert not dimension.ordered or 0 <= code <= 1
        if dimension.count is None:
            assert dimension.low <= value <= dimension.high
            assert dimension.decode(code) == pytest.approx(value, rel=1e-12)
        else:
            assert value in dimension.values() and type(value) in {type(v) for v in dimension.values()}
        near = dimension.perturb(value, rng)
        assert near in dimension.values() if dimension.count else dimension.low <= near <= dimension.high
    if dimension.ordered and dimension.count:
        codes = [dimension.encode(value) for value in dimension.values()]
        assert codes == sorted(codes) and len(set(codes)) == dimension.count


@pytest.mark.parametrize("dimension", [Choice([1, 2, 3, 4]), IntRange(1, 4), IntRange(5, 8)])
def test_each_value_has_the_same_chance(dimension):
    counts = collections.Counter(dimension.decode(unit) for unit in (np.arange(400) + 0.5) / 400)
    assert set(counts.values()) == {100}


def test_what_is_ordered():
    assert Choice([1, 2.5, 3]).ordered and Choice([7]).ordered
    assert not Choice([2, 1]).ordered and not Choice([False, True]).ordered and not Choice(["a", "b"]).ordered


def test_perturbation_multiplies_by_factors_and_moves_integers_and_neighbours():
    rng = np.random.default_rng(0)
    assert {FloatRange(0.0, 10.0).perturb(5.0, rng) for _ in range(20)} == {4.0, 6.0}
    assert {IntRange(1, 100).perturb(2, rng) for _ in range(20)} == {1, 3}
    assert {IntRange(1, 100).perturb(50, rng) for _ in range(20)} == {40, 60}
    assert {Choice([1, 2, 3]).perturb(2, rng) for _ in range(20)} == {1, 3}
    assert {Choice([1, 2, 3]).perturb(3, rng) for _ in range(20)} == {2, 3}


def test_the_first_configurations_cover_each_range():
    space = Space({"x": FloatRange(0.0, 1.0), "b": [1, 2, 4, 8], "k": Choice(["a", "b"], fixed=True)})
    configs = space.spread(np.random.default_rng(0), 4)
    assert {type(config["x"]) for config in configs} == {float}  # as a record can hold it
    assert sorted(int(config["x"] * 4) for config in configs) == [0, 1, 2, 3]
    assert sorted(config["b"] for config in configs) == [1, 2, 4, 8]
    assert sorted(config["k"] for config in configs) == ["a", "a", "b", "b"]
    assert configs == space.spread(np.random.default_rng(0), 4)


def test_candidates_are_all_values_or_draws_and_leave_what_is_fixed():
    rng = np.random.default_rng(0)
    space = Space({"b": [1, 2], "n": IntRange(1, 3), "k": Choice(["a", "b"], fixed=True)})
    config = {"b": 1, "n": 2, "k": "b"}
    found = space.candidates(config, rng, 6)
    assert len(found) == 6 and {(c["b"], c["n"]) for c in found} == {(b, n) for b in (1, 2) for n in (1, 2, 3)}
    drawn = space.candidates(config, rng, 5)
    assert len(drawn) == 5 and {c["k"] for c in [*found, *drawn]} == {"b"}
    assert space.perturb(config, rng, 0.5)["k"] == "b"
    assert len(Space({"x": FloatRange(0.0, 1.0), "b": [1, 2]}).candidates({"x": 0.5, "b": 1}, rng, 50)) == 50


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Choice([]), ValueError, "at least one value"),
        (lambda: Choice("abc"), TypeError, "list of values"),
        (lambda: Choice({1, 2}), TypeError, "list of values"),
        (lambda: Choice([1, 2, 1]), ValueError, "1 twice"),
        (lambda: Choice([torch.nn.ReLU]), TypeError, r"choices\[0\].*search over names"),
        (lambda: Choice([0, torch.ones(2)]), TypeError, r"choices\[1\].*search over names"),
        (lambda: Choice([1, 2], fixed=1), TypeError, "fixed must be True or False"),
        (lambda: IntRange(1.5, 3), TypeError, "low must be an integer"),
        (lambda: IntRange(3, 3), ValueError, "low must be below high"),
        (lambda: IntRange(0, 3, log=True), ValueError, "above 0 with log=True"),
        (lambda: FloatRange("0", 1.0), TypeError, "low must be a number"),
        (lambda: FloatRange(0.0, float("inf")), ValueError, "high must be finite"),
        (lambda: FloatRange(0.0, 1.0, log=True), ValueError, "above 0 with log=True"),
        (lambda: Space([("b", [1])]), TypeError, "space must be a mapping"),
        (lambda: Space({}), ValueError, "at least one hyperparameter"),
        (lambda: Space({1: [1]}), TypeError, "names in space must be strings"),
        (lambda: Space({"b": (1, 2)}), TypeError, r"space\['b'\].*IntRange\(low, high\)"),
        (lambda: Space({"b": []}), ValueError, r"space\['b'\]: choices must have"),
    ],
)
def test_what_is_no_space_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
