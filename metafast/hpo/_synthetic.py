"""Made-up tasks whose learning curves look like those of small networks: for tests, and where real ones are missing."""

from __future__ import annotations

import math

import numpy as np

from metafast._checks import integer
from metafast._dimensions import Choice
from metafast.hpo._space import Space
from metafast.hpo._types import Config, MetaTask

FRACTIONS = np.array([0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0])


def synthetic_tasks(count: int, seed: int = 0) -> list[MetaTask]:
    """Tasks over 486 configurations of a small network.

    Each has a best learning rate that depends on optimizer, depth and batch size; too high a rate diverges, too low a
    one is slow; width helps, dropout helps some; noise as between seeds.

    Args:
        count: how many.
        seed: of everything.

    Example:
        >>> task = synthetic_tasks(2, seed=1)[0]
        >>> task.curves.shape, task.reference
        ((486, 8), 0.1)
    """
    count = integer("count", count, minimum=1)
    space = Space(
        lr=[1e-3, 1e-2, 1e-1],
        batch_size=[32, 64, 128],
        layers=[2, 3, 4],
        width=[64, 128, 256],
        dropout=[0.1, 0.3, 0.5],
        optimizer=Choice(["sgd", "adam"]),
    )
    configs = space.grid()
    tasks = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        tasks.append(_task(f"synthetic/{seed}-{number}", space, configs, rng))
    return tasks


def _task(name: str, space: Space, configs: list[Config], rng: np.random.Generator) -> MetaTask:
    top = rng.uniform(0.5, 0.98)
    best = {"sgd": rng.normal(-1.2, 0.4), "adam": rng.normal(-2.5, 0.4)}  # log10 of the rate
    edge = rng.uniform(0.8, 1.6)
    depth, wide, keep, batch = rng.normal([-0.15, 0.03, -0.02, 0.3], [0.1, 0.03, 0.04, 0.2])
    speed = rng.uniform(4, 12)
    curves = np.empty((len(configs), len(FRACTIONS)))
    seconds = np.empty(len(configs))
    for row, config in enumerate(configs):
        layers, width, size = (
            config["layers"] - 3,
            math.log2(config["width"] / 128),
            math.log2(config["batch_size"] / 64),
        )
        gap = math.log10(config["lr"]) - best[config["optimizer"]] - depth * layers - batch * 0.3 * size
        final = top - 0.08 * top * gap**2 + wide * width + keep * (config["dropout"] - 0.3) / 0.2 + 0.01 * layers
        rate = speed * 10 ** (0.4 * min(gap, 0.0))
        curve = 0.1 + (max(final, 0.12) - 0.1) * (1 - np.exp(-rate * FRACTIONS))
        if gap > edge:
            curve = np.full(len(FRACTIONS), math.nan if gap > edge + 0.7 else 0.1)
        curves[row] = np.clip(curve + 0.008 * rng.standard_normal(len(FRACTIONS)), 0.0, 1.0)
        seconds[row] = 2 * config["layers"] * (config["width"] / 64) ** 1.2 / config["batch_size"] * 64
    seconds *= math.exp(rng.normal())
    return MetaTask(name, name, space, configs, curves, FRACTIONS, seconds, "accuracy", "maximize", 0.1)
