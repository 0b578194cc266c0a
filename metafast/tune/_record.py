"""What a tuner remembers of each hyperparameter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

MOST_VALUES = 256  # of a larger tensor the history has the mean alone


@dataclass
class Tuned:
    """One hyperparameter: its values now, where they came from, and the hypergradients that moved them.

    Attributes:
        per: "global", "group", "layer", "tensor", or "element" for a tensor of the loss.
        values: label to value; the labels are "all", or names of groups, layers or parameters, or numbers.
        history: `(calls, values)` at the start and after each update; calls of `step` before it.
        hypergradients: `(calls, derivatives)` of the validation loss by the value in the space where it is learned
            (for a learning rate, by its logarithm), before normalization. Non-finite ones are recorded as they came.
        skipped: how many updates were left out because of a non-finite hypergradient.

    Histories of tensors with more than 256 elements have their mean only.

    Example:
        >>> Tuned("global").skipped
        0
    """

    per: str
    values: dict[str, float] = field(default_factory=dict)
    history: list[tuple[int, list[float]]] = field(default_factory=list)
    hypergradients: list[tuple[int, list[float]]] = field(default_factory=list)
    skipped: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Histories, for a checkpoint."""
        return {"history": self.history, "hypergradients": self.hypergradients, "skipped": self.skipped}


def listed(values: Tensor) -> list[float]:
    """Numbers for a history."""
    flat = values.detach().double().flatten()
    return [float(flat.mean())] if flat.numel() > MOST_VALUES else flat.tolist()
