"""The sums that a controller looks at: from the step of a fused optimizer, or computed beside the step of any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metafast.optim._buckets import local
from metafast.optim._fused import FusedOptimizer


class Statistics:
    """Of one step at the end of an interval: g·g, g·u, u·u, p·p of every parameter.

    A fused optimizer has them already. Of any other, weights are copied before the last step but one, and the update
    that this step made, divided by its rate, is u; AdamW's decay is taken out of it.

    Args:
        optimizer: whose steps.
        rates: gives the rate of every parameter now, float64 `[parameters]`.
        interval: steps between two decisions.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rates: Callable[[], Tensor], interval: int) -> None:
        self.optimizer, self.rates = optimizer, rates
        self._every_step = interval == 1  # every step is the last of its interval, and the last but one
        self.fused = isinstance(optimizer, FusedOptimizer)
        self._before: list[Tensor] | None = None
        self._rates: Tensor | None = None
        self._table: Tensor | None = None

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def before_step(self, to_come: int) -> None:
        """Looks at the weights and gradients where the interval is nearly over.

        Args:
            to_come: steps of the interval behind this one.
        """
        if self.fused:
            return
        if to_come == 0 and self._before is not None:
            self._table = self._measured()
        if to_come == 1 or self._every_step:
            self._before = [local(p).detach().clone() for p in self.params()]
            self._rates = self.rates()

    def read(self) -> Tensor:
        """float64 `[parameters, 4]`; NaN where nothing is known."""
        if isinstance(self.optimizer, FusedOptimizer):
            return self.optimizer.tensor_stats()
        table, self._table = self._table, None
        if not self._every_step:
            self._before = None
        if table is None:
            params = self.params()
            return torch.full((len(params), 4), torch.nan, dtype=torch.float64, device=params[0].device)
        return table

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint in the middle of an interval."""
        return {
            "before": {} if self._before is None else {str(i): x.clone() for i, x in enumerate(self._before)},
            "rates": torch.zeros(0) if self._rates is None else self._rates.clone(),
            "table": torch.zeros(0) if self._table is None else self._table.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        before = state["before"]
        self._before = [before[str(i)].clone() for i in range(len(before))] if before else None
        self._rates, self._table = (state[name].clone() if state[name].numel() else None for name in ("rates", "table"))

    def _measured(self) -> Tensor:
        assert self._before is not None and self._rates is not None
        params = self.params()
        device = local(params[0]).device
        table = torch.full((len(params), 4), torch.nan, dtype=torch.float64, device=device)
        there = [i for i, p in enumerate(params) if p.grad is not None]
        if not there:
            return table
        now, before = [local(params[i]).detach() for i in there], [self._before[i] for i in there]
        grads = [_dense(local(p.grad)) for p in params if p.grad is not None]
        moved = torch._foreach_sub(before, now)
        decays = self._decays()
        if any(decays):
            shares = [decays[i] * float(self._rates[i]) for i in there]
            torch._foreach_sub_(moved, torch._foreach_mul(before, shares))
        gg, uu, pp = (_norms(x, device) for x in (grads, moved, now))
        gu = _dots(grads, moved, device)
        rates = self._rates.to(device)[there].clamp(min=1e-30)
        scale = getattr(self.optimizer, "grad_scale", None)
        scale = torch.ones((), dtype=torch.float64, device=device) if scale is None else scale.to(device).double()
        table[there] = torch.stack([gg.square() / scale**2, gu / rates / scale, (uu / rates).square(), pp.square()], 1)
        return table

    def _decays(self) -> list[float]:
        """Decoupled weight decay of every parameter."""
        decoupled = isinstance(self.optimizer, torch.optim.AdamW)
        found = []
        for group in self.optimizer.param_groups:
            own = decoupled or group.get("decoupled_weight_decay", False)
            found += [float(group.get("weight_decay", 0.0)) if own else 0.0] * len(group["params"])
        return found


def _dense(grad: Tensor) -> Tensor:
    return grad if grad.layout is torch.strided else grad.to_dense()


def _norms(tensors: Sequence[Tensor], device: Any) -> Tensor:
    return torch.stack([norm.to(device).double() for norm in torch._foreach_norm([x.float() for x in tensors])])


def _dots(a: Sequence[Tensor], b: Sequence[Tensor], device: Any) -> Tensor:
    return torch.stack([(x.float() * y.float()).sum().to(device).double() for x, y in zip(a, b, strict=True)])
