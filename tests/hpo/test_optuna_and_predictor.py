"""The predictor itself, in a study: it learns from studies and leads another one."""

import math

import pytest

pytest.importorskip("optuna")

import optuna

from metafast.hpo import Predictor, PredictorPruner, PredictorSampler, Space, task_features

SPACE = Space(lr=[1e-4, 1e-3, 1e-2, 1e-1], layers=[1, 2, 3, 4], optimizer=["sgd", "adam"])


def objective(best_rate):
    """Learning curves whose ends are highest at a rate, and with more layers."""

    def value(trial):
        config = SPACE.ask(trial)
        end = 0.9 - 0.1 * abs(math.log10(config["lr"] / best_rate)) - 0.02 * (4 - config["layers"])
        for step in range(8):
            trial.report(end * (1 - 0.5 ** (step + 1)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return end

    return value


@pytest.fixture(scope="module")
def predictor():
    """Has learned from three studies of the whole grid."""
    studies = []
    for number, rate in enumerate((3e-3, 1e-2, 3e-2)):
        study = optuna.create_study(
            study_name=f"task {number}",
            direction="maximize",
            sampler=optuna.samplers.GridSampler({n: d.values() for n, d in SPACE.dimensions.items()}, seed=0),
            pruner=optuna.pruners.NopPruner(),
        )
        study.optimize(objective(rate), n_trials=SPACE.size)
        studies.append(study)
    return Predictor().fit(studies)


def test_what_studies_have_taught_leads_another_one(predictor):
    study = optuna.create_study(
        direction="maximize",
        sampler=PredictorSampler(predictor, space=SPACE, seed=0),
        pruner=PredictorPruner(predictor, space=SPACE),
    )
    study.optimize(objective(1.5e-2), n_trials=6)
    assert study.trials[0].system_attrs["metafast:plan"]["source"] == "portfolio"
    assert study.best_value == pytest.approx(0.9 - 0.1 * math.log10(1.5), abs=1e-6)
    assert any(trial.state.name == "PRUNED" for trial in study.trials)


def test_another_space_goes_to_optuna(predictor):
    sampler = PredictorSampler(predictor, task=task_features(([[0.0], [1.0]] * 8, [0, 1] * 8)), seed=0)
    study = optuna.create_study(sampler=sampler, pruner=PredictorPruner(predictor))
    study.optimize(lambda trial: trial.suggest_float("temperature", 0.0, 1.0), n_trials=3)
    assert study.trials[-1].system_attrs["metafast:plan"]["source"] == "random"
