"""Validation data: batch after batch from a loader, resumable, without touching the training's random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast._checks import integer
from metafast.runs import rng_state, seed_all, set_rng_state


class Feedback:
    """Goes through a loader again and again; every epoch and batch has random numbers of its own from the seed."""

    def __init__(self, loader: Iterable[Any] | None, batches: int | str, seed: int) -> None:
        if loader is None:
            raise ValueError(
                "val_loader is missing: hypergradients need data that the training does not see; give train_loader "
                "instead and use tuner.train_loader, or split: train, val = metafast.tune.holdout(dataset, 0.1, seed=0)"
            )
        if isinstance(loader, Iterator) or not hasattr(loader, "__iter__"):
            raise TypeError(
                f"val_loader must be an iterable that can be gone through again, such as a DataLoader or a list of "
                f"batches, got {type(loader).__name__}"
            )
        if isinstance(loader, Sized) and len(loader) == 0:
            raise ValueError("val_loader is empty; hypergradients need at least one batch of validation data")
        if isinstance(batches, str):
            if batches != "all":
                raise ValueError(f'val_batches must be a number of batches or "all", got {batches!r}')
        else:
            batches = integer("val_batches", batches, minimum=1)
        self._loader, self._batches, self._seed = loader, batches, seed
        self._epoch, self._position = -1, 0
        self._iterator: Iterator[Any] | None = None
        self._own_state: Any = None  # of the loader's own randomness or position, where the epoch began

    def take(self) -> list[Any]:
        """The batches of one hypergradient."""
        outside = rng_state()
        try:
            if self._batches == "all":
                self._begin()
                assert self._iterator is not None
                found = list(self._iterator)
                if not found:
                    raise ValueError("val_loader gave no batch; hypergradients need validation data")
                return found
            assert isinstance(self._batches, int)
            return [self._next() for _ in range(self._batches)]
        finally:
            set_rng_state(outside)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, and what the loader itself had where the epoch began."""
        return {"epoch": self._epoch, "position": self._position, "own": self._own_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position; batches before it are read and dropped."""
        self._epoch, self._position, self._iterator = state["epoch"], 0, None
        self._own_state = state["own"]
        if self._epoch < 0 or self._batches == "all":
            return
        outside = rng_state()
        try:
            self._epoch -= 1
            self._begin(state["own"])
            for _ in range(state["position"]):
                self._next()
        finally:
            set_rng_state(outside)

    def _begin(self, own_state: Any = None) -> None:
        self._epoch, self._position = self._epoch + 1, 0
        generator = getattr(self._loader, "generator", None)
        if isinstance(generator, torch.Generator):
            if own_state is not None:
                generator.set_state(own_state)
            self._own_state = generator.get_state()
        elif hasattr(self._loader, "load_state_dict"):
            if own_state is not None:
                self._loader.load_state_dict(own_state)
            self._own_state = dict(self._loader.state_dict())  # type: ignore[attr-defined]
        self._draw()
        self._iterator = iter(self._loader)

    def _next(self) -> Any:
        for _ in range(2):
            if self._iterator is not None:
                self._draw()
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    pass
                else:
                    self._position += 1
                    return batch
            self._begin()
        raise ValueError("val_loader gave no batch; hypergradients need validation data")

    def _draw(self) -> None:
        seed_all((self._seed * 1_000_003 + self._epoch * 10_007 + self._position) % 2**32)


def default_loss(model: nn.Module, *batch: Any) -> Tensor:
    """Cross-entropy where targets are class numbers, mean squared error where they are numbers."""
    if len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise ValueError(
            f"a validation batch has {len(batch)} parts, and without val_loss it must be (inputs, targets); "
            "give val_loss=lambda model, *batch: ..."
        )
    inputs, targets = batch
    outputs = model(inputs)
    if targets.is_floating_point():
        if outputs.shape != targets.shape:
            raise ValueError(
                f"outputs have shape {tuple(outputs.shape)} and validation targets {tuple(targets.shape)}; "
                "give val_loss=lambda model, *batch: ..."
            )
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs, targets)


def parts_of(batch: Any, device: torch.device) -> tuple[Any, ...]:
    """The arguments that a batch stands for, on the model's device."""
    moved = _moved(batch, device)
    return tuple(moved) if isinstance(moved, list | tuple) else (moved,)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_moved(item, device) for item in value]
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


Loss = Callable[..., Tensor]
