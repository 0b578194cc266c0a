"""Beliefs and suggestions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from metafast.hpo import FloatRange, Observation, Predictor, Space, synthetic_tasks, when
from tests.hpo.model_cases import about, line, new_task, predictor, runs, tasks


def test_ranks_new_tasks_before_any_run_and_better_after_some():
    first, then = [], []
    for task in synthetic_tasks(4, seed=8):
        final = np.where(np.isfinite(task.final), task.final, task.reference)
        before = predictor().belief(task.space, task.configs, **about(task))
        after = predictor().belief(task.space, task.configs, runs(task, range(0, 486, 25)), **about(task))
        first.append(spearmanr(before.merit, final)[0])
        then.append(spearmanr(after.merit, final)[0])
    assert np.mean(first) > 0.4
    assert np.mean(then) > max(np.mean(first) + 0.1, 0.75)


def test_intervals_hold_what_they_promise():
    inside = []
    for task in tasks():
        belief = (
            predictor().without(task.dataset).belief(task.space, task.configs, runs(task, [5, 200, 400]), **about(task))
        )
        final = np.where(np.isfinite(task.final), task.final, task.reference)
        inside.append(np.mean((belief.low <= final) & (final <= belief.high)))
    assert 0.8 <= np.mean(inside) <= 0.995


def test_five_suggestions_find_what_is_nearly_best():
    task, observed = new_task(), []
    for _ in range(5):
        found = predictor().suggest(task.space, observed, candidates=task.configs, **about(task))
        observed += runs(task, [task.configs.index(found.config)])
    assert np.nanmax([run.score for run in observed]) > 0.95 * np.nanmax(task.final)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_merit_follows_the_direction(direction):
    turn = (lambda score: score) if direction == "maximize" else (lambda score: 1 - score)
    metric = "accuracy" if direction == "maximize" else "error"
    task = line(metric=metric, direction=direction, turn=turn)
    observed = [Observation(config, float(score)) for config, score in zip(task.configs, task.final, strict=True)]
    belief = Predictor().belief(task.space, task.configs, observed, metric=metric, direction=direction)
    assert int(belief.merit.argmax()) == 2
    assert (belief.low <= belief.mean).all() and (belief.mean <= belief.high).all()
    assert np.abs(belief.mean - task.final).max() < 0.1


def test_failed_runs_are_information():
    task = new_task()
    failed = [Observation(config, math.nan) for config in task.configs if config["lr"] == 0.1][:6]
    good = [Observation(config, 0.8) for config in task.configs if config["lr"] == 0.01][:3]
    belief = predictor().belief(task.space, task.configs, good + failed, **about(task))
    high, low = ([c["lr"] == lr for c in task.configs] for lr in (0.1, 0.01))
    assert belief.mean[high].mean() < belief.mean[low].mean() - 0.1


def test_only_failures_and_diverged_scores_break_nothing():
    task = new_task()
    for score in (math.nan, math.inf, -math.inf, 1e30, -1e30):
        observed = [Observation(config, score) for config in task.configs[:4]]
        belief = predictor().belief(task.space, task.configs[:20], observed, metric="loss", direction="minimize")
        assert all(np.isfinite(getattr(belief, part)).all() for part in ("mean", "std", "low", "high", "merit"))


def test_the_start_of_a_curve_tells_of_its_end():
    task = new_task()
    rows = list(range(3, 486, 40))
    early = predictor().belief(task.space, task.configs, runs(task, rows, 0.25), **about(task))
    nothing = predictor().belief(task.space, task.configs, **about(task))
    assert early.std.mean() < nothing.std.mean()
    assert spearmanr(early.merit, np.nan_to_num(task.final))[0] > 0.6


def test_searches_with_parts_of_runs():
    task, observed = new_task(), []
    for _ in range(6):
        found = predictor().suggest(task.space, observed, candidates=task.configs, **about(task))
        observed += runs(task, [task.configs.index(found.config)], 0.25)
    assert found.source == "model"
    best = predictor().belief(task.space, [run.config for run in observed], observed, **about(task)).merit.argmax()
    assert task.final[task.configs.index(observed[best].config)] > 0.9 * np.nanmax(task.final)


def test_costs_follow_what_was_measured():
    task = new_task()
    belief = predictor().belief(task.space, task.configs, runs(task, [0, 100, 300, 485]), **about(task))
    assert np.median(np.abs(np.log(belief.seconds / task.seconds))) < 0.3
    unknown = predictor().belief(task.space, task.configs, **about(task))
    assert np.isnan(unknown.seconds).all()


def test_finite_spaces_are_searched_without_a_repetition():
    space = Space(lr=[0.001, 0.01, 0.1], optimizer=["sgd", "adam"])
    observed = []
    for number in range(6):
        found = predictor().suggest(space, observed)
        assert found.config not in [run.config for run in observed]
        observed.append(Observation(found.config, 0.5 + 0.01 * number))
    assert predictor().suggest(space, observed).config in space.grid()


def test_conditional_and_continuous_spaces():
    space = Space(
        optimizer=["sgd", "adam"],
        momentum=FloatRange(0.5, 0.99),
        learning_rate=FloatRange(1e-4, 1.0, log=True),
        conditions=[when("optimizer", "sgd", "momentum")],
    )
    observed = []
    for _ in range(5):
        found = predictor().suggest(space, observed, seed=4)
        space.check(found.config)
        observed.append(Observation(found.config, 0.9 - abs(math.log10(found.config["learning_rate"]) + 2) / 10))
    again = predictor().suggest(space, observed, seed=4)
    assert again.config == predictor().suggest(space, observed, seed=4).config


def test_says_when_it_knows_nothing_and_falls_back():
    pytest.importorskip("optuna")
    task, observed = line(), []
    for number in range(5):
        found = predictor().suggest(task.space, observed)
        assert found.source == ("random" if number < 4 else "gp")
        assert found.reason == "0 of 1 hyperparameters are known"
        observed.append(Observation(found.config, float(task.final[task.configs.index(found.config)])))


def test_scores_unlike_known_ones_are_noticed():
    task, rows = new_task(), range(0, 486, 20)
    usual = runs(task, rows)
    turned = [Observation(run.config, 1 - run.score) for run in usual]
    assert predictor().suggest(task.space, usual, **about(task)).source == "model"
    found = predictor().suggest(task.space, turned, fallback="random", **about(task))
    assert found.source == "random"
    assert "unlike" in found.reason


def test_learns_a_study_and_knows_it_afterwards():
    one = Predictor.fit([line("first", 0.25), line("second", 0.3)])
    belief = one.belief(line().space, line().configs)
    assert int(belief.merit.argmax()) == 1
    one.fit([line("first", 1.0)])
    assert sorted(one.tasks) == ["first", "second"]
    assert one.without("second").tasks == ["first"]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 485), st.floats(0, 1)), max_size=8))
def test_any_observations_give_finite_beliefs(pairs):
    task = new_task()
    observed = [Observation(task.configs[row], score) for row, score in pairs]
    belief = predictor().belief(task.space, task.configs[:30], observed, **about(task))
    assert np.isfinite(belief.mean).all() and (belief.low < belief.high).all()
    assert (belief.low >= 0).all() and (belief.high <= 1).all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"candidates": []}, "candidates must have at least one"),
        ({"direction": "up"}, "direction must be"),
        ({"metric": "loss"}, "metric 'loss' is to minimize"),
        ({"observed": [Observation({"lr": 0.01}, 0.5)]}, "has no 'batch_size'"),
        ({"observed": [Observation({"lr": 7}, 0.5)]}, "lr must be"),
        ({"observed": [Observation({"lr": 0.01, "batch_size": 32}, 0.5, 1.5)]}, "fraction of an observation"),
        ({"fallback": "cmaes"}, "fallback must be one of"),
    ],
)
def test_bad_input_is_named(keywords, message):
    space = Space(lr=[0.001, 0.01], batch_size=[32, 64])
    with pytest.raises(ValueError, match=message):
        predictor().suggest(space, **keywords)


def test_bad_sources_are_named():
    with pytest.raises(ValueError, match="at least one task, got none"):
        Predictor().fit([])
    with pytest.raises(TypeError, match="put it into a list"):
        Predictor().fit(line())
    with pytest.raises(ValueError, match="different names"):
        Predictor().fit([line(), line()])
