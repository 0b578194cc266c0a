"""The configurations of a space: how many, all, and some that cover it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.hpo._conditions import same
from metafast.hpo._types import Config

if TYPE_CHECKING:
    from metafast.hpo._space import Space

FILLED_FROM_GRID = 100_000  # spaces up to this size give as many different candidates as they have


class _Other:
    """Stands for values that no condition names, and for what is not active."""


_OTHER = _Other()


def count_all(space: Space) -> int | None:
    """How many configurations; None: a continuum. Values that no condition tells apart are counted together."""
    counts = {name: dimension.count for name, dimension in space.dimensions.items()}
    sizes = {name: count for name, count in counts.items() if count is not None}
    if len(sizes) < len(counts):
        return None
    parents = {condition.parent for condition in space.conditions}
    found: list[tuple[Config, int]] = [({}, 1)]
    for name in space.order:
        if name not in parents:
            continue
        named = _named(space, name)
        rest = sizes[name] - len(named)
        options = [({name: value}, 1) for value in named] + [({name: _OTHER}, rest)] * bool(rest)
        found = [
            ({**config, **more}, ways * times)
            for config, ways in found
            for more, times in (options if space.active(name, config) else [({}, 1)])
        ]
    leaves = [name for name in sizes if name not in parents]
    return sum(ways * math.prod(sizes[n] for n in leaves if space.active(n, config)) for config, ways in found)


def list_all(space: Space) -> list[Config]:
    """All configurations of a finite space."""
    configs: list[Config] = [{}]
    for name in space.order:
        values = space.dimensions[name].values()
        configs = [
            {**config, name: value}
            for config in configs
            for value in (values if space.active(name, config) else [_OTHER])
        ]
    return [in_their_order(space, {n: value for n, value in c.items() if value is not _OTHER}) for c in configs]


def spread(space: Space, rng: np.random.Generator, count: int) -> list[Config]:
    """A Latin hypercube without duplicates, filled up by draws."""
    columns = {name: ((rng.permutation(count) + rng.random(count)) / count).tolist() for name in space.order}
    rows = (decode(space, {name: column[row] for name, column in columns.items()}) for row in range(count))
    more = (space.draw(rng) for _ in range(4 * count))
    found: dict[Any, Config] = {}
    _collect(space, itertools.chain(rows, more), found, count)
    if len(found) < count and (size := space.size) is not None and size <= FILLED_FROM_GRID:
        grid = list_all(space)
        _collect(space, (grid[row] for row in rng.permutation(size)), found, count)
    return list(found.values())


def decode(space: Space, units: Mapping[str, float]) -> Config:
    """The configuration at a place of the unit cube; what is not active is left out."""
    config: Config = {}
    for name in space.order:
        if space.active(name, config):
            config[name] = space.dimensions[name].decode(units[name])
    return in_their_order(space, config)


def in_their_order(space: Space, config: Config) -> Config:
    """A configuration in the order of the space."""
    return {name: config[name] for name in space.dimensions if name in config} if space.conditions else config


def _collect(space: Space, configs: Iterable[Config], found: dict[Any, Config], count: int) -> None:
    for config in configs:
        found.setdefault(space.key(config), config)
        if len(found) == count:
            return


def _named(space: Space, parent: str) -> list[Any]:
    """The values of a parent that conditions name, each once."""
    named: list[Any] = []
    for condition in space.conditions:
        for value in condition.values if condition.parent == parent else ():
            if not any(same(value, other) for other in named):
                named.append(value)
    return named
