"""PB2's decisions, on trainings that are formulas."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from metafast.tune.population import PB2, Choice, FloatRange
from tests.tune.population_cases import play

ROUNDS = 12
X = {"x": FloatRange(0.0, 1.0)}


def drifting(leg, before):
    """The best x moves during the training, whose improvements shrink."""
    best = 0.5 + 0.4 * math.sin(2 * math.pi * leg.number / ROUNDS)
    return before + 0.85**leg.number * (1 - 4 * (leg.config["x"] - best) ** 2)


def test_bandit_beats_random_perturbation_where_the_best_value_moves():
    def reached(explore):
        searches = [PB2(X, 4, interval=1, mode="max", explore=explore) for _ in range(6)]
        legs = [play(search, drifting, ROUNDS, seed) for seed, search in enumerate(searches)]
        return np.array([max(leg.value for leg in done if leg.number == ROUNDS - 1) for done in legs])

    bandit, perturb = reached("bandit"), reached("perturb")
    assert bandit.mean() > perturb.mean() + perturb.std() / 2
    assert (bandit > perturb).sum() >= 4


def test_an_unordered_choice_follows_what_is_good_now():
    def switching(leg, before):
        gains = (1.0, 0.7, 0.4) if leg.number < 10 else (0.4, 0.7, 1.0)
        return before + gains["abc".index(leg.config["kind"])]

    legs = play(PB2({"kind": ["a", "b", "c"]}, 4, interval=1, mode="max"), switching, 24)
    kinds = ["".join(sorted(leg.config["kind"] for leg in legs if leg.number == number)) for number in range(24)]
    assert "".join(kinds[4:10]).count("a") >= 18  # of 24
    assert "".join(kinds[18:]).count("c") >= 16


def test_order_of_reports_does_not_matter():
    search = PB2({**X, "b": [1, 2, 4]}, 5, interval=2)
    done, shuffled = [], []
    for _ in range(5):
        legs = search.todo(done, [], 5, 10, 3)
        assert legs == search.todo(shuffled, [], 1, 10, 3)
        ended = [replace(leg, value=leg.config["x"] / (1 + leg.number) + 0.1 * leg.member) for leg in legs]
        done += ended
        random.Random(0).shuffle(ended)
        shuffled += ended
    assert len(done) == 25 and search.todo(done, [], 5, 10, 3) == []


def test_the_weak_take_over_the_strong():
    search = PB2({**X, "layers": Choice([1, 2, 3, 4, 5, 6, 7, 8], fixed=True)}, 8, interval=10)
    first = search.todo([], [], 9, 30, 0)
    assert [(leg.member, leg.start, leg.stop, leg.source) for leg in first] == [(m, 0, 10, None) for m in range(8)]
    assert sorted(leg.config["layers"] for leg in first) == list(range(1, 9))
    done = [replace(leg, value=float(leg.member)) for leg in first]
    second = search.todo(done, [], 9, 30, 0)
    assert [leg.member for leg in second if leg.source is not None] == [6, 7]  # the largest losses
    for leg in second:
        origin = first[leg.member if leg.source is None else leg.source]
        assert leg.config["layers"] == origin.config["layers"] and (leg.start, leg.stop) == (10, 20)
        assert leg.source in (None, 0, 1) and (leg.config == origin.config) == (leg.source is None)


def test_waits_for_a_round_and_goes_on_in_the_middle_of_one():
    search = PB2(X, 4, interval=1)
    first = search.todo([], [], 2, 3, 0)
    done = [replace(leg, value=float(leg.member)) for leg in first]
    assert search.todo(done[:3], first[3:], 1, 3, 0) == []
    assert search.todo(done[:3], [], 1, 3, 0) == first[3:]
    second = search.todo(done, [], 1, 3, 0)
    ended = replace(second[2], value=0.0)
    assert search.todo([*done, ended], [], 1, 3, 0) == [leg for leg in second if leg.member != 2]


def test_members_that_failed_take_over_and_their_values_are_avoided():
    def breaking(leg, before):
        return math.nan if leg.config["x"] > 0.5 else before + 1 - leg.config["x"]

    legs = play(PB2(X, 6, interval=1, mode="max", kappa=0.5), breaking, 10)
    for number in range(9):
        failed = {leg.member for leg in legs if leg.number == number and leg.error}
        next_ones = [leg for leg in legs if leg.number == number + 1]
        assert {leg.member for leg in next_ones if leg.source is not None} >= failed
        assert not {leg.source for leg in next_ones} & failed
    tried = [leg.config["x"] for leg in legs if leg.number > 1 and leg.source is not None]
    assert np.mean([x > 0.5 for x in tried]) <= 0.2


def test_one_survivor_is_enough_and_none_ends_the_search():
    legs = play(PB2(X, 4, interval=1), lambda leg, _: 1.0 if leg.member == 3 or leg.number else math.nan, 2)
    assert [leg.source for leg in legs[4:]] == [3, 3, 3, None]
    assert len(play(PB2(X, 4, interval=1), lambda leg, _: math.nan, 3)) == 4
    with pytest.warns(RuntimeWarning, match="all members failed after step 1"):
        assert len(play(PB2(X, 4, interval=1), lambda leg, _: math.nan if leg.number else 1.0, 3)) == 8


@pytest.mark.parametrize("value", [0.0, 1e300, -1e-300])
def test_values_without_information_are_no_obstacle(value):
    assert len(play(PB2(X, 4, interval=1), lambda leg, _: value, 4)) == 16
    assert len(play(PB2(X, 4, interval=1), lambda leg, _: value * (-1) ** leg.member, 4)) == 16


def test_perturbation_stays_near():
    search = PB2({"x": FloatRange(0.1, 10.0), "b": [1, 2, 4, 8]}, 4, interval=1, explore="perturb", resample=0.0)
    legs = play(search, lambda leg, _: float(leg.member), 6)
    by = {(leg.member, leg.number): leg for leg in legs}
    for leg in legs:
        if leg.source is not None:
            origin = by[leg.source, leg.number - 1].config
            assert leg.config["x"] / origin["x"] == pytest.approx(0.8) or leg.config["x"] == pytest.approx(
                min(1.2 * origin["x"], 10.0)
            )
            assert leg.config["b"] in (origin["b"] / 2, origin["b"], origin["b"] * 2)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"size": 1}, ValueError, "size must be at least 2"),
        ({"interval": 0}, ValueError, "interval must be at least 1"),
        ({"quantile": 0.6}, ValueError, "quantile must be at least 0 and at most 0.5"),
        ({"quantile": "0.25"}, TypeError, "quantile must be a number"),
        ({"explore": "random"}, ValueError, 'explore must be "bandit"'),
        ({"kappa": math.nan}, ValueError, "kappa must be at least 0"),
        ({"resample": 2}, ValueError, "resample must be at least 0 and at most 1"),
        ({"mode": None}, ValueError, 'mode must be "min"'),
    ],
)
def test_what_does_not_fit_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        PB2(X, **{"interval": 10, **options})
    with pytest.raises(ValueError, match="steps must be at least interval=10"):
        PB2(X, interval=10).check_steps(9)
