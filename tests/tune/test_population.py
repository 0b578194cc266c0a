"""Populations: the bandit's closed forms, who takes over and who goes on, failures, processes, and the way back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metafast.runs import Run
from metafast.tune.population import ASHA, PB2, Choice, FloatRange, IntRange
from metafast.tune.population._bandit import GaussianProcess, Kernel, most_probable
from tests.tune import population_cases
from tests.tune.population_cases import INTERVAL, STEPS

QUIET = {"progress": False}


def pb2(space=None, size=4, **options):
    return PB2(space or {"speed": [1, 2, 3, 4]}, size, interval=INTERVAL, **{"mode": "max", **options})


def legs(result):
    return sorted((leg.number, leg.member, leg.config, leg.source, leg.value) for leg in result.legs)


# ---- the Gaussian process


def points(count, seed):
    rng = np.random.default_rng(seed)
    rows = np.column_stack([rng.integers(0, 4, count), rng.random(count), rng.integers(0, 3, count)])
    return torch.from_numpy(rows)


def test_the_posterior_is_the_textbooks():
    """Mean k K^-1 y and variance k(x, x) - k K^-1 k, by explicit inverses."""
    seen, look = points(7, 0), points(5, 1)
    targets = torch.from_numpy(np.random.default_rng(2).normal(size=7))
    unordered = torch.tensor([False, True])
    kernel = Kernel(*(torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.1, 0.2, 1.7)))

    def covariance(a, b):
        out = np.empty((len(a), len(b)))
        for i, p in enumerate(a.numpy()):
            for j, q in enumerate(b.numpy()):
                distance = (p[1] - q[1]) ** 2 + float(p[2] != q[2])
                out[i, j] = 1.7 * math.exp(-distance / (2 * 0.5**2)) * 0.9 ** (abs(p[0] - q[0]) / 2)
        return out

    inverse = np.linalg.inv(covariance(seen, seen) + 1.7 * 0.2 * np.eye(7))
    cross = covariance(look, seen)
    mean, deviation = GaussianProcess(seen, targets, unordered, kernel).posterior(look)
    np.testing.assert_allclose(mean, cross @ inverse @ targets.numpy(), rtol=1e-9)
    variance = 1.7 - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-9)


def test_points_under_way_lower_the_deviation_and_leave_the_mean():
    seen, look, pending = points(6, 0), points(4, 1), points(3, 2)
    gp = GaussianProcess(seen, torch.ones(6, dtype=torch.float64), torch.tensor([False, True]))
    mean, deviation = gp.posterior(look)
    after, lower = gp.posterior(look, pending)
    assert torch.equal(mean, after)
    assert (lower <= deviation + 1e-12).all() and (lower < deviation - 1e-6).any()


def test_the_kernel_follows_the_data():
    """Targets that change quickly with time, and others that do not."""
    rng = np.random.default_rng(0)
    time, x = np.repeat(np.arange(8.0), 5), rng.random(40)
    rows = torch.from_numpy(np.column_stack([time, x]))
    still = torch.from_numpy(np.sin(6 * x))
    moving = torch.from_numpy(np.sin(6 * x) * rng.choice([-1.0, 1.0], 8)[time.astype(int)])
    ordered = torch.tensor([False])
    assert most_probable(rows, still, ordered).forgetting < most_probable(rows, moving, ordered).forgetting


# ---- PB2


def test_weak_members_take_over_the_weights_of_strong_ones_bit_for_bit(tmp_path):
    result = pb2().run(population_cases.line, STEPS, output=tmp_path / "pb2", **QUIET)
    assert len(result.legs) == 4 * STEPS // INTERVAL
    took = [leg for leg in result.legs if leg.source is not None]
    assert len(took) == STEPS // INTERVAL - 1  # a quarter of four, after each round but the last
    by_end = {(leg.member, leg.stop): leg.value for leg in result.legs}
    for leg in took:
        begin = by_end[leg.source, leg.start]
        assert begin == max(value for (_, stop), value in by_end.items() if stop == leg.start)
        assert leg.value == begin + INTERVAL * leg.config["speed"]
    assert result.best.value == max(member.value for member in result.members)
    assert float(result.best.state_dict()["weight"]) == result.best.value
    assert result.table()[0]["member"] == result.best.id
    assert [leg.stop for leg in result.lineage()] == list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert result.schedule()["speed"][0][0] == 0
    assert Run.open(result.members[0].path).curve("value").steps[-1] == STEPS


def test_two_processes_decide_as_one_does(tmp_path):
    alone = pb2().run(population_cases.line, STEPS, output=tmp_path / "alone", seed=3, **QUIET)
    pool = pb2().run(population_cases.line, STEPS, output=tmp_path / "pool", seed=3, workers=2, **QUIET)
    assert legs(alone) == legs(pool)


@pytest.mark.parametrize("explore", ["bandit", "perturb"])
def test_goes_on_after_an_interruption(tmp_path, explore):
    """Ctrl-C in the middle of a leg; legs done are not trained again, and the end is the same."""
    search = pb2(explore=explore)
    expected = search.run(population_cases.line, STEPS, output=tmp_path / "whole", **QUIET)
    trained = []

    def stopped(member):
        trained.append((member.id, member.start))
        if len(trained) == 7:
            raise KeyboardInterrupt
        population_cases.line(member)

    with pytest.raises(KeyboardInterrupt):
        search.run(stopped, STEPS, output=tmp_path / "cut", **QUIET)
    again = search.run(stopped, STEPS, output=tmp_path / "cut", resume=True, **QUIET)
    assert legs(again) == legs(expected)
    assert len(trained) == len(set(trained)) + 1  # the leg that was cut off
    with pytest.raises(FileExistsError, match="resume"):
        search.run(stopped, STEPS, output=tmp_path / "cut", **QUIET)
    with pytest.raises(ValueError, match="settings"):
        pb2(size=3).run(stopped, STEPS, output=tmp_path / "cut", resume=True, **QUIET)


def test_members_that_fail_are_replaced(tmp_path):
    """An exception, a value that is NaN, and a process that dies."""
    result = pb2().run(population_cases.fragile, STEPS, output=tmp_path / "pb2", workers=2, **QUIET)
    first = [leg for leg in result.legs if leg.number == 0]
    errors = {leg.config["speed"]: leg.error for leg in first}
    assert errors[1] is None
    assert "no good" in errors[2] and "nan" in errors[3] and "exit code 3" in errors[4]
    assert all(member.value is not None for member in result.members)
    assert {leg.source for leg in result.legs if leg.number == 1} >= {0, 1, 2, 3} & {
        leg.member for leg in first if leg.error is None
    }


def test_all_failed_says_why(tmp_path):
    with (
        pytest.raises(RuntimeError, match="no good"),
        pytest.warns(RuntimeWarning, match="all members failed"),
    ):
        pb2({"speed": [2]}, 2).run(population_cases.fragile, STEPS, output=tmp_path / "pb2", **QUIET)


def test_a_tuner_inside_of_a_member(tmp_path):
    space = {"batch_size": [4, 16, 64], "layers": Choice([1, 2], fixed=True)}
    result = pb2(space, mode="min").run(population_cases.digits, STEPS, output=tmp_path / "pb2", **QUIET)
    assert {leg.error for leg in result.legs} == {None}
    depths = {leg.member: leg.config["layers"] for leg in result.legs if leg.number == 0}
    for leg in result.legs:
        if leg.source is not None:
            depths[leg.member] = depths[leg.source]
        assert leg.config["layers"] == depths[leg.member]
    assert result.best.state_dict("tuner")["calls"] == STEPS


def test_the_bandit_finds_what_moves():
    """A gain whose best value drifts: the bandit ends above random perturbation, over seeds, by a wide margin."""
    ends = {}
    for explore in ("bandit", "perturb"):
        totals = []
        for seed in range(8):
            search = PB2({"x": FloatRange(0.0, 1.0)}, 4, interval=1, mode="max", explore=explore)
            scores, done = {}, []
            for number in range(20):
                for leg in search.todo(done, [], 4, 20, seed):
                    begin = 0.0 if number == 0 else scores[leg.member if leg.source is None else leg.source, number - 1]
                    gain = 1 - 4 * (leg.config["x"] - (0.2 + 0.03 * number)) ** 2
                    scores[leg.member, number] = begin + gain
                    done.append(type(leg)(**{**leg.__dict__, "value": begin + gain}))
            totals.append(max(scores[member, 19] for member in range(4)))
        ends[explore] = sum(totals) / len(totals)
    assert ends["bandit"] > ends["perturb"] + 0.5


# ---- ASHA


def test_promotes_the_best_of_each_rung(tmp_path):
    """With one worker: at no time is a member on a rung that was not among the best 1/eta of the rung below."""
    space = {"loss": [round(0.1 * i, 1) for i in range(1, 10)]}
    search = ASHA(space, trials=27, min_steps=1, reduction=3)
    result = search.run(population_cases.curve, 27, output=tmp_path / "asha", **QUIET)
    assert search.rungs(27) == [1, 3, 9, 27]
    assert [sum(leg.number == rung for leg in result.legs) for rung in range(4)] == [27, 9, 3, 1]
    for index, leg in enumerate(result.legs):
        if leg.number:
            rung = [other for other in result.legs[:index] if other.number == leg.number - 1]
            better = sorted(rung, key=lambda other: (other.value, other.member))[: len(rung) // 3]
            assert leg.member in {other.member for other in better}
    drawn = [leg.config["loss"] for leg in result.legs if leg.number == 0]
    assert result.best.config["loss"] == min(drawn)


def test_asha_goes_on_and_counts_failures_as_the_worst(tmp_path):
    cut = None

    def train(member):
        nonlocal cut
        if member.id == 2:
            raise ValueError("no good")
        if member.id == 5 and cut == "soon":
            cut = "done"
            raise KeyboardInterrupt
        population_cases.curve(member)

    space = {"loss": FloatRange(0.1, 1.0, log=True), "layers": IntRange(1, 4)}
    search = ASHA(space, trials=9, min_steps=1, reduction=3)
    whole = search.run(train, 9, output=tmp_path / "whole", **QUIET)
    cut = "soon"
    with pytest.raises(KeyboardInterrupt):
        search.run(train, 9, output=tmp_path / "cut", **QUIET)
    result = search.run(train, 9, output=tmp_path / "cut", resume=True, **QUIET)
    assert legs(result) == legs(whole)
    assert cut == "done"
    assert result.members[2].error == "ValueError: no good" and result.members[2].value is None
    assert result.table()[-1]["member"] == 2
    assert all(1 <= leg.config["layers"] <= 4 and 0.1 <= leg.config["loss"] <= 1 for leg in result.legs)


# ---- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PB2({}, interval=1), ValueError, "space"),
        (lambda: pb2({"speed": []}), ValueError, "choices"),
        (lambda: pb2({"speed": [1, 1]}), ValueError, "twice"),
        (lambda: pb2({"speed": 3}), TypeError, "speed"),
        (lambda: pb2({"speed": [object()]}), TypeError, "choices"),
        (lambda: pb2(size=1), ValueError, "size"),
        (lambda: pb2(quantile=0.9), ValueError, "quantile"),
        (lambda: pb2(explore="guess"), ValueError, "explore"),
        (lambda: pb2(mode="best"), ValueError, "mode"),
        (lambda: FloatRange(1.0, 0.0), ValueError, "low"),
        (lambda: FloatRange(0.0, 1.0, log=True), ValueError, "log"),
        (lambda: IntRange(3, 1), ValueError, "low"),
        (lambda: ASHA({"x": [1]}, trials=0, min_steps=1), ValueError, "trials"),
        (lambda: ASHA({"x": [1]}, trials=1, min_steps=1, reduction=1), ValueError, "reduction"),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_cannot_run(tmp_path):
    with pytest.raises(ValueError, match="interval"):
        pb2().run(population_cases.line, 2, output=tmp_path / "a", **QUIET)
    with pytest.raises(TypeError, match="top of a module"):
        pb2().run(lambda member: None, STEPS, output=tmp_path / "b", workers=1, **QUIET)
    with pytest.raises(TypeError, match="function"):
        pb2().run("train", STEPS, output=tmp_path / "c", **QUIET)
    assert not any((tmp_path / name).exists() for name in "abc")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda member: member.restore(), "without member.report"),
        (lambda member: (member.restore(), member.report(member.stop, 1.0)), "without member.save"),
        (lambda member: (member.restore(), member.report(member.stop + 1, 1.0)), "step must be"),
        (lambda member: (member.restore(), member.report(member.stop, "good")), "value must be a number"),
    ],
)
def test_training_functions_that_forget_something(tmp_path, train, message):
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=message):
        pb2({"speed": [1]}, 2).run(train, STEPS, output=tmp_path / "pb2", **QUIET)
