"""A grid of eight configurations on two toy tasks, in the place of the real one."""

import functools

import torch
from torch import nn

from metafast.hpo import _collect, _grid_table, _grid_tasks
from metafast.hpo._batched import Pair
from metafast.hpo._grid_data import Parts

GRID = {
    "lr": [0.01, 0.1], "batch_size": [16], "layers": [1, 2], "width": [8], "dropout": [0.0],
    "optimizer": ["sgd", "adam"],
}  # fmt: skip


def parts(seed):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(60, 5, generator=generator), torch.randn(5, 3, generator=generator)
    y = (x @ w).argmax(1)
    return Parts(Pair(x[:30], y[:30]), Pair(x[30:45], y[30:45]), Pair(x[45:], y[45:]), 0.4)


def build(parts, config):
    layers, before = [], 5
    for _ in range(config["layers"]):
        layers += [nn.Linear(before, 8), nn.ReLU(), nn.Dropout(config["dropout"])]
        before = 8
    return nn.Sequential(*layers, nn.Linear(8, 3))


def tasks():
    return [
        _grid_tasks.GridTask(f"toy{i}/mlp", f"toy{i}", functools.partial(parts, i), build, modality="table")
        for i in range(2)
    ]


def install(setattr):
    """Puts it in place; `setattr` is monkeypatch's, or the built-in one in a process of its own."""
    for module in (_collect, _grid_table, _grid_tasks):
        setattr(module, "GRID", GRID)
    setattr(_collect, "grid_tasks", tasks)
    setattr(_collect, "hub_tasks", list)
