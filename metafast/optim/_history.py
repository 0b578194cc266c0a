"""A record of learned rates that stays small: when it is full, every second entry goes."""

from __future__ import annotations

import torch
from torch import Tensor


class RateHistory:
    """At most `capacity` entries (step, rates); tensors are read from their device only when somebody looks."""

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self.every = 1
        self._entries: list[tuple[int, list[float | Tensor]]] = []

    def wants(self, step: int, least: int = 1) -> bool:
        """Whether to record this step; `least` spaces out rates that cost something to collect."""
        return step % max(self.every, least) == 0

    def add(self, step: int, rates: list[float | Tensor]) -> None:
        """Records rates; a tensor is copied, without waiting for its device."""
        kept = [rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in rates]
        self._entries.append((step, kept))
        if len(self._entries) >= self.capacity:
            self.every *= 2
            self._entries = [entry for entry in self._entries if entry[0] % self.every == 0]

    def read(self) -> list[tuple[int, list[float]]]:
        """All entries as plain numbers."""
        return [(step, flat_rates(rates)) for step, rates in self._entries]


def flat_rates(rates: list[float | Tensor]) -> list[float]:
    """Numbers and tensors of numbers, in order, as one list."""
    values: list[float] = []
    for rate in rates:
        values += torch.atleast_1d(rate).tolist() if isinstance(rate, Tensor) else [rate]
    return values
