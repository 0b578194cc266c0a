"""Meta-batches made ahead of their use, in memory that is used again once nobody holds it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from itertools import count
from typing import Any

import numpy as np
import torch

from metafast.data._collate import Array, Arrays, Plan, collate, native, native_collator


class Pool:
    """Memory for the meta-batches of one plan.

    The pages of fresh memory would cost more than filling them, so arrays that no tensor refers to any more are handed
    out again; a batch that somebody keeps stays as it is.
    """

    def __init__(self, plan: Plan, keep: int, pinned: bool) -> None:
        self._plan = plan
        self._keep = keep
        self._pinned = pinned
        self._held: list[Arrays] = []
        self._idle: list[int] | None = None

    def take(self) -> Arrays:
        """Arrays that nobody uses."""
        for arrays in self._held:
            if _references(arrays) == self._idle:
                return arrays
        self._held.append(self._fresh())
        del self._held[: -self._keep]
        if self._idle is None:
            self._idle = _references(self._held[-1])
        return self._held[-1]

    def _fresh(self) -> Arrays:
        plan = self._plan
        parts: dict[str, Array] = {"classes": self._empty((plan.count,), np.dtype(np.int64))}
        for part, width in (("support", plan.support), ("query", plan.query)):
            parts[f"{part}_x"] = self._empty((plan.count, width, *plan.shape), plan.dtype)
            parts[f"{part}_y"] = self._empty((plan.count, width), np.dtype(np.int64))
            parts[f"{part}_mask"] = self._empty((plan.count, width), np.dtype(np.bool_))
        return Arrays(**parts)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if not self._pinned:
            return np.empty(shape, dtype)
        kinds = {"f": torch.float32, "i": torch.int64, "b": torch.bool}
        return torch.empty(shape, dtype=kinds[dtype.kind], pin_memory=True).numpy()


def stream(
    plan: Plan, pool: Pool, first: int, stop: int | None, workers: int, prefetch: int
) -> Generator[Arrays, None, None]:
    """Meta-batches `first` to `stop - 1` in order; C++ threads fill the next `prefetch` while one is in use.

    Closing the iterator, or letting go of it, ends the threads.
    """
    process = os.getpid()
    collator = native_collator(plan, workers) if native() is not None else None
    ahead: dict[int, Arrays] = {}
    following = first
    try:
        for number in range(first, stop) if stop is not None else count(first):
            # a forked child has no threads: it makes what it needs itself
            while collator is not None and prefetch and os.getpid() == process and following <= number + prefetch:
                if stop is not None and following >= stop:
                    break
                ahead[following] = pool.take()
                collator.submit(following, ahead[following].all())
                following += 1
            arrays = ahead.pop(number, None)
            if collator is None or arrays is None or not collator.wait(number):
                arrays = pool.take()
                if collator is not None:
                    collator.collate(number, arrays.all())
                else:
                    collate(plan, number, arrays)
            yield arrays
            del arrays
    finally:
        if collator is not None:
            collator.close()


def _references(arrays: Arrays) -> list[int]:
    return [sys.getrefcount(array) for array in arrays.all()]
