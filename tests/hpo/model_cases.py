"""Small tasks that the tests of the predictor share."""

import functools

import numpy as np

from metafast.hpo import MetaTask, Observation, Predictor, Space, synthetic_tasks


@functools.cache
def tasks(count=6, seed=3):
    return synthetic_tasks(count, seed=seed)


@functools.cache
def predictor():
    return Predictor(tasks())


def new_task():
    return synthetic_tasks(1, seed=77)[0]


def runs(task, rows, fraction=1.0):
    column = int(np.flatnonzero(np.isclose(task.fractions, fraction))[0])
    return [
        Observation(task.configs[row], float(task.curves[row, column]), fraction, float(task.seconds[row] * fraction))
        for row in rows
    ]


def about(task):
    return {"metric": task.metric, "direction": task.direction, "reference": task.reference}


def line(name="line", best=0.5, metric="accuracy", direction="maximize", turn=lambda score: score):
    """A task with one hyperparameter that is nobody else's."""
    space = Space(strength=[0.0, 0.25, 0.5, 0.75, 1.0])
    configs = space.grid()
    scores = np.array([[turn(0.9 - (config["strength"] - best) ** 2)] for config in configs])
    return MetaTask(name, name, space, configs, scores, np.ones(1), np.full(5, np.nan), metric, direction)
