"""Where a run of meta-batches stands: epochs, random access, saved positions, and the share of each process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer
from metafast.data._tasks import TaskBatch


class Episodes(ABC):
    """Meta-batches of tasks; `episodes` makes them.

    One `for` loop is one epoch of `batches` meta-batches, or the rest of one after `load_state_dict`; without `batches`
    it has no end. `loader[i]` is meta-batch i of the run, whatever was asked for before.
    """

    def __init__(
        self, *, tasks: int, seed: int, batches: int | None, fixed: bool, rank: int, world_size: int, device: Any
    ) -> None:
        self.tasks = integer("tasks", tasks, minimum=1)
        self.seed = integer("seed", seed, minimum=0)
        self.batches = None if batches is None else integer("batches", batches, minimum=1)
        self.fixed = bool(fixed)
        if self.fixed and self.batches is None:
            raise ValueError("fixed=True repeats the meta-batches of an epoch, so it needs batches=")
        self.world_size = integer("world_size", world_size, minimum=1)
        self.rank = integer("rank", rank, minimum=0)
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be below world_size={self.world_size}, got {self.rank}")
        if self.tasks % self.world_size:
            raise ValueError(f"tasks must be a multiple of world_size={self.world_size}, got {self.tasks}")
        self.device = torch.device(device if device is not None else "cpu")
        self._epoch = 0
        self._batch = 0

    @property
    def own_tasks(self) -> int:
        """Tasks of a meta-batch that this process makes: `tasks / world_size`."""
        return self.tasks // self.world_size

    @property
    def first_task(self) -> int:
        """Place of the first of them in the whole meta-batch."""
        return self.rank * self.own_tasks

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._epoch

    def __len__(self) -> int:
        """Meta-batches in one epoch."""
        if self.batches is None:
            raise TypeError("these episodes have no end, so no length; pass batches= to have epochs")
        return self.batches

    def __iter__(self) -> Iterator[TaskBatch]:
        begin = 0 if self.fixed or self.batches is None else self._epoch * self.batches
        stop = None if self.batches is None else begin + self.batches
        with closing(self._stream(begin + self._batch, stop)) as made:
            for batch in made:
                # the position moves before the batch is handed out: a state saved while it is in use points to the next
                if self._batch + 1 == self.batches:
                    self._epoch, self._batch = self._epoch + 1, 0
                else:
                    self._batch += 1
                yield batch

    def __getitem__(self, number: int) -> TaskBatch:
        """Meta-batch `number` of the run; the position stays."""
        number = integer("number", number, minimum=0)
        if self.fixed and self.batches is not None:
            number %= self.batches
        with closing(self._stream(number, number + 1, ahead=False)) as made:
            return next(made)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in, as JSON can hold it; the same for every rank and world size."""
        return {
            "epoch": self._epoch,
            "batch": self._batch,
            "tasks": self.tasks,
            "seed": self.seed,
            "batches": self.batches,
            "fixed": self.fixed,
            **self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Args:
            state: from `state_dict`.

        Raises:
            ValueError: it is a position in other episodes (another seed, other data, ways, shots and so on).
        """
        here = self.state_dict()
        wrong = [
            f"{key} {state.get(key)!r} saved, {here[key]!r} here"
            for key in here
            if key not in ("epoch", "batch") and state.get(key) != here[key]
        ]
        if wrong:
            raise ValueError(
                f"state does not fit these episodes: {'; '.join(wrong)}; make them with the same arguments"
            )
        epoch = integer("state['epoch']", state["epoch"], minimum=0)
        batch = integer("state['batch']", state["batch"], minimum=0)
        if self.batches is not None and batch >= self.batches:
            raise ValueError(f"state['batch'] must be below {self.batches}, got {batch}")
        self._epoch, self._batch = epoch, batch

    def examples(self) -> tuple[Tensor, Tensor]:
        """All examples of the split as a model takes them, without augmentation, and their class numbers.

        Raises:
            TypeError: the tasks are curves.
        """
        raise TypeError("curves have no fixed set of examples")

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What else makes two episodes the same."""

    @abstractmethod
    def _stream(self, first: int, stop: int | None, ahead: bool = True) -> Generator[TaskBatch, None, None]:
        """A generator of meta-batches `first` to `stop - 1`; `ahead` tells whether threads shall prepare them."""
