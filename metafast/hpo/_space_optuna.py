"""Spaces as Optuna's distributions, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metafast._dimensions import Choice, Dimension, FloatRange, IntRange
from metafast.hpo._conditions import holds
from metafast.hpo._space import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from metafast.hpo._types import Config

MOST_STEPS = 1000  # stepped distributions with more values are read as ranges, and rounded on the way back
PLAIN = (bool, int, float, str)


def optuna_distributions() -> Any:
    """Optuna's module of distributions, or an error that says what to install."""
    try:
        from optuna import distributions
    except ImportError as error:
        raise ImportError("this needs Optuna: pip install 'metafast[hpo]'") from error
    return distributions


def from_optuna(distributions: Mapping[str, BaseDistribution]) -> Space:
    """The space of a study's distributions; `Space.from_optuna` calls it."""
    if not isinstance(distributions, Mapping):
        raise TypeError(
            f"distributions must map names to Optuna's distributions, got {type(distributions).__name__}; "
            "those of a study are study.trials[0].distributions"
        )
    return Space({name: _dimension(name, distribution) for name, distribution in distributions.items()})


def to_optuna(space: Space) -> dict[str, BaseDistribution]:
    """The distributions of a space; `Space.to_optuna` calls it."""
    module = optuna_distributions()
    return {name: _distribution(name, dimension, module) for name, dimension in space.dimensions.items()}


def ask(space: Space, trial: BaseTrial) -> Config:
    """A configuration from a trial, asking only for what is active; `Space.ask` calls it."""
    config: Config = {}
    for name in space.order:
        if not space.active(name, config):
            continue
        dimension = space.dimensions[name]
        if isinstance(dimension, Choice):
            config[name] = trial.suggest_categorical(name, _choices(name, dimension))
        else:
            assert isinstance(dimension, IntRange | FloatRange)
            suggest: Any = trial.suggest_int if isinstance(dimension, IntRange) else trial.suggest_float
            config[name] = suggest(name, dimension.low, dimension.high, log=dimension.log)
    return {name: config[name] for name in space.dimensions if name in config}


class Distributions:
    """Distributions as a space, and values both ways, whatever the choices are.

    Args:
        distributions: by name.
        space: the same with conditions, if there are any.
    """

    def __init__(self, distributions: Mapping[str, Any], space: Space | None = None) -> None:
        self.distributions: dict[str, Any] = dict(distributions)
        self._labels: dict[str, list[str]] = {}
        dimensions: dict[str, Dimension] = {}
        for name, distribution in self.distributions.items():
            if _needs_labels(distribution):
                self._labels[name] = [f"{index}: {choice!r}" for index, choice in enumerate(distribution.choices)]
                dimensions[name] = Choice(self._labels[name])
            else:
                dimensions[name] = _dimension(name, distribution)
        self.space = space or Space(dimensions)

    def config(self, params: Mapping[str, Any]) -> Config | None:
        """What a trial tried, as a configuration of the space; None: not one of it."""
        config: Config = {}
        for name, dimension in self.space.dimensions.items():
            if not self.space.active(name, config) and self.space.conditions:
                continue
            if name not in params:
                return None
            value = self._inward(name, dimension, params[name])
            if not holds(dimension, value):
                return None
            config[name] = value
        return config

    def params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration as values of the distributions."""
        return {name: self._outward(name, value) for name, value in config.items() if name in self.distributions}

    def _inward(self, name: str, dimension: Dimension, value: Any) -> Any:
        distribution = self.distributions[name]
        if name in self._labels:
            try:
                return self._labels[name][int(distribution.to_internal_repr(value))]
            except ValueError:
                return None
        if isinstance(dimension, Choice) and isinstance(value, float) and not holds(dimension, value):
            return next((choice for choice in dimension.choices if _close(choice, value)), None)
        return value

    def _outward(self, name: str, value: Any) -> Any:
        distribution = self.distributions[name]
        if name in self._labels:
            return distribution.choices[self._labels[name].index(value)]
        if hasattr(distribution, "choices"):
            return value
        whole = isinstance(distribution.low, int)
        if step := distribution.step:
            value = distribution.low + round((value - distribution.low) / step) * step
        value = min(max(value, distribution.low), distribution.high)
        return int(value) if whole else float(value)


def _dimension(name: Any, distribution: Any) -> Dimension:
    module = optuna_distributions()
    if isinstance(distribution, module.CategoricalDistribution):
        try:
            return Choice(list(distribution.choices))
        except (TypeError, ValueError) as error:
            raise type(error)(f"distributions[{name!r}]: {error}") from None
    if not isinstance(distribution, module.FloatDistribution | module.IntDistribution):
        raise TypeError(f"distributions[{name!r}] must be one of Optuna's, got {distribution!r}")
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.single():
        return Choice([low])
    if isinstance(distribution, module.IntDistribution):
        if step != 1 and (high - low) // step < MOST_STEPS:
            return Choice(list(range(low, high + 1, step)))
        return IntRange(low, high, log=distribution.log)
    if step is not None and (count := round((high - low) / step) + 1) <= MOST_STEPS:
        return Choice([*(low + index * step for index in range(count - 1)), high])
    return FloatRange(low, high, log=distribution.log)


def _distribution(name: str, dimension: Dimension, module: Any) -> Any:
    if isinstance(dimension, Choice):
        return module.CategoricalDistribution(_choices(name, dimension))
    assert isinstance(dimension, IntRange | FloatRange)
    kind = module.IntDistribution if isinstance(dimension, IntRange) else module.FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def _choices(name: str, dimension: Choice) -> list[Any]:
    for choice in dimension.choices:
        if choice is not None and not isinstance(choice, PLAIN):
            raise ValueError(
                f"Optuna's choices are None, bool, int, float and str, got {choice!r} in space[{name!r}]; "
                "search over names, and look the thing up"
            )
    return list(dimension.choices)


def _needs_labels(distribution: Any) -> bool:
    """Whether choices are objects, NaN, or equal to each other, which a `Choice` cannot hold."""
    choices = getattr(distribution, "choices", ())
    if any(choice != choice for choice in choices):
        return True
    try:
        return bool(choices) and not Choice(list(choices)).choices
    except (TypeError, ValueError):
        return True


def _close(choice: Any, value: float) -> bool:
    """Whether a value of a stepped range is meant."""
    return isinstance(choice, int | float) and math.isclose(choice, value, rel_tol=1e-9, abs_tol=1e-12)
