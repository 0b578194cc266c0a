import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metafast.hpo import Choice, FloatRange, IntRange, Space, when

ISSUE = {
    "lr": [1e-3, 1e-2, 1e-1],
    "batch_size": [32, 64, 128],
    "layers": [2, 3, 4],
    "width": [64, 128, 256],
    "dropout": [0.1, 0.3, 0.5],
    "optimizer": ["sgd", "adam"],
}
DIMENSIONS = st.one_of(
    st.lists(st.integers(-5, 300), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["a", "b", "c", None, True]), min_size=1, max_size=4, unique=True),
    st.builds(lambda low, more: IntRange(low, low + more), st.integers(-3, 3), st.integers(1, 3)),
    st.builds(lambda low, more: IntRange(low, low * more, log=True), st.integers(1, 3), st.integers(2, 3)),
    st.builds(lambda low, more: FloatRange(low, low * more, log=True), st.floats(1e-6, 10), st.floats(1.5, 1e4)),
)


@st.composite
def spaces(draw):
    """Spaces in which later hyperparameters may depend on earlier ones."""
    dimensions = draw(st.dictionaries(st.sampled_from("pqrstu"), DIMENSIONS, min_size=1, max_size=5))
    names, conditions = list(dimensions), []
    for number, child in enumerate(names[1:]):
        parent = draw(st.sampled_from(names[: number + 1]))
        values = dimensions[parent]
        if not isinstance(values, FloatRange) and draw(st.booleans()):
            values = values.values() if isinstance(values, IntRange) else values
            conditions.append(when(parent, draw(st.lists(st.sampled_from(values), min_size=1, max_size=2)), child))
    order = draw(st.permutations(names))
    return Space({name: dimensions[name] for name in order}, conditions=conditions)


@settings(deadline=None, max_examples=40)
@given(spaces(), st.integers(0, 2**32), st.integers(1, 40))
def test_all_that_comes_out_of_a_space_is_in_it(space, seed, count):
    rng = np.random.default_rng(seed)
    candidates = space.candidates(rng, count)
    for config in [space.draw(rng), *candidates]:
        space.check(config)
        assert [name for name in space.dimensions if name in config] == list(config)
        for name, unit in space.units(config).items():
            scale = space.scales[name]
            top = 1 if scale.numeric else space.dimensions[name].count - 1
            assert -1e-9 <= unit <= top + 1e-9
    keys = {space.key(config) for config in candidates}
    assert len(keys) == len(candidates) <= count
    if space.size is not None and space.size <= 300:
        grid = space.grid()
        assert len(grid) == len({space.key(config) for config in grid}) == space.size
        assert len(candidates) == min(count, space.size)
        for config in grid:
            space.check(config)
    assert Space.of(space.describe()) == space


def test_the_space_of_the_issue():
    space = Space(**ISSUE)
    assert space.size == 486 == len(space.candidates(np.random.default_rng(0), 486))
    middle = {"lr": 1e-2, "batch_size": 64, "layers": 3, "width": 128, "dropout": 0.3, "optimizer": "adam"}
    units = space.units(middle)
    assert units["lr"] == pytest.approx(0.5) and units["layers"] == 0.5 and units["optimizer"] == 1.0
    assert units["width"] == pytest.approx(1 / 3) and space.units({"width": 256}) == {"width": 1.0}
    assert [name for name, scale in space.scales.items() if scale.log] == ["lr"]
    assert Space(ISSUE) == space != Space({**ISSUE, "layers": [2, 3]})


def test_lists_of_numbers_are_read_by_ratio_where_their_ends_are_far_apart():
    assert Space(w=[64, 128, 512]).units({"w": 128})["w"] == pytest.approx(1 / 3)
    assert Space(w=[0, 1, 100]).units({"w": 1})["w"] == pytest.approx(0.01)
    assert Space(w=[4]).units({"w": 4})["w"] == 0.5
    assert Space(w=[True, False]).units({"w": False})["w"] == 1.0
    assert Space(w=[256, 64, 8]).units({"w": 8})["w"] == 0.0


def test_a_spread_covers_each_range_evenly():
    space = Space(x=FloatRange(0.0, 1.0), n=IntRange(1, 4), lr=FloatRange(1e-4, 1.0, log=True))
    configs = space.candidates(np.random.default_rng(3), 16)
    assert sorted(int(config["x"] * 16) for config in configs) == list(range(16))
    assert [sum(config["n"] == n for config in configs) for n in (1, 2, 3, 4)] == [4, 4, 4, 4]
    assert sorted(int(space.units(config)["lr"] * 16) for config in configs) == list(range(16))


def test_conditions_leave_out_what_is_not_active():
    space = Space(
        optimizer=["sgd", "adam", "rms"],
        momentum=[0.0, 0.9],
        nesterov=[True, False],
        beta=FloatRange(0.9, 0.999),
        conditions=[
            when("optimizer", ["sgd", "rms"], "momentum"),
            when("momentum", 0.9, "nesterov"),
            when("optimizer", "sgd", "nesterov"),
            when("optimizer", "adam", "beta"),
        ],
    )
    assert space.size is None
    space.check({"optimizer": "adam", "beta": 0.95})
    space.check({"optimizer": "rms", "momentum": 0.9})
    space.check({"optimizer": "sgd", "momentum": 0.9, "nesterov": True})
    with pytest.raises(ValueError, match=r"'momentum', .* only when 'optimizer' is one of \['sgd', 'rms'\]"):
        space.check({"optimizer": "adam", "beta": 0.95, "momentum": 0.9})
    with pytest.raises(ValueError, match="has no 'momentum'"):
        space.check({"optimizer": "rms"})
    finite = Space({n: d for n, d in space.dimensions.items() if n != "beta"}, conditions=space.conditions[:3])
    assert finite.size == len(finite.grid()) == 1 + 2 + 3
    assert {len(config) for config in finite.grid()} == {1, 2, 3}


