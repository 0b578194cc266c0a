import logging
import math
import pickle

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna

from metafast.hpo import FloatRange, PredictorSampler, Space, when
from metafast.hpo._optuna_sampler import PLAN
from tests.hpo.stand_in import StandIn

SPACE = Space(
    lr=[1e-4, 1e-3, 1e-2, 1e-1],
    layers=[1, 2, 3],
    optimizer=["sgd", "adam"],
    momentum=[0.0, 0.9],
    conditions=[when("optimizer", "sgd", "momentum")],
)


def value(config):
    """Best at 1e-2, 3 layers, sgd with momentum: 1."""
    far = abs(math.log10(config["lr"]) + 2) / 4 + (3 - config["layers"]) / 8
    return 1 - far - 0.05 * (config["optimizer"] == "adam") - 0.2 * (config.get("momentum") == 0.0)


def objective(trial):
    return value(SPACE.ask(trial))


def study_of(predictor, *, trials=0, direction="maximize", objective=objective, **options):
    sampler = PredictorSampler(predictor, **{"seed": 0, "space": SPACE, **options})
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(objective, n_trials=trials, catch=(RuntimeError,))
    return study


def test_a_study_is_led_by_the_predictor_from_its_first_trial():
    predictor = StandIn()
    study = study_of(predictor, trials=14, task={"log10_examples": 4.0}, n_steps=10)
    assert study.best_value > 0.9
    assert all(trial.system_attrs[PLAN]["source"] == "model" for trial in study.trials)
    assert all(trial.system_attrs[PLAN]["params"] == trial.params for trial in study.trials)
    assert [len(asked["observed"]) for asked in predictor.asked] == list(range(14))
    assert all(asked["features"] == {"log10_examples": 4.0} for asked in predictor.asked)
    assert all(asked["metric"] == "accuracy" and asked["direction"] == "maximize" for asked in predictor.asked)
    for trial, observation in zip(study.trials, predictor.asked[-1]["observed"], strict=False):
        assert (observation.config, observation.score, observation.fraction) == (trial.params, trial.value, 1.0)
        assert observation.seconds is not None


def test_a_seed_says_all():
    one, other = study_of(StandIn(), trials=6, seed=3), study_of(StandIn(), trials=6, seed=3)
    assert [trial.params for trial in one.trials] == [trial.params for trial in other.trials]


def test_without_a_space_it_is_learned_from_the_trials():
    predictor = StandIn()
    study = study_of(predictor, trials=12, space=None)
    first = study.trials[0]
    assert PLAN not in first.system_attrs
    assert all(PLAN in trial.system_attrs for trial in study.trials[1:])
    assert predictor.asked[len(first.params)]["observed"][0].config == first.params
    assert len(predictor.asked[-1]["observed"]) >= 10
    momentum = [trial for trial in study.trials if "momentum" in trial.params]
    assert any("momentum" in trial.system_attrs[PLAN]["params"] for trial in momentum[3:])
    assert study_of(StandIn(), trials=3, n_startup_trials=2).trials[1].system_attrs == {}


def test_values_of_the_first_trial_are_chosen_one_by_one():
    asked = []

    class Choosy(StandIn):
        def suggest(self, space, observed=(), **keywords):
            asked.append((dict(space.dimensions), list(observed)))
            return super().suggest(space, observed, **keywords)

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        return x + trial.suggest_int("n", 1, 9, step=2)

    study = study_of(Choosy(), trials=1, space=None, objective=objective)
    x = study.trials[0].params["x"]
    assert [list(dimensions) for dimensions, _ in asked] == [["x"], ["x", "n"]]
    assert asked[1][0]["x"].choices == (x,) and all(observed == [] for _, observed in asked)
    study_of(StandIn("random"), trials=2, space=None, objective=objective)


