"""The space that is searched: hyperparameters by name, some of them only where others say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast._checks import integer
from metafast._dimensions import Choice, Dimension, FloatRange, IntRange, as_dimension
from metafast.hpo._conditions import Condition, check_conditions, holds, in_order, same
from metafast.hpo._enumerate import count_all, decode, list_all, spread
from metafast.hpo._scale import Scale

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Config = dict[str, Any]
_KINDS = {kind.__name__: kind for kind in (Choice, IntRange, FloatRange)}


class Space:
    """Hyperparameters to search, by name.

    A list of numbers is read by value: `[1e-3, 1e-2, 1e-1]` has its middle in the middle, as its ends are more than a
    factor of 8 apart and ratios count then. A list of anything else is a choice without order.

    Args:
        mapping: names and what they may be: a list, `Choice`, `IntRange` or `FloatRange`; or all by keyword.
        conditions: what depends on what, each made by `when`.
        hyperparameters: as in `mapping`.

    Raises:
        TypeError: a hyperparameter that is none of these.
        ValueError: no hyperparameters, a name twice, or conditions that name what is not there, go in a circle, or
            contradict each other.

    Example:
        >>> from metafast.hpo import Space, when
        >>> space = Space(
        ...     optimizer=["sgd", "adam"], momentum=[0.0, 0.9, 0.99], lr=[1e-3, 1e-2, 1e-1],
        ...     conditions=[when("optimizer", "sgd", "momentum")],
        ... )
        >>> space.size, space.grid()[-1]
        (12, {'optimizer': 'adam', 'lr': 0.1})
        >>> {name: round(unit, 3) for name, unit in space.units({"optimizer": "adam", "lr": 0.01}).items()}
        {'optimizer': 1.0, 'lr': 0.5}
    """

    dimensions: dict[str, Dimension]

    def __init__(
        self,
        mapping: Mapping[str, Any] | None = None,
        /,
        *,
        conditions: Sequence[Condition] = (),
        **hyperparameters: Any,
    ) -> None:
        if mapping is not None and not isinstance(mapping, Mapping):
            raise TypeError(f'space must be a mapping such as {{"lr": [0.1, 0.01]}}, got {type(mapping).__name__}')
        given = dict(mapping or {})
        if twice := sorted(given.keys() & hyperparameters.keys()):
            raise ValueError(f"space has {twice} both in the mapping and by keyword; give each once")
        given.update(hyperparameters)
        if not given:
            raise ValueError("space must have at least one hyperparameter, such as lr=[0.1, 0.01], got none")
        self.dimensions = {name: as_dimension(name, spec) for name, spec in given.items()}
        if isinstance(conditions, Condition) or not isinstance(conditions, Iterable):
            raise TypeError(f"conditions must be a list of when(...), got {conditions!r}")
        self.conditions = tuple(conditions)
        check_conditions(self.dimensions, self.conditions)
        self.scales = {name: Scale(dimension) for name, dimension in self.dimensions.items()}
        self.order = in_order(self.dimensions, self.conditions)
        self._needs: dict[str, list[Condition]] = {name: [] for name in self.dimensions}
        for condition in self.conditions:
            for child in condition.children:
                self._needs[child].append(condition)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.describe() == other.describe()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = [f"{name}={_code(dimension)}" for name, dimension in self.dimensions.items()]
        parts += [f"conditions={list(self.conditions)}"] * bool(self.conditions)
        return f"Space({', '.join(parts)})"

    def active(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a hyperparameter is one of a configuration whose other values are known."""
        return all(
            need.parent in config and any(same(config[need.parent], value) for value in need.values)
            for need in self._needs[name]
        )

    @property
    def size(self) -> int | None:
        """How many configurations there are; None: a continuum."""
        return count_all(self)

    def draw(self, rng: np.random.Generator) -> Config:
        """A configuration from the prior: uniform on each scale; only what is active is in it."""
        return decode(self, dict(zip(self.order, rng.random(len(self.order)).tolist(), strict=True)))

    def grid(self, most: int = 10_000) -> list[Config]:
        """All configurations.

        Args:
            most: how many there may be.

        Raises:
            ValueError: a continuum, or more than `most`.
        """
        most, size = integer("most", most, minimum=1), self.size
        if size is None or size > most:
            what = "a continuum" if size is None else f"{size} configurations"
            raise ValueError(f"grid: the space has {what}, at most {most} were asked for; use candidates(rng, {most})")
        return list_all(self)

    def candidates(self, rng: np.random.Generator, count: int) -> list[Config]:
        """Different configurations that cover the space: all of them if there are at most `count`, or else a spread.

        Args:
            rng: what draws.
            count: how many; fewer only where the space has fewer.
        """
        count, size = integer("count", count, minimum=1), self.size
        if size is not None and size <= count:
            return self.grid(count)
        return spread(self, rng, count)

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError that names what is wrong with a configuration, TypeError where it is no mapping."""
        if not isinstance(config, Mapping):
            raise TypeError(f"a configuration must be a mapping of names to values, got {type(config).__name__}")
        if unknown := [name for name in config if name not in self.dimensions]:
            raise ValueError(f"the configuration has {unknown}, not in the space: it has {list(self.dimensions)}")
        for name in self.order:
            if not self.active(name, config):
                if name in config:
                    why = " and ".join(f"{n.parent!r} is one of {list(n.values)}" for n in self._needs[name])
                    raise ValueError(f"the configuration has {name!r}, which is there only when {why}; leave it out")
            elif name not in config:
                raise ValueError(f"the configuration has no {name!r}; it must be {_short(self.dimensions[name])}")
            elif not holds(self.dimensions[name], config[name]):
                raise ValueError(f"{name} must be {_short(self.dimensions[name])}, got {config[name]!r}")

    def units(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Where the values of a configuration lie: numbers in [0, 1] on their scale, the index of a choice of names."""
        scales = self.scales
        try:
            return {name: scales[name].unit(value) for name, value in config.items()}
        except KeyError as error:
            raise ValueError(f"the configuration has {error}, not in the space: it has {list(scales)}") from None

    def key(self, config: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
        """What equal configurations have in common: hashable, whatever the values are."""
        return tuple((name, unit) for name, unit in sorted(self.units(config).items()))

    def describe(self) -> dict[str, Any]:
        """The space as plain data, which JSON holds; `Space.of` reads it."""
        dimensions = {
            name: {"type": type(d).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(d).items()}}
            for name, d in self.dimensions.items()
        }
        conditions = [
            {"parent": c.parent, "values": list(c.values), "children": list(c.children)} for c in self.conditions
        ]
        return {"dimensions": dimensions, "conditions": conditions}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Space:
        """The space that `describe` described.

        Raises:
            ValueError: something else.

        Example:
            >>> space = Space(lr=FloatRange(1e-4, 1.0, log=True), layers=[1, 2])
            >>> Space.of(space.describe()) == space
            True
        """
        try:
            dimensions = {
                name: _KINDS[spec["type"]](**{key: value for key, value in spec.items() if key != "type"})
                for name, spec in described["dimensions"].items()
            }
            conditions = [
                Condition(c["parent"], tuple(c["values"]), tuple(c["children"])) for c in described["conditions"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no description of a space, as Space.describe() writes it: {error!r}") from error
        return cls(dimensions, conditions=conditions)

    @classmethod
    def from_optuna(cls, distributions: Mapping[str, BaseDistribution]) -> Space:
        """The space of Optuna's distributions.

        Stepped ranges become choices (ranges without steps above 1000 values), single values too.

        Args:
            distributions: by name, such as `study.trials[0].distributions`.

        Raises:
            TypeError: something else than Optuna's distributions, or a choice that a record cannot hold.
            ValueError: no distributions, or choices that are equal.
        """
        from metafast.hpo._space_optuna import from_optuna

        return from_optuna(distributions)

    def to_optuna(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions by name, those of conditional hyperparameters too; `ask` honours conditions.

        Raises:
            ImportError: Optuna is missing.
            ValueError: a choice that Optuna cannot hold, such as a list.
        """
        from metafast.hpo._space_optuna import to_optuna

        return to_optuna(self)

    def ask(self, trial: BaseTrial) -> Config:
        """What an Optuna trial is to try, inside an objective: `config = space.ask(trial)`; only what is active.

        Raises:
            ValueError: a choice that Optuna cannot hold, such as a list.
        """
        from metafast.hpo._space_optuna import ask

        return ask(self, trial)

    @classmethod
    def from_ray(cls, domains: Mapping[str, Any]) -> Space:
        """The space of Ray Tune's `param_space`; nested names are joined by a slash, constants become single choices.

        Args:
            domains: by name: Ray's `choice`, `uniform`, `randint` and their like, `{"grid_search": [...]}`, constants.

        Raises:
            TypeError: no mapping, a normal distribution, or a function that samples.
            ValueError: nothing to search, or a range without ends.
        """
        from metafast.hpo._space_ray import from_ray

        return from_ray(domains)

    def to_ray(self) -> dict[str, Any]:
        """Ray Tune's domains by name.

        Raises:
            ImportError: Ray Tune is missing.
            ValueError: the space has conditions, which Ray's domains cannot say.
        """
        from metafast.hpo._space_ray import to_ray

        return to_ray(self)


def _short(dimension: Dimension) -> str:
    return f"one of {list(dimension.choices)!r}" if isinstance(dimension, Choice) else repr(dimension)


def _code(dimension: Dimension) -> str:
    plain = isinstance(dimension, Choice) and not dimension.fixed
    return repr(list(dimension.choices)) if plain else repr(dimension)  # type: ignore[attr-defined]
