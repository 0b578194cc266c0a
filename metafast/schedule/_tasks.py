"""What a controller learns from and adapts to: small trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from metafast._checks import integer
from metafast.data import Samples

OPTIMIZERS = ("adam", "adamw", "sgd")


@dataclass(frozen=True)
class Task:
    """A training, small enough to be run many times.

    Args:
        name: of data and model, for the record.
        model: makes a model with new weights from a seed.
        train: what is learned from: inputs `[N, ...]` and labels `[N]` (or targets `[N, D]` for "mse").
        val: what the result is judged by; never test data.
        batch_size: Default 32.
        steps: of one training. Default 400.
        optimizer: "adam", "adamw" (decay 0.01) or "sgd" (momentum 0.9). Default "adam".
        loss: "cross_entropy" or "mse". Default "cross_entropy".
        data: name of the data set; what meta-training has seen is written down by it. Default: `name`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or data that do not fit together.

    Example:
        >>> import metafast
        >>> parts = metafast.data.digits(seed=0)
        >>> Task("digits", lambda seed: metafast.models.MLP(64, (32,), 10, seed=seed), parts.train, parts.val).steps
        400
    """

    name: str
    model: Callable[[int], nn.Module]
    train: Samples
    val: Samples
    batch_size: int = 32
    steps: int = 400
    optimizer: str = "adam"
    loss: str = "cross_entropy"
    data: str = ""

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise TypeError(f"model must make a module from a seed, got {type(self.model).__name__}")
        integer("batch_size", self.batch_size, minimum=1)
        integer("steps", self.steps, minimum=1)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.loss not in ("cross_entropy", "mse"):
            raise ValueError(f'loss must be "cross_entropy" or "mse", got {self.loss!r}')
        for name in ("train", "val"):
            inputs, labels = getattr(self, name)
            if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor) or len(inputs) != len(labels):
                raise ValueError(f"{name} must have as many labels as inputs, as tensors")
            if not len(inputs):
                raise ValueError(f"{name} of task {self.name!r} is empty")
        if not self.data:
            object.__setattr__(self, "data", self.name)
