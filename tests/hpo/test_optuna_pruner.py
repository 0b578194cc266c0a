import logging
import math

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna
from optuna.distributions import FloatDistribution

from metafast.hpo import Belief, FloatRange, PredictorPruner, Space, Suggestion, when
from tests.hpo.stand_in import StandIn


class Sure:
    """Believes that a trial ends where it is, give or take `std`."""

    def __init__(self, std=0.1, source="model"):
        self.std, self.source = std, source
        self.asked = []

    def belief(self, space, candidates, observed=(), **keywords):
        self.asked.append((candidates, list(observed), keywords))
        last = np.array([[o.score for o in observed if o.config == config][-1] for config in candidates])
        sides = last - 1.645 * self.std, last + 1.645 * self.std
        return Belief(last, np.full(len(last), self.std), *sides, last, np.full(len(last), np.nan))

    def suggest(self, space, observed, *, candidates, **keywords):
        return Suggestion(candidates[0], 0.0, (0.0, 0.0), 0.0, self.source, "by a stand-in")


def study_of(predictor=None, *, direction="maximize", finished=(0.9,), steps=10, **options):
    """A study with finished trials, which have reported their values at all steps."""
    pruner = PredictorPruner(predictor or Sure(), **options)
    study = optuna.create_study(direction=direction, pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for number, value in enumerate(finished):
        study.add_trial(
            optuna.create_trial(
                value=value,
                params={"x": number / 10},
                distributions={"x": FloatDistribution(0, 1)},
                intermediate_values=dict.fromkeys(range(steps), value),
            )
        )
    return study


def trial_of(study, *values, steps=None):
    trial = study.ask({"x": FloatDistribution(0, 1)})
    for step, value in zip(steps or range(len(values)), values, strict=True):
        trial.report(value, step)
    return trial


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_hopeless_trials_are_pruned_and_others_not(direction, sign):
    study = study_of(direction=direction, finished=[sign * 0.9])
    assert trial_of(study, sign * 0.6).should_prune()
    assert not trial_of(study, sign * 0.8).should_prune()
    assert not trial_of(study, sign * 1.2).should_prune()
    strict = study_of(direction=direction, finished=[sign * 0.9], threshold=0.3)
    assert trial_of(strict, sign * 0.8).should_prune()


def test_the_predictor_sees_all_curves():
    predictor = Sure()
    study = study_of(predictor, finished=[0.9, 0.5], metric="val_accuracy", task={"a": 1.0}, reference=0.1)
    trial_of(study, 0.1, 0.2, 0.3).should_prune()
    ((config,), observed, keywords) = predictor.asked[-1]
    assert [(o.fraction, o.score) for o in observed if o.config == config] == [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]
    assert [o.score for o in observed if o.config == {"x": 0.1} and o.fraction == 1] == [0.5]
    assert keywords == {
        "features": {"a": 1.0}, "metric": "val_accuracy", "direction": "maximize", "reference": 0.1,
    }  # fmt: skip


def test_what_leads_the_best_is_not_pruned():
    study = study_of(finished=[])
    curve = {step: step / 10 for step in range(10)}
    distributions = {"x": FloatDistribution(0, 1)}
    study.add_trial(
        optuna.create_trial(value=0.9, params={"x": 0.5}, distributions=distributions, intermediate_values=curve)
    )
    assert not trial_of(study, 0.0, 0.1, 0.2).should_prune()
    assert not trial_of(study, 0.0, 0.1, 0.3).should_prune()
    assert trial_of(study, 0.0, 0.1, 0.1).should_prune()


def test_a_task_unlike_all_others_goes_to_the_median(caplog):
    study = study_of(Sure(source="random"), finished=[0.5, 0.6, 0.7, 0.8])
    with caplog.at_level(logging.WARNING):
        assert not trial_of(study, 0.1).should_prune()
        study.add_trial(study.trials[0])
        assert trial_of(study, 0.1).should_prune()
        assert not trial_of(study, 0.65).should_prune()
    said = [record.message for record in caplog.records if record.name.startswith("metafast")]
    assert said == ["PredictorPruner: by a stand-in: Optuna's MedianPruner decides"]


def test_nothing_to_compare_to():
    assert not trial_of(study_of(finished=[]), 0.1).should_prune()
    assert not trial_of(study_of(finished=[]), math.nan).should_prune()
    assert not trial_of(study_of(finished=[math.inf]), 0.1).should_prune()
    assert not trial_of(study_of(finished=[0.9], n_startup_trials=2), 0.1).should_prune()
    assert trial_of(study_of(finished=[0.9, 0.8], n_startup_trials=2), 0.1).should_prune()


def test_nothing_reported_or_nothing_known_of_time():
    assert not trial_of(study_of()).should_prune()
    assert not trial_of(study_of(steps=0), 0.1).should_prune()
    assert trial_of(study_of(steps=0, n_steps=10), 0.1).should_prune()
    assert not trial_of(study_of(n_steps=2), 0.1, 0.2).should_prune()
    study = study_of()
    empty = study.ask()
    empty.report(0.1, 0)
    assert not empty.should_prune()


def test_values_that_are_not_finite():
    study = study_of()
    for value in (math.nan, math.inf, -math.inf):
        assert trial_of(study, 0.95, value).should_prune()
    assert trial_of(study_of(finished=[0.9, math.inf]), 0.1).should_prune()
    assert not trial_of(study, math.nan, 0.95).should_prune()


def test_warm_up_and_interval():
    study = study_of(n_warmup_steps=2)
    assert not trial_of(study, 0.1, 0.1).should_prune()
    assert trial_of(study, 0.1, 0.1, 0.1).should_prune()
    study = study_of(n_warmup_steps=1, interval_steps=3)
    trial = study.ask({"x": FloatDistribution(0, 1)})
    pruned = []
    for step in range(9):
        trial.report(0.1, step)
        pruned.append(trial.should_prune())
    assert pruned == [False, True, False, False, True, False, False, True, False]
    assert trial_of(study, 0.1, 0.1, 0.1, steps=[0, 5, 8]).should_prune()


def test_broken_constraints_are_nothing_to_compare_to():
    study = study_of(finished=[])
    trial = trial_of(study, 0.9, steps=[9])
    trial.set_constraint("memory", 1.0)
    study.tell(trial, 0.9)
    assert not trial_of(study, 0.1).should_prune()


def test_a_conditional_space():
    space = Space(
        optimizer=["sgd", "adam"],
        momentum=FloatRange(0.0, 1.0),
        conditions=[when("optimizer", "sgd", "momentum")],
    )
    predictor = StandIn()
    pruner = PredictorPruner(predictor, space=space, n_steps=4)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial):
        good = space.ask(trial).get("momentum", 0.0)
        for step in range(4):
            trial.report(good, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return good

    study.optimize(objective, n_trials=25)
    states = [trial.state.name for trial in study.trials]
    assert states[0] == "COMPLETE" and states.count("PRUNED") >= 3
    assert max(trial.params.get("momentum", 0.0) for trial in study.trials) == study.best_value
    assert {len(o.config) for o in predictor.asked[-1]["observed"]} == {1, 2}


def test_bad_arguments():
    with pytest.raises(ValueError, match="threshold must be above 0 and below 1, got 5"):
        PredictorPruner(Sure(), threshold=5)
    with pytest.raises(ValueError, match="n_startup_trials must be at least 1, got 0"):
        PredictorPruner(Sure(), n_startup_trials=0)
    with pytest.raises(ValueError, match="interval_steps must be at least 1"):
        PredictorPruner(Sure(), interval_steps=0)
    with pytest.raises(TypeError, match="predictor must be a Predictor"):
        PredictorPruner(None)
    with pytest.raises(ValueError, match="metric 'loss' is to minimize"):
        trial_of(study_of(metric="loss"), 0.1).should_prune()
