"""How rates reach an optimizer, while its groups, schedulers and checkpoints go on seeing the base rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from metafast.optim._fused import FusedOptimizer


class Steering(ABC):
    """Multiplies the base rate of every parameter by a factor, in the steps to come."""

    on_host: bool  # whether factors are needed as numbers

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def base(self) -> Tensor:
        """The base rate of every parameter now, float64 `[parameters]`, on the device of the first."""
        device = self.optimizer.param_groups[0]["params"][0].device
        rows = []
        for group in self.optimizer.param_groups:
            lr, count = group["lr"], len(group["params"])
            if isinstance(lr, Tensor):
                rows.append(lr.detach().to(device, torch.float64).reshape(1).expand(count))
            else:  # filled on the device: a copy from the host would wait for it
                rows.append(torch.full((count,), float(lr), dtype=torch.float64, device=device))
        return torch.cat(rows)

    @abstractmethod
    def set(self, factors: Tensor) -> None:
        """Factors float64 `[parameters]`, on the host where `on_host`."""

    def before_step(self) -> None:  # noqa: B027
        """Right before the optimizer's step."""

    def after_step(self) -> None:  # noqa: B027
        """Right after it."""

    def release(self) -> None:  # noqa: B027
        """Lets go of the optimizer."""


class FusedSteering(Steering):
    """Through `scale_rates`: nothing waits for the device, and a tensor of its own rate costs nothing."""

    on_host = False

    def set(self, factors: Tensor) -> None:
        """Hands them over."""
        self.optimizer.scale_rates(factors)

    def release(self) -> None:
        """No factors any more."""
        self.optimizer.scale_rates(None)


class GroupSteering(Steering):
    """Through the groups' `lr`, which is put back after the step."""

    on_host = True

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._factors: list[float] | None = None
        self._kept: list[Any] = []

    def set(self, factors: Tensor) -> None:
        """One factor for each group: that of its first parameter."""
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        self._factors = [float(part[0]) for part in factors.split(sizes)]

    def before_step(self) -> None:
        """Puts the steered rates in place."""
        if self._factors is None:
            return
        self._kept = []
        for group, factor in zip(self.optimizer.param_groups, self._factors, strict=True):
            lr = group["lr"]
            if isinstance(lr, Tensor):  # compiled and captured steps hold on to the tensor
                self._kept.append(lr.clone())
                lr.mul_(factor)
            else:
                self._kept.append(lr)
                group["lr"] = lr * factor

    def after_step(self) -> None:
        """Puts the base rates back."""
        for group, lr in zip(self.optimizer.param_groups, self._kept, strict=False):
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            else:
                group["lr"] = lr
        self._kept = []


class TensorSteering(Steering):
    """For rates per tensor with an optimizer that has one per group: p <- p_before + factor (p - p_before).

    Every update that is proportional to its rate is scaled exactly by this; it costs a copy of the weights and two
    passes over them.
    """

    on_host = True

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._factors: list[float] | None = None
        self._before: list[Tensor] = []

    def _params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set(self, factors: Tensor) -> None:
        """One for each parameter."""
        self._factors = factors.tolist()

    @torch.no_grad()
    def before_step(self) -> None:
        """Keeps the weights."""
        if self._factors is not None:
            self._before = [p.detach().clone() for p in self._params()]

    @torch.no_grad()
    def after_step(self) -> None:
        """Scales what the step has done."""
        if not self._before or self._factors is None:
            return
        params = [p.detach() for p in self._params()]
        moved = torch._foreach_sub(params, self._before)
        torch._foreach_mul_(moved, self._factors)
        torch._foreach_copy_(params, torch._foreach_add(self._before, moved))
        self._before = []


def steering(optimizer: Any, per: str) -> Steering:
    """The way that fits an optimizer."""
    if isinstance(optimizer, FusedOptimizer):
        return FusedSteering(optimizer)
    return TensorSteering(optimizer) if per == "tensor" else GroupSteering(optimizer)
