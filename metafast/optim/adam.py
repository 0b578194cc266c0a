"""Adam and AdamW whose learning rate may adapt itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._base import ParamsT
from ._buckets import Bucket, Call
from ._fused import FusedOptimizer


class Adam(FusedOptimizer):
    r"""Adam, equal to `torch.optim.Adam`, in one memory pass and with a learning rate that can adapt itself.

    With `hypergrad`, the rate \(\alpha\) follows the hypergradient
    \(\partial f / \partial \alpha = -g_t^\top u_{t-1}\), which costs no memory and no extra pass: \(u_{t-1}\) is
    recomputed from the old moments inside the step. A scheduler multiplies the learned rate: the effective rate is
    `learned * group["lr"] / starting lr`.

    Args:
        params: parameters, named parameters, or dicts of parameter groups with options of their own.
        lr: learning rate; the starting rate with `hypergrad`. A float, or a tensor of one element. Default 1e-3.
        betas: decay of the first and second moment. Default (0.9, 0.999).
        eps: added to the denominator. Default 1e-8.
        weight_decay: L2 penalty (coupled); decoupled in `AdamW`. Default 0.
        amsgrad: divide by the running maximum of the second moment. Default False.
        maximize: ascend. Default False.
        capturable: kept for checkpoints of PyTorch; the steps never synchronize with a device. Default False.
        hypergrad: what has a rate of its own: None (fixed rate), "global", "group", "tensor" or "element".
        hyper_lr: step of the rate. Default (None): 0.5 (SGD: 0.2) for "normalized" and "multiplicative", 0.05 for
            "sign" and for hypergrad="tensor", and 0.02 with "element", where the cosine is a sign; 1e-7 (SGD: 1e-3) for
            "additive", as in the paper, whose unit is that of lr / g·u.
        hyper_rule: "normalized" (default) multiplies the rate by `exp(hyper_lr * cos(g, u))`; "multiplicative" by
            `1 + hyper_lr * cos(g, u)`; "sign" by `exp(hyper_lr * sign(g·u))`; "additive" adds `hyper_lr * g·u`
            (Baydin et al. 2018).
        hyper_exact: False: one pass, the rate is one step late. True: the rate of a step uses that step's
            gradient, as in the paper, for a second pass over the states. "element" is always exact.
        safe_start: before its first step, a learned rate is lowered to `safe_start * |p| / |u|` of the weight matrix
            where that is smallest, so that a rate that starts far too large does not wreck the weights. None: no
            limit. Default 0.1.
        lr_bounds: lowest and highest learned rate. Default (1e-8, 10).
        state_dtype: dtype of the moments, float32 or bfloat16. Default float32.
        rate_dtype: dtype of the rates of "element", float32 or bfloat16. Default float32.
        master_weights: keep an fp32 copy of bfloat16 and float16 parameters. Default False.
        stochastic_rounding: round bfloat16 parameters, states and rates stochastically. Default False.
        max_grad_norm: clip all gradients together to this norm, as `clip_grad_norm_` does, without writing them.
        seed: of stochastic rounding. Default 0.
        backend: None (the best that is there), "reference", "cpu", "cuda" or "triton". A missing one is an error.

    Raises:
        TypeError, ValueError: an option is unknown or out of range; the message names it, and what is accepted.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = metafast.optim.Adam(model.parameters(), lr=1e-3, hypergrad="tensor")
        >>> model(torch.ones(2, 4)).square().mean().backward()
        >>> opt.step()
        >>> len(opt.learned_lr())
        2

    Source:
        Kingma & Ba, ICLR 2015 (Algorithm 1); Reddi et al., ICLR 2018 (AMSGrad); Baydin et al., ICLR 2018
        (Algorithm 5, Adam-HD).
    """

    _ops = ("adam", "hyper_adam")
    _exact_applies_moments = True
    _decoupled = False
    _hyper_lr = 0.5
    _additive_hyper_lr = 1e-7

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
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
        _checks.betas(group["betas"])
        _checks.number("eps", group["eps"], lambda x: x >= 0, "at least 0")
        _checks.flag("amsgrad", group["amsgrad"])

    def _first_updates(
        self, group: dict[str, Any], call: Call, grad_scale: Tensor | None, clip: Tensor | None
    ) -> Tensor:
        # Every element of Adam's first direction has size 1, whatever the gradient's scale.
        numels = [float(p.numel()) for p in call.bucket.params]
        return torch.tensor(numels, dtype=torch.float64, device=call.bucket.device)

    def _state_names(self, group: dict[str, Any]) -> dict[str, torch.dtype]:
        names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if group["amsgrad"] else [])
        return dict.fromkeys(names, group["state_dtype"])

    def _states(self, bucket: Bucket) -> tuple[Tensor | None, ...]:
        states = bucket.states
        return states["exp_avg"], states["exp_avg_sq"], states.get("max_exp_avg_sq")

    def _options(self, group: dict[str, Any]) -> tuple[Any, ...]:
        beta1, beta2 = group["betas"]
        return float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"]), self._decoupled


class AdamW(Adam):
    r"""AdamW, equal to `torch.optim.AdamW`, in one memory pass and with a learning rate that can adapt itself.

    As `Adam`, with decoupled weight decay: \(p \leftarrow (1 - \alpha\lambda) p - \alpha u\). The decay is not part of
    \(u\) in the hypergradient.

    Args:
        weight_decay: decoupled decay. Default 1e-2. The other arguments are those of `Adam`.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = metafast.optim.AdamW(model.parameters(), lr=1e-6, hypergrad="global")
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     opt.step()
        >>> opt.learned_lr()[0] > 1e-6
        True

    Source:
        Loshchilov & Hutter, ICLR 2019 (Algorithm 2); Baydin et al., ICLR 2018 (Algorithm 5).
    """

    _decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
