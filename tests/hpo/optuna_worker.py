"""One of several workers on a study: `python -m tests.hpo.optuna_worker STORAGE TRIALS SEED [FOLDER WORKERS]`.

With a folder it begins when as many workers have left a file there.
"""

import os
import sys
import time
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from metafast.hpo import PredictorPruner, PredictorSampler, Space
from tests.hpo.stand_in import StandIn

SPACE = Space(lr=[1e-4, 1e-3, 1e-2, 1e-1], layers=[1, 2, 3, 4], width=[16, 32, 64])
NAME = "shared"


def storage_of(place):
    """Optuna's storage in a journal file or a database."""
    return JournalStorage(JournalFileBackend(place)) if place.endswith(".log") else place


def study_of(place, seed):
    sampler = PredictorSampler(StandIn(), space=SPACE, seed=seed)
    pruner = PredictorPruner(StandIn(), space=SPACE, n_steps=3)
    options = {"direction": "maximize", "load_if_exists": True, "sampler": sampler, "pruner": pruner}
    return optuna.create_study(study_name=NAME, storage=storage_of(place), **options)


def objective(trial):
    config = SPACE.ask(trial)
    for step in range(3):
        time.sleep(0.01)
        trial.report(config["lr"] * config["layers"] * (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return config["lr"] * config["layers"] * 3


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place, trials, seed, *others = sys.argv[1:]
    study = study_of(place, int(seed))
    if others:
        folder, workers = Path(others[0]), int(others[1])
        (folder / f"{os.getpid()}.here").touch()
        while len(list(folder.glob("*.here"))) < workers:
            time.sleep(0.02)
    study.optimize(objective, n_trials=int(trials))