def test_all_trials_are_information():
    predictor = StandIn()

    space = Space({**SPACE.dimensions, "lr": FloatRange(1e-4, 1e-1, log=True)}, conditions=SPACE.conditions)

    def objective(trial):
        space.ask(trial)
        if trial.number == 1:
            raise RuntimeError("out of memory")
        if trial.number == 2:
            return math.nan
        for step in range(10):
            trial.report(math.inf if trial.number == 4 else step / 10, step)
            if trial.number in (3, 4) and step == 4:
                raise optuna.TrialPruned
        if trial.number == 5:
            raise optuna.TrialPruned
        if trial.number == 6:
            trial.set_constraint("memory", 1.0)
        return math.inf if trial.number == 7 else 0.5

    study = study_of(predictor, trials=9, objective=objective, space=space)
    observed = predictor.asked[-1]["observed"]
    points = {
        trial.number: [(o.fraction, o.score) for o in observed if o.config == trial.params]
        for trial in study.trials[:8]
    }
    assert points[0][-1] == (1.0, 0.5) and len(points[0]) == 3
    assert [f for f, _ in points[1]] == [f for f, _ in points[2]] == [1.0]
    assert points[3] == [(0.2, 0.1), (0.3, 0.2), (0.5, 0.4)]
    assert points[5][-1] == (1.0, 0.9)
    for number in (1, 2, 4, 6, 7):
        assert math.isnan(points[number][-1][1]), number
    assert points[4][-1][0] == 0.5


def test_what_is_being_tried_is_not_suggested_twice():
    study = study_of(StandIn(), trials=2)
    asked = [SPACE.ask(study.ask()) for _ in range(8)]
    keys = {SPACE.key(config) for config in asked}
    assert len(keys) == 8
    few = Space(lr=[0.1, 0.2])
    study = study_of(StandIn(), space=few)
    assert sorted(few.ask(study.ask())["lr"] for _ in range(3))[::2] == [0.1, 0.2]
    study = study_of(StandIn(), trials=36)
    assert len({SPACE.key(trial.params) for trial in study.trials}) == SPACE.size == 36
    study.optimize(objective, n_trials=1)


def test_trials_that_have_not_said_what_they_try_are_thought_for():
    predictor = StandIn()
    study = study_of(predictor, trials=2)
    silent = study.ask()
    spoken = SPACE.ask(study.ask())
    assert spoken != SPACE.ask(silent)
    assert len(predictor.asked) == 2 + 2 + 1
    assert len(predictor.asked[-1]["observed"]) == 3


def test_running_trials_are_believed_to_end_as_expected():
    predictor = StandIn()
    study = study_of(predictor, trials=3)
    running = study.ask()
    SPACE.ask(running)
    expected = study.trials[-1].system_attrs[PLAN]["expected"]
    SPACE.ask(study.ask())
    assert predictor.asked[-1]["observed"][-1].score == expected


@pytest.mark.parametrize("fallback", ["gp", "tpe"])
def test_a_task_unlike_all_others_goes_to_optuna(fallback, caplog):
    trials, line = (13 if fallback == "tpe" else 7), Space(lr=FloatRange(0.0, 1.0))
    with caplog.at_level(logging.WARNING):
        study = study_of(
            StandIn("random"),
            trials=trials,
            fallback=fallback,
            space=line,
            objective=lambda trial: trial.suggest_float("lr", 0.0, 1.0),
        )
    said = [record.message for record in caplog.records if record.name.startswith("metafast")]
    name = "GPSampler" if fallback == "gp" else "TPESampler"
    assert said == [f"PredictorSampler: by a stand-in: Optuna's {name} decides"]
    assert [trial.system_attrs[PLAN]["source"] for trial in study.trials[-2:]] == [fallback] * 2


@pytest.mark.parametrize("fallback", ["gp", "tpe"])
def test_a_fallback_does_not_repeat_itself(fallback):
    def pruned(trial):
        value = objective(trial)
        if value < 0.8:
            trial.report(value, 1)
            raise optuna.TrialPruned
        return value

    study = study_of(StandIn("random"), trials=24, fallback=fallback, objective=pruned)
    assert len({SPACE.key(trial.params) for trial in study.trials}) == 24
    assert {trial.system_attrs[PLAN]["source"] for trial in study.trials} >= {"random", "tpe"}


