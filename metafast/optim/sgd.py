"""SGD whose learning rate may adapt itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._base import ParamsT
from ._buckets import Bucket, Call
from ._fused import FusedOptimizer


class SGD(FusedOptimizer):
    r"""SGD, equal to `torch.optim.SGD`, in one memory pass and with a learning rate that can adapt itself.

    With `hypergrad`, the rate follows \(\partial f / \partial \alpha = -g_t^\top u_{t-1}\). With plain momentum
    \(u_{t-1}\) is the old buffer; without momentum, or with Nesterov momentum, it is kept in a state of its own.

    Args:
        params: parameters, named parameters, or dicts of parameter groups with options of their own.
        lr: learning rate; the starting rate with `hypergrad`. Default 1e-3.
        momentum: momentum factor in [0, 1). Default 0.
        dampening: dampening of the momentum. Default 0.
        weight_decay: L2 penalty. Default 0.
        nesterov: Nesterov momentum; needs momentum and no dampening. Default False. The other arguments
            are those of `Adam`.

    Raises:
        TypeError, ValueError: an option is unknown or out of range; the message names it, and what is accepted.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = metafast.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, hypergrad="global")
        >>> model(torch.ones(2, 4)).square().mean().backward()
        >>> opt.step()

    Source:
        Sutskever et al., ICML 2013; Baydin et al., ICLR 2018 (Algorithms 4 and 6, SGD-HD and SGDN-HD).
    """

    _ops = ("sgd", "hyper_sgd")
    _exact_applies_moments = False
    _hyper_lr = 0.2
    _additive_hyper_lr = 1e-3

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        capturable: bool = False,
        hypergrad: str | None = None,
        hyper_lr: float | None = None,
        hyper_rule: str = "normalized",
        hyper_exact: bool = False,
        safe_start: float | None = 0.1,
        lr_bounds: tuple[float, float] = (1e-8, 10.0),
        state_dtype: torch.dtype = torch.float32,
        rate_dtype: torch.dtype = torch.float32,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        max_grad_norm: float | None = None,
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "capturable": capturable,
            "hypergrad": hypergrad,
            "hyper_lr": hyper_lr,
            "hyper_rule": hyper_rule,
            "hyper_exact": hyper_exact,
            "safe_start": safe_start,
            "lr_bounds": lr_bounds,
            "state_dtype": state_dtype,
            "rate_dtype": rate_dtype,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "backend": backend,
        }
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, seed=seed)

    def _check_group(self, group: dict[str, Any]) -> None:
        _checks.common(group)
        _checks.number("momentum", group["momentum"], lambda x: 0 <= x < 1, "in [0, 1)")
        _checks.number("dampening", group["dampening"], lambda x: 0 <= x <= 1, "in [0, 1]")
        _checks.flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum above 0 and dampening=0, got momentum={group['momentum']!r} and "
                f"dampening={group['dampening']!r}"
            )

    def _first_updates(
        self, group: dict[str, Any], call: Call, grad_scale: Tensor | None, clip: Tensor | None
    ) -> Tensor:
        # Momentum lets a steady gradient grow to g / (1 - momentum).
        factor = torch.ones((), dtype=torch.float64, device=call.bucket.device) / (1.0 - group["momentum"])
        for scale, power in ((clip, 1), (grad_scale, -1)):
            if scale is not None:
                factor = factor * scale.to(factor) ** power
        return self._squares(group, call, "grads") * factor.square()

    def _keeps_previous(self, group: dict[str, Any]) -> bool:
        return group["hypergrad"] is not None and (group["momentum"] == 0 or group["nesterov"])

    def _previous_known(self, group: dict[str, Any]) -> bool:
        return self._keeps_previous(group) or (group["momentum"] != 0 and not group["nesterov"])

    def _state_names(self, group: dict[str, Any]) -> dict[str, torch.dtype]:
        names = (["momentum_buffer"] if group["momentum"] != 0 else []) + (
            ["previous"] if self._keeps_previous(group) else []
        )
        return dict.fromkeys(names, group["state_dtype"])

    def _states(self, bucket: Bucket) -> tuple[Tensor | None, ...]:
        return bucket.states.get("momentum_buffer"), bucket.states.get("previous")

    def _options(self, group: dict[str, Any]) -> tuple[Any, ...]:
        return (
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            group["nesterov"],
        )
