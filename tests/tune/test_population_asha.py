"""ASHA's promotions against the rule of the paper, on curves that are known."""

import math

import numpy as np
import pytest

from metafast.tune.population import ASHA, Choice, IntRange
from tests.tune.population_cases import play

RANKS = [5, 2, 8, 1, 9, 3, 7, 4, 6]  # value of each trial, at every rung


def search(trials=9, min_steps=1, reduction=3, **options):
    return ASHA({"layers": IntRange(1, 8)}, trials, min_steps, reduction=reduction, **options)


def jobs(legs):
    return [(leg.member, leg.number) for leg in legs]


def test_one_worker_does_the_jobs_of_algorithm_2():
    legs = play(search(), lambda leg, _: float(RANKS[leg.member]), steps=9)
    # after three results the best of three goes on; after four, trial 3 is the best third; after nine, trial 5 joins
    begun = [(0, 0), (1, 0), (2, 0), (1, 1), (3, 0), (3, 1), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (5, 1), (3, 2)]
    assert jobs(legs) == begun
    assert [(leg.start, leg.stop) for leg in legs if leg.member == 3] == [(0, 1), (1, 3), (3, 9)]


def test_all_of_a_rung_at_once_is_synchronous_halving():
    values = np.random.default_rng(0).random((4, 27))  # a value for each rung and trial
    legs = play(search(27), lambda leg, _: values[leg.number, leg.member], steps=27, free=27)
    alive = set(range(27))
    for rung in range(4):
        assert {member for member, number in jobs(legs) if number == rung} == alive
        alive = set(sorted(alive, key=lambda member: values[rung, member])[: len(alive) // 3])


@pytest.mark.parametrize("seed", range(5))
def test_each_promotion_is_among_the_best_of_its_rung_and_the_highest_possible(seed):
    rng = np.random.default_rng(seed)
    curves = rng.random((30, 4)).cumsum(1)
    legs = play(search(30, reduction=2, mode="max"), lambda leg, _: curves[leg.member, leg.number], steps=8)

    def promotable(before):
        found = set()
        for rung in range(3):
            there = sorted((leg for leg in before if leg.number == rung), key=lambda leg: -leg.value)
            went_on = {leg.member for leg in before if leg.number == rung + 1}
            found |= {(leg.member, rung + 1) for leg in there[: len(there) // 2]} - {(m, rung + 1) for m in went_on}
        return found

    for position, leg in enumerate(legs):
        possible = promotable(legs[:position])
        if leg.number == 0:
            assert not possible or position == 0
        else:
            assert (leg.member, leg.number) in possible
            assert leg.number == max(number for _, number in possible)
    assert not promotable(legs)
    assert {member for member, number in jobs(legs) if number == 0} == set(range(30))


def test_legs_under_way_are_not_begun_twice():
    asha = search()
    done = [leg for leg in play(asha, lambda leg, _: float(RANKS[leg.member]), steps=9) if leg.number == 0]
    first = asha.todo(done, [], 1, 9, 0)
    assert jobs(first) == [(3, 1)]
    assert jobs(asha.todo(done, first, 5, 9, 0)) == [(1, 1), (5, 1)]
    assert asha.todo(done[:8], asha.todo(done[:8], [], 9, 9, 0), 9, 9, 0) == []  # two on rung 1, trial 8 under way


def test_a_failed_trial_counts_as_the_worst_and_never_goes_on():
    legs = play(search(), lambda leg, _: math.nan if leg.member < 3 else float(RANKS[leg.member]), steps=9)
    assert {leg.member for leg in legs if leg.number == 1} == {3, 5, 7}  # the best of those that did not fail
    nothing = play(search(), lambda leg, _: math.nan, steps=9)
    assert jobs(nothing) == [(member, 0) for member in range(9)]


def test_equal_values_go_by_number_and_configurations_by_seed():
    legs = play(search(), lambda leg, _: 1.0, steps=9)
    assert {leg.member for leg in legs if leg.number == 1} == {0, 1, 2}
    first = {leg.member: leg.config for leg in legs}
    again = {leg.member: leg.config for leg in play(search(), lambda leg, _: -float(leg.member), steps=9, free=4)}
    assert first == again
    assert first != {leg.member: leg.config for leg in play(search(), lambda leg, _: 1.0, steps=9, seed=1)}
    assert len({leg.seed for leg in legs}) == len(legs)


def test_rungs_end_at_the_end():
    assert search(min_steps=1, reduction=3).rungs(9) == [1, 3, 9]
    assert search(min_steps=1, reduction=3).rungs(26) == [1, 3, 26]
    assert search(min_steps=10, reduction=2).rungs(19) == [19]
    assert search(min_steps=10, reduction=2).rungs(10) == [10]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: search(trials=0), ValueError, "trials must be at least 1"),
        (lambda: search(min_steps=0), ValueError, "min_steps must be at least 1"),
        (lambda: search(reduction=1), ValueError, "reduction must be at least 2"),
        (lambda: search(reduction=2.5), TypeError, "reduction must be an integer"),
        (lambda: search(mode="best"), ValueError, 'mode must be "min"'),
        (lambda: ASHA({"b": Choice([1])}, 4, 10).check_steps(9), ValueError, "steps must be at least min_steps=10"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