def test_values_are_checked():
    space = Space(b=[True, "x"], n=IntRange(1, 3), f=FloatRange(0.1, 1.0))
    good = {"b": True, "n": np.int64(2), "f": 1}
    space.check(good)
    for change in ({"b": 1}, {"n": 2.5}, {"n": 4}, {"f": math.nan}, {"f": "much"}, {"f": True}, {"b": np.zeros(3)}):
        (name,) = change
        with pytest.raises(ValueError, match=f"^{name} must be "):
            space.check({**good, **change})
    with pytest.raises(ValueError, match=r"has \['z'\], not in the space: it has \['b', 'n', 'f'\]"):
        space.check({**good, "z": 1})
    with pytest.raises(ValueError, match=r"has 'z', not in the space: it has \['b', 'n', 'f'\]"):
        space.units({"z": 1})
    with pytest.raises(ValueError, match=r"'y' is none of \[True, 'x'\]"):
        space.units({"b": "y"})
    with pytest.raises(TypeError, match="must be a mapping of names to values, got list"):
        space.check([1])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, ValueError, "at least one hyperparameter"),
        (({"lr": []},), {}, ValueError, r"space\['lr'\]: choices must have at least one value"),
        (({"lr": [1, 1]},), {}, ValueError, r"space\['lr'\].*1 twice"),
        (
            ({"lr": 0.1},),
            {},
            TypeError,
            r"space\['lr'\] must be a list of choices, Choice, IntRange or FloatRange, got 0.1",
        ),
        (({3: [1]},), {}, TypeError, "names in space must be strings, got 3"),
        (([1, 2],), {}, TypeError, "space must be a mapping .*got list"),
        (({"lr": [1]},), {"lr": [2]}, ValueError, r"\['lr'\] both in the mapping and by keyword"),
        ((), {"a": [1, 2], "conditions": when("a", 1, "a")}, TypeError, "conditions must be a list of when"),
        ((), {"a": [1, 2], "conditions": ["a"]}, TypeError, "conditions must be made by when.*got 'a'"),
        (
            (),
            {"a": [1, 2], "conditions": [when("a", 1, "b")]},
            ValueError,
            r"name 'b', which is not in .*\['a'\]",
        ),
        ((), {"a": [1, 2], "b": [1], "conditions": [when("a", 3, "b")]}, ValueError, "'a' is never 3"),
        ((), {"a": [1, 2], "b": [1], "conditions": [when("a", True, "b")]}, ValueError, "'a' is never True"),
        ((), {"a": [1, 2], "conditions": [when("a", 1, "a")]}, ValueError, r"go in a circle among \['a'\]"),
        (
            (),
            {"a": [1], "b": [1], "c": [1], "conditions": [when("a", 1, "b"), when("b", 1, "a")]},
            ValueError,
            r"go in a circle among \['a', 'b'\]",
        ),
        (
            (),
            {"a": FloatRange(0.0, 1.0), "b": [1], "conditions": [when("a", 0.5, "b")]},
            ValueError,
            "on 'a' need a choice or a range of integers",
        ),
        (
            (),
            {"a": [1, 2], "b": [1], "c": [1], "conditions": [when("a", 1, "b"), when("a", 2, "c"), when("b", 1, "c")]},
            ValueError,
            "contradict each other: no value of 'a' makes 'c' active",
        ),
    ],
)
def test_bad_spaces(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Space(*arguments, **options)


def test_bad_conditions_and_questions():
    with pytest.raises(ValueError, match="needs what depends on it"):
        when("a", 1)
    with pytest.raises(ValueError, match="at least one value"):
        when("a", [], "b")
    with pytest.raises(TypeError, match="must be strings, got 1"):
        when("a", 1, 1)
    with pytest.raises(ValueError, match=r"486 configurations, at most 10 were asked for; use candidates\(rng, 10\)"):
        Space(ISSUE).grid(10)
    with pytest.raises(ValueError, match="a continuum"):
        Space(x=FloatRange(0.0, 1.0)).grid()
    with pytest.raises(ValueError, match="count must be at least 1"):
        Space(ISSUE).candidates(np.random.default_rng(0), 0)
    for dimensions in (3, {"a": {"type": "Range"}}, {"a": 3}):
        with pytest.raises(ValueError, match=r"no description of a space, as Space.describe\(\) writes it"):
            Space.of({"dimensions": dimensions, "conditions": []})


def test_choices_may_be_lists():
    space = Space(layers=Choice([[64], [64, 32]]), lr=[0.1, 0.2])
    assert len(space.candidates(np.random.default_rng(0), 3)) == 3
    assert Space.of(space.describe()) == space
