"""Seeded batches of in-memory tensors, whose position can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer


class Batches:
    """Shuffled mini-batches of tensors that share their first dimension; the same seed gives the same batches.

    One `for` loop is one epoch, or the rest of one after `load_state_dict`. Each epoch has an order of its own, which
    depends on the seed and the epoch's number alone, so the position is two integers.

    Args:
        tensors: one or more tensors of equal length, samples first.
        batch_size: samples per batch.
        seed: of the order.
        shuffle: False keeps the order of the data.
        drop_last: leave out the last batch where it is smaller.

    Raises:
        TypeError: something that is no tensor, or no integer where one is due.
        ValueError: no data, unequal lengths, a batch size below 1, or larger than the data with `drop_last`.

    Example:
        >>> batches = Batches(torch.arange(5), torch.arange(5) * 10, batch_size=2, seed=0)
        >>> [len(x) for x, y in batches]
        [2, 2, 1]
        >>> batches.state_dict()["epoch"]
        1
    """

    def __init__(
        self, *tensors: Tensor, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        if not tensors:
            raise ValueError("tensors must not be empty; write Batches(images, labels, batch_size=64)")
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"tensors[{index}] must be a torch.Tensor, got {type(tensor).__name__}; see to_tensors")
            if tensor.dim() == 0:
                raise ValueError(f"tensors[{index}] must have samples in its first dimension, got a 0-d tensor")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"tensors must have one equal length of at least 1, got {lengths}")
        self.tensors = tensors
        self.batch_size = integer("batch_size", batch_size, minimum=1)
        self.seed = integer("seed", seed, minimum=0)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        if self.drop_last and self.batch_size > lengths[0]:
            raise ValueError(
                f"batch_size must be at most {lengths[0]} (the number of samples) with drop_last=True, got {batch_size}"
            )
        self._epoch = 0
        self._batch = 0

    def __len__(self) -> int:
        """Batches in one epoch."""
        samples = len(self.tensors[0])
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._epoch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = self._order(self._epoch)
        for batch in range(self._batch, len(self)):
            # the position moves before the batch is handed out: a state saved while it is in use points to the next one
            if batch + 1 == len(self):
                self._epoch, self._batch = self._epoch + 1, 0
            else:
                self._batch = batch + 1
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield tuple(tensor[chosen] for tensor in self.tensors)

    def forever(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches of epoch after epoch, without end.

        Returns:
            An iterator of tuples of tensors.

        Example:
            >>> from itertools import islice
            >>> batches = Batches(torch.arange(3), batch_size=2, shuffle=False)
            >>> [x.tolist() for (x,) in islice(batches.forever(), 3)]
            [[0, 1], [2], [0, 1]]
        """
        while True:
            yield from self

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "samples": len(self.tensors[0]),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Args:
            state: from `state_dict`.

        Raises:
            ValueError: it is a position in other batches (another seed, length, batch size or order).
        """
        here = self.state_dict()
        wrong = [
            f"{key} {state.get(key)!r} saved, {here[key]!r} here"
            for key in here
            if key not in ("epoch", "batch") and state.get(key) != here[key]
        ]
        if wrong:
            raise ValueError(
                f"state does not fit these batches: {'; '.join(wrong)}; build them with the same arguments"
            )
        epoch, batch = (
            integer("state['epoch']", state["epoch"], minimum=0),
            integer("state['batch']", state["batch"], minimum=0),
        )
        if batch >= len(self):
            raise ValueError(f"state['batch'] must be below {len(self)}, got {batch}")
        self._epoch, self._batch = epoch, batch

    def _order(self, epoch: int) -> Tensor:
        samples = len(self.tensors[0])
        if not self.shuffle:
            return torch.arange(samples)
        # two draws mix seed and epoch, so that neighbouring seeds share no epoch
        base = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(self.seed)).item()
        return torch.randperm(samples, generator=torch.Generator().manual_seed((int(base) + epoch) % 2**63))
