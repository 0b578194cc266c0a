"""A meta-batch of tasks: what samplers make and what learners take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from metafast._checks import integer


class Task(NamedTuple):
    """One task without padding: `[S, ...]`, `[S]`, `[Q, ...]`, `[Q]`."""

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """T tasks, each with S support and Q query examples, some of which may be padding.

    Shapes, dtypes and devices are checked when it is made; `validate` also looks at the values.

    Args:
        support_x: `[T, S, ...]` inputs to adapt on: a floating type, or int64 token numbers.
        support_y: `[T, S]` int64 class numbers, or `[T, S, D]` floating targets.
        query_x: `[T, Q, ...]` inputs to be judged on.
        query_y: `[T, Q]` or `[T, Q, D]`, as `support_y`.
        support_mask: bool `[T, S]`, False where an example is padding; None: there is none.
        query_mask: bool `[T, Q]`.
        classes: int64 `[T]`: task t has the classes 0 to `classes[t] - 1`; None: as many as the model.

    Raises:
        TypeError: a field that is no tensor, or of the wrong dtype.
        ValueError: shapes that do not fit each other, or several devices.

    Example:
        >>> x, y = torch.zeros(2, 5, 784), torch.arange(5).repeat(2, 1)
        >>> batch = TaskBatch(x, y, query_x=x, query_y=y)
        >>> batch.tasks, batch[1:].tasks, batch.task(0).query_x.shape
        (2, 1, torch.Size([5, 784]))
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    support_mask: Tensor | None = None
    query_mask: Tensor | None = None
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in self._items(optional=False):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if self.support_x.dim() < 2:
            raise ValueError(
                f"support_x must be [tasks, examples, ...], got shape {tuple(self.support_x.shape)}; "
                "one task is x.unsqueeze(0)"
            )
        tasks = self.support_x.shape[0]
        for part in ("support", "query"):
            self._check_part(part, tasks)
        if self.query_x.shape[2:] != self.support_x.shape[2:] or self.query_x.dtype != self.support_x.dtype:
            raise ValueError(
                f"query_x must hold examples like those of support_x, {tuple(self.support_x.shape[2:])} of "
                f"{self.support_x.dtype}, got {tuple(self.query_x.shape[2:])} of {self.query_x.dtype}"
            )
        if self.query_y.shape[2:] != self.support_y.shape[2:] or self.query_y.dtype != self.support_y.dtype:
            raise ValueError(
                f"query_y must be like support_y, {tuple(self.support_y.shape[2:])} of {self.support_y.dtype} "
                f"for each example, got {tuple(self.query_y.shape[2:])} of {self.query_y.dtype}"
            )
        if self.classes is not None:
            if not isinstance(self.classes, Tensor) or self.classes.dtype is not torch.int64:
                raise TypeError(f"classes must be an int64 tensor, got {_describe(self.classes)}")
            if self.classes.shape != (tasks,):
                raise ValueError(f"classes must be [tasks] = [{tasks}], got shape {tuple(self.classes.shape)}")
        devices = {str(value.device) for _, value in self._items()}
        if len(devices) > 1:
            raise ValueError(f"all fields must be on one device, got {sorted(devices)}; use .to(device)")

    @property
    def tasks(self) -> int:
        """Number of tasks T."""
        return self.support_x.shape[0]

    def __len__(self) -> int:
        return self.tasks

    def __getitem__(self, index: int | slice) -> TaskBatch:
        """The tasks of a slice, or one task; still a batch."""
        if not isinstance(index, slice):
            number = integer("index", index)
            if not -self.tasks <= number < self.tasks:  # an IndexError also ends a plain `for`
                raise IndexError(f"index must be from {-self.tasks} to {self.tasks - 1}, got {number}")
            index = slice(number % self.tasks, number % self.tasks + 1)
        return self._map(lambda value: value[index])

    def __iter__(self) -> Iterator[TaskBatch]:
        return (self[index] for index in range(self.tasks))

    def task(self, index: int) -> Task:
        """One task without its padding, for code that takes one task at a time.

        Args:
            index: of the task.

        Raises:
            IndexError: there is no such task.
        """
        one = self[index]
        support = slice(None) if one.support_mask is None else one.support_mask[0]
        query = slice(None) if one.query_mask is None else one.query_mask[0]
        return Task(one.support_x[0][support], one.support_y[0][support], one.query_x[0][query], one.query_y[0][query])

    def to(self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None) -> TaskBatch:
        """A copy on a device, floating tensors in `dtype`; a tensor that is so already is not copied.

        Args:
            device: where to; None: stay.
            dtype: a floating type; None: as it is.
        """
        to_cuda = device is not None and torch.device(device).type == "cuda"
        return self._map(
            lambda value: value.to(
                device=device,
                dtype=dtype if value.is_floating_point() else None,
                non_blocking=to_cuda and value.is_pinned(),
            )
        )

    def pin_memory(self) -> TaskBatch:
        """A copy in page-locked memory, from which a device copies while the host goes on."""
        return self._map(lambda value: value.pin_memory())

    @staticmethod
    def cat(batches: Sequence[TaskBatch]) -> TaskBatch:
        """The tasks of several batches of one shape, in order.

        Args:
            batches: at least one; a field is None in all or in none of them.

        Raises:
            ValueError: no batches, or a field that only some have.
        """
        if not batches:
            raise ValueError("batches must not be empty")
        parts: dict[str, Tensor] = {}
        for field in fields(TaskBatch):
            values = [getattr(batch, field.name) for batch in batches]
            missing = [value is None for value in values]
            if any(missing) and not all(missing):
                raise ValueError(f"{field.name} is None in batch {missing.index(True)} and not in all; fill it in")
            if not any(missing):
                parts[field.name] = torch.cat(values)
        return TaskBatch(**parts)

    def validate(self, ways: int | None = None) -> TaskBatch:
        """Checks the values: labels in range, at least one example of each kind in every task.

        On a device this waits for it, so it is left to the caller.

        Args:
            ways: width of the model's logits; None: labels are only compared with `classes`.

        Returns:
            The batch itself.

        Raises:
            ValueError: names the field and the task.

        Example:
            >>> x = torch.zeros(1, 2, 3)
            >>> TaskBatch(x, torch.tensor([[0, 5]]), x, torch.tensor([[0, 1]])).validate(ways=5)
            Traceback (most recent call last):
            ...
            ValueError: support_y of task 0 must be from 0 to 4 (5 classes), got 5
        """
        limit = None if ways is None else integer("ways", ways, minimum=1)
        if self.classes is not None:
            top = torch.iinfo(torch.int64).max if limit is None else limit
            wrong = ((self.classes < 1) | (self.classes > top)).nonzero()
            if len(wrong):
                task = int(wrong[0])
                expected = "at least 1" if limit is None else f"from 1 to {limit}, the width of the logits"
                raise ValueError(f"classes of task {task} must be {expected}, got {int(self.classes[task])}")
        for part in ("support", "query"):
            self._check_values(part, limit)
        return self

    def _check_part(self, part: str, tasks: int) -> None:
        x, y, mask = (getattr(self, f"{part}_{name}") for name in ("x", "y", "mask"))
        if not (x.is_floating_point() or x.dtype is torch.int64):
            raise TypeError(f"{part}_x must be floating or int64 (token numbers), got {x.dtype}")
        if not (y.is_floating_point() or y.dtype is torch.int64):
            raise TypeError(f"{part}_y must be int64 class numbers or floating targets, got {y.dtype}")
        if x.dim() < 2 or x.shape[0] != tasks:
            raise ValueError(f"{part}_x must be [{tasks}, examples, ...], got shape {tuple(x.shape)}")
        expected = f"[{tasks}, {x.shape[1]}]" if y.dtype is torch.int64 else f"[{tasks}, {x.shape[1]}, numbers]"
        if y.dim() != (2 if y.dtype is torch.int64 else 3) or y.shape[:2] != x.shape[:2]:
            raise ValueError(f"{part}_y of {y.dtype} must be {expected}, got shape {tuple(y.shape)}")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
                raise TypeError(f"{part}_mask must be a bool tensor, got {_describe(mask)}")
            if mask.shape != x.shape[:2]:
                raise ValueError(f"{part}_mask must be {list(x.shape[:2])} as {part}_x, got {list(mask.shape)}")

    def _check_values(self, part: str, limit: int | None) -> None:
        y, mask = getattr(self, f"{part}_y"), getattr(self, f"{part}_mask")
        examples = torch.full((self.tasks,), y.shape[1]) if mask is None else mask.sum(1)
        empty = (examples == 0).nonzero()
        if len(empty):
            raise ValueError(f"{part} of task {int(empty[0])} must have at least one example, got none")
        if y.is_floating_point():
            return
        wrong = y < 0
        tops = self.classes if self.classes is not None else None
        if tops is not None:
            wrong = wrong | (y >= tops[:, None])
        elif limit is not None:
            wrong = wrong | (y >= limit)
        if mask is not None:
            wrong = wrong & mask
        found = wrong.nonzero()
        if len(found):
            task, example = found[0].tolist()
            top = int(tops[task]) if tops is not None else limit
            expected = "at least 0" if top is None else f"from 0 to {top - 1} ({top} classes)"
            raise ValueError(f"{part}_y of task {task} must be {expected}, got {int(y[task, example])}")

    def _items(self, optional: bool = True) -> list[tuple[str, Tensor]]:
        """Names and values of the fields that are there."""
        names = [field.name for field in fields(self)][: None if optional else 4]
        return [(name, getattr(self, name)) for name in names if not optional or getattr(self, name) is not None]

    def _map(self, function: Callable[[Tensor], Tensor]) -> TaskBatch:
        return TaskBatch(**{name: function(value) for name, value in self._items()})


def _describe(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
