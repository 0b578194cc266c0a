"""The spaces of populations: dimensions of which some stay with their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from metafast._dimensions import as_dimension

Config = dict[str, Any]


class Space:
    """A mapping of names to dimensions."""

    def __init__(self, space: Any) -> None:
        if not isinstance(space, Mapping):
            raise TypeError(f'space must be a mapping such as {{"batch_size": [32, 64]}}, got {type(space).__name__}')
        if not space:
            raise ValueError('space must have at least one hyperparameter, such as {"batch_size": [32, 64]}, got none')
        self.dimensions = {name: as_dimension(name, spec) for name, spec in space.items()}
        self.free = [name for name, dimension in self.dimensions.items() if not dimension.fixed]

    def draw(self, rng: np.random.Generator) -> Config:
        """A configuration from the prior."""
        return {name: dimension.decode(rng.random()) for name, dimension in self.dimensions.items()}

    def spread(self, rng: np.random.Generator, count: int) -> list[Config]:
        """Configurations that cover each range evenly: a Latin hypercube."""
        columns = {
            name: [dimension.decode(unit) for unit in ((rng.permutation(count) + rng.random(count)) / count).tolist()]
            for name, dimension in self.dimensions.items()
        }
        return [{name: column[row] for name, column in columns.items()} for row in range(count)]

    def encode(self, config: Config) -> list[float]:
        """Numbers, in the order of the dimensions."""
        return [dimension.encode(config[name]) for name, dimension in self.dimensions.items()]

    def perturb(self, config: Config, rng: np.random.Generator, resample: float) -> Config:
        """PBT's explore: each free value is drawn anew with probability `resample`, or else perturbed."""
        new = dict(config)
        for name in self.free:
            dimension = self.dimensions[name]
            fresh = rng.random() < resample
            new[name] = dimension.decode(rng.random()) if fresh else dimension.perturb(config[name], rng)
        return new

    def candidates(self, config: Config, rng: np.random.Generator, count: int) -> list[Config]:
        """All free values around fixed ones where they are at most `count`, or else as many draws."""
        found = [config]
        for name in self.free:
            size = self.dimensions[name].count
            if size is None or len(found) * size > count:
                break
            found = [{**other, name: value} for other in found for value in self.dimensions[name].values()]
        else:
            return found
        kept = {name: value for name, value in config.items() if name not in self.free}
        return [{**self.draw(rng), **kept} for _ in range(count)]

    def describe(self) -> dict[str, Any]:
        """The space as plain data, for records."""
        return {name: {"type": type(d).__name__, **vars(d)} for name, d in self.dimensions.items()}
