"""Adam whose rate is learned by automatic differentiation through its own update, the "ultimate optimizer" way.

The new parameters keep their graph back to alpha. The next gradient then flows into alpha too, SGD moves alpha, and the
graph is cut:

    theta_t = stop(theta_{t-1}) - alpha u_t,   alpha <- alpha - kappa d f(theta_t) / d alpha

It does what AdamHD does, for any update and with no derivation, at the price of a graph over all parameters.
Written from the paper, because its package (gdtuo) is on no index.

Source: Chandra, Xie, Ragan-Kelley & Meijer, Gradient descent: the ultimate optimizer, NeurIPS 2022, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamBaydin:
    """Adam whose alpha is trained by SGD on the gradient that autograd finds.

    Args:
        params: parameters with gradients.
        lr: starting rate.
        betas: decay of the moments.
        eps: added to the denominator.
        hyper_lr: kappa, the step of the rate.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        hyper_lr: float = 1e-8,
    ) -> None:
        self.params = list(params)
        self.betas, self.eps, self.hyper_lr = betas, eps, hyper_lr
        self.alpha = torch.tensor(lr, requires_grad=True)
        self.steps = 0
        self.moments = [(torch.zeros_like(p.detach()), torch.zeros_like(p.detach())) for p in self.params]
        self.updated: list[Tensor] = []  # the last step's results, with their graph

    def step(self) -> None:
        """Performs one step: alpha first, then the parameters."""
        beta1, beta2 = self.betas
        grads = [p.grad for p in self.params if p.grad is not None]
        if self.updated:
            # A model that computes with `updated` would do this within its own backward pass.
            torch.autograd.backward(self.updated, grads, inputs=[self.alpha])
            assert self.alpha.grad is not None
            with torch.no_grad():
                self.alpha.sub_(self.alpha.grad, alpha=self.hyper_lr)
            self.alpha.grad = None
        self.steps += 1
        self.updated = []
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            m, v = self.moments[i]
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            self.moments[i] = (m, v)
            m_hat = m / (1 - beta1**self.steps)
            v_hat = v / (1 - beta2**self.steps)
            new = p.detach() - self.alpha * (m_hat / (v_hat**0.5 + self.eps))
            self.updated.append(new)
            p.data.copy_(new.detach())