def test_several_objectives_go_to_tpe(caplog):
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=PredictorSampler(StandIn(), seed=0))
    with caplog.at_level(logging.WARNING):
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=12)
    assert sum("several objectives" in record.message for record in caplog.records) == 1


def test_a_metric_the_wrong_way_round_is_refused():
    with pytest.raises(ValueError, match="metric 'accuracy' is to maximize, but the direction is 'minimize'"):
        study_of(StandIn(), trials=1, direction="minimize", metric="accuracy")
    with pytest.raises(ValueError, match="metric 'val_loss' is to minimize, but the direction is 'maximize'"):
        study_of(StandIn(), trials=1, metric="val_loss")
    study = study_of(predictor := StandIn(), direction="minimize", space=None)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["wer"])
    study.optimize(objective, n_trials=2)
    assert predictor.asked[-1]["metric"] == "wer"


def test_studies_with_another_space_are_refused():
    study = study_of(StandIn(), trials=1, space=Space(width=[1, 2]), objective=lambda t: t.suggest_int("depth", 1, 2))
    with pytest.raises(ValueError, match=r"searches \['depth'\], none of them in the space: \['width'\]"):
        study.optimize(objective, n_trials=1)
    study = study_of(StandIn(), trials=2, space=None, objective=lambda t: t.suggest_int("lr", 1, 2))
    study.sampler = PredictorSampler(StandIn(), space=SPACE)
    with pytest.raises(ValueError, match=r"space\['lr'\] is CategoricalDistribution.*trial 0 .* has IntDistribution"):
        study.optimize(objective, n_trials=1)


def test_enqueued_and_partly_fixed_trials():
    study = study_of(StandIn(), trials=2)
    study.enqueue_trial({"lr": 1e-4, "layers": 1, "optimizer": "adam"})
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].params == {"lr": 1e-4, "layers": 1, "optimizer": "adam"}
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.sampler = optuna.samplers.PartialFixedSampler({"optimizer": "adam"}, study.sampler)
    study.optimize(objective, n_trials=2)
    assert study.trials[-1].params["optimizer"] == "adam"


def test_hyperband_shows_the_sampler_a_part_of_the_study():
    def objective(trial):
        config = SPACE.ask(trial)
        for step in range(1, 10):
            trial.report(value(config) * step / 9, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value(config)

    for space in (SPACE, None):
        study = study_of(predictor := StandIn(), space=space)
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(["f1"])
        study.pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
        study.optimize(objective, n_trials=12)
        assert len(study.trials) == 12 and all(asked["metric"] == "f1" for asked in predictor.asked)


def test_a_pickled_sampler_goes_on():
    study = study_of(StandIn(), trials=3)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective, n_trials=2)
    study.sampler.reseed_rng()
    study.optimize(objective, n_trials=2, n_jobs=2)
    assert len(study.trials) == 7


def test_bad_arguments():
    with pytest.raises(TypeError, match='predictor must be a Predictor, "default" or the path of one, got int'):
        PredictorSampler(3)
    with pytest.raises(TypeError, match=r"task must be features by name, got ndarray; task_features\(train_dataset\)"):
        PredictorSampler(StandIn(), task=np.zeros(3))
    with pytest.raises(TypeError, match="space must be a Space, got dict"):
        PredictorSampler(StandIn(), space={"lr": [1]})
    with pytest.raises(ValueError, match=r"fallback must be one of \('gp', 'tpe'\), got 'random'"):
        PredictorSampler(StandIn(), fallback="random")
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        PredictorSampler(StandIn(), n_steps=0)
    with pytest.raises(TypeError, match="metric must be a name"):
        PredictorSampler(StandIn(), metric=3)
