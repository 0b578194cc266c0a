"""Several workers at once, and storages that go away."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna")

import optuna
from optuna.trial import TrialState

from tests.hpo.optuna_worker import SPACE, objective, study_of

ROOT = Path(__file__).resolve().parents[2]


def start(place, trials, seed, *others):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.hpo.optuna_worker", place, str(trials), str(seed), *others]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.fixture(params=["journal", "sqlite"])
def place(request, tmp_path):
    return str(tmp_path / "study.log") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def test_two_workers_do_not_try_the_same(place, tmp_path):
    study = study_of(place, 0)
    study.optimize(objective, n_trials=1)
    # of the same seed: nothing but the study tells them apart
    workers = [start(place, 10, 1, str(tmp_path), "2") for _ in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    trials = study.get_trials()
    assert len(trials) == 21 and all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    keys = [SPACE.key(trial.params) for trial in trials]
    together = sum(
        one.datetime_start < other.datetime_complete and other.datetime_start < one.datetime_complete
        for one in trials
        for other in trials[: one.number]
    )
    assert together >= 3
    assert len(set(keys)) >= 19  # a trial that ends between two readings changes what the other one thinks of it


def test_a_killed_worker_costs_a_trial(place):
    study = study_of(place, 0)
    study.optimize(objective, n_trials=1)
    worker = start(place, 1000, 1)
    stop = time.monotonic() + 60
    while len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < 4 and time.monotonic() < stop:
        time.sleep(0.05)
    worker.kill()
    worker.communicate()
    before = [trial for trial in study.get_trials() if trial.state.is_finished()]
    assert len(before) >= 4
    study.optimize(objective, n_trials=3)
    assert study.get_trials()[: len(before)] == before
    assert sum(trial.state.is_finished() for trial in study.get_trials()) == len(before) + 3


def test_a_storage_that_goes_away_gives_its_error_and_nothing_is_lost(tmp_path):
    folder, away = tmp_path / "there", tmp_path / "away"
    folder.mkdir()
    study = study_of(str(folder / "study.log"), 0)

    def leave(study, trial):
        if trial.number == 3:
            folder.rename(away)

    with pytest.raises(FileNotFoundError, match="study.log"):
        study.optimize(objective, n_trials=8, callbacks=[leave])
    away.rename(folder)
    study = study_of(str(folder / "study.log"), 1)
    assert [trial.state.is_finished() for trial in study.trials] == [True] * 4
    study.optimize(objective, n_trials=4)
    assert len(study.trials) == 8


def test_the_error_of_a_storage_passes_through(monkeypatch):
    study = study_of("sqlite://", 0)
    study.optimize(objective, n_trials=2)

    def gone(*args, **keywords):
        raise optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(study._storage, "set_trial_system_attr", gone)
    with pytest.raises(optuna.exceptions.StorageInternalError, match="gone"):
        study.optimize(objective, n_trials=1)
    monkeypatch.undo()
    study.optimize(objective, n_trials=1)
    assert [trial.state.is_finished() for trial in study.trials].count(True) >= 3
