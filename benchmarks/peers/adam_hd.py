"""AdamHD in plain PyTorch, as one writes it from the paper: the baseline that a fused step replaces.

    h_t = g_t · u_{t-1}  over all parameters,   alpha_t = alpha_{t-1} + beta h_t,   theta_t = theta_{t-1} - alpha_t u_t,
    u_t = m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps)

Source: Baydin, Cornish, Rubio, Schmidt & Wood, Online learning rate adaptation with hypergradient descent, ICLR 2018,
Algorithm 5 (u has the opposite sign there).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamHD(torch.optim.Optimizer):
    """Adam with one learning rate that follows its hypergradient.

    Args:
        params: parameters.
        lr: starting rate, alpha_0.
        betas: decay of the moments.
        eps: added to the denominator.
        hypergrad_lr: beta, the step of the rate.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        hypergrad_lr: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "hypergrad_lr": hypergrad_lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Performs one step on all parameters that have a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            active = [p for p in group["params"] if p.grad is not None]
            h = 0.0
            for p in active:
                if self.state[p]:
                    h += torch.dot(p.grad.flatten(), self.state[p]["direction"].flatten()).item()
            group["lr"] += group["hypergrad_lr"] * h
            for p in active:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                m_hat = m / (1 - beta1 ** state["step"])
                v_hat = v / (1 - beta2 ** state["step"])
                state["direction"] = m_hat / (v_hat.sqrt() + group["eps"])
                p.sub_(state["direction"], alpha=group["lr"])
