"""Hyperparameters as numbers: names that mean the same, and where values lie, in a way that two spaces can share."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from metafast.hpo._types import Config

if TYPE_CHECKING:
    from metafast.hpo._space import Space

# canonical names, and what else they are called
_CALLED = {
    "lr": "learning_rate eta base_lr init_lr initial_lr learning_rate_init max_lr step_size",
    "batch_size": "bs batch batchsize minibatch_size train_batch_size per_device_train_batch_size",
    "layers": "num_layers n_layers depth num_hidden_layers n_hidden_layers nlayers",
    "width": "hidden units hidden_size hidden_dim n_units num_units hidden_units d_model channels n_hidden",
    "dropout": "dropout_rate p_drop drop dropout_p drop_rate",
    "weight_decay": "wd l2 l2_reg decay reg_lambda l2_regularization alpha_l2",
    "l1": "l1_reg l1_regularization",
    "optimizer": "opt optim optimizer_name optimizer_type",
    "momentum": "mom sgd_momentum",
    "beta1": "adam_beta1 beta_1 b1",
    "beta2": "adam_beta2 beta_2 b2",
    "epsilon": "eps adam_epsilon adam_eps",
    "warmup": "warmup_steps warmup_ratio num_warmup_steps warmup_fraction",
    "activation": "act nonlinearity activation_function",
    "label_smoothing": "smoothing",
    "clip": "grad_clip gradient_clip max_grad_norm clip_norm gradient_clipping",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs",
    "C": "c cost svm_c",
    "gamma": "svm_gamma",
    "kernel": "svm_kernel",
    "degree": "svm_degree",
}
ALIASES = {alias: name for name, aliases in _CALLED.items() for alias in (name.lower(), *aliases.split())}
TO_ONE = frozenset({"momentum", "beta1", "beta2", "rho"})  # what is left to 1 counts, by ratio
_SMALLEST = 1e-12
_BEYOND = 0.5  # of the range: where a value lies that a log scale has no place for, such as a decay of 0


def canonical(name: str) -> str:
    """What a hyperparameter is called here; its own name where it is not known.

    Example:
        >>> canonical("learning_rate"), canonical("model.numLayers"), canonical("strength")
        ('lr', 'layers', 'strength')
    """
    last = re.split(r"[./:]", name)[-1]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower().replace("-", "_")
    return ALIASES.get(snake, snake)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Each name's canonical one; where two would share it, the second keeps its own."""
    found: dict[str, str] = {}
    for name in names:
        short = canonical(name)
        found[name] = name if short in found.values() else short
    return found


@dataclass(frozen=True)
class Axis:
    """Where the values of a hyperparameter lie.

    Args:
        numeric: a number; otherwise names, each equally far from every other.
        log: whether ratios count.
        low: what lies at 0.
        high: what lies at 1.
        to_one: whether 1 minus the value counts, by ratio, as for momentum.
    """

    numeric: bool
    log: bool = False
    low: float = 0.0
    high: float = 1.0
    to_one: bool = False

    def code(self, value: Any) -> float:
        """The place of a number, in [0, 1] inside the range; a number that stands for a name; NaN: absent."""
        if not self.numeric:
            return float(zlib.crc32(str(value).strip().lower().encode()))
        if isinstance(value, str) or value is None:
            return math.nan
        number, (low, high) = float(value), self._ends
        if self.to_one:
            number = max(1 - number, _SMALLEST)
        if self._ratio:
            if number <= 0:
                return -_BEYOND
            number = math.log(number)
        return 0.5 if low == high else (number - low) / (high - low)

    def from_code(self, other: Axis, codes: np.ndarray) -> np.ndarray:
        """Codes on another axis as codes on this one; NaN where one has numbers and the other names."""
        if self == other:
            return codes
        if not self.numeric or not other.numeric:
            return codes if self.numeric == other.numeric else np.full_like(codes, math.nan)
        (low, high), numbers = other._ends, codes
        numbers = low + codes * (high - low)
        values = np.exp(numbers) if other._ratio else numbers
        values = 1 - values if other.to_one else values
        values = np.maximum(1 - values, _SMALLEST) if self.to_one else values
        low, high = self._ends
        if self._ratio:
            positive = values > 0
            places = (np.log(np.where(positive, values, 1.0)) - low) / (high - low or 1.0)
            return np.where(positive | np.isnan(values), places, -_BEYOND)
        moved: np.ndarray = (values - low) / (high - low or 1.0)
        return moved

    @property
    def _ratio(self) -> bool:
        return self.log or self.to_one

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = self.low, self.high
        if self.to_one:
            low, high = (max(1 - v, _SMALLEST) for v in (low, high))
        return (math.log(low), math.log(high)) if self._ratio else (low, high)


def axes_of(space: Space) -> dict[str, Axis]:
    """The axes of a space by canonical name, in order.

    Example:
        >>> from metafast.hpo import Space
        >>> axes_of(Space(learning_rate=[0.001, 0.01, 0.1]))["lr"].code(0.01)
        0.5
    """
    axes = {}
    for name, short in canonical_names(space.dimensions).items():
        scale = space.scales[name]
        to_one = scale.numeric and short in TO_ONE and scale.low >= 0 and scale.high <= 1
        axes[short] = Axis(scale.numeric, scale.log, scale.low, scale.high, to_one)
    return axes


def encode(axes: Mapping[str, Axis], configs: Sequence[Config]) -> np.ndarray:
    """Configurations as float64 `[N, H]`, in the order of `axes`; NaN where a hyperparameter is absent."""
    codes = np.full((len(configs), len(axes)), math.nan)
    columns = {name: column for column, name in enumerate(axes)}
    names: dict[str, str] = {}
    for row, config in enumerate(configs):
        if config.keys() != names.keys():
            names = canonical_names(config)
        for name, value in config.items():
            column = columns.get(names[name])
            if column is not None:
                codes[row, column] = axes[names[name]].code(value)
    return codes


def distances(axes: Sequence[Axis], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances `[N, M]` of codes `[N, H]` and `[M, H]`.

    Two names are 1 apart, as are a hyperparameter that is there and one that is absent.
    """
    total = np.zeros((len(left), len(right)))
    for column, axis in enumerate(axes):
        a, b = left[:, column, None], right[None, :, column]
        one, two = np.isnan(a), np.isnan(b)
        if axis.numeric:
            square = np.where(one | two, one != two, (a - b) ** 2)
        else:
            square = np.where(one & two, 0.0, (a != b) | one | two)
        total += square
    return total


def matern(squares: np.ndarray, length: float) -> np.ndarray:
    """Matérn 5/2 of squared distances."""
    r = np.sqrt(5 * squares) / length
    kernel: np.ndarray = (1 + r + r * r / 3) * np.exp(-r)
    return kernel
