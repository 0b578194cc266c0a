"""The inner optimizers and their backward, on `[T, P]` tensors; the formulas stand in `inner_loop.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Rule:
    """Gradient descent (0), with momentum (1), Adam (2); keeps what its backward needs of every step."""

    kind: int
    momentum: float
    beta2: float
    eps: float
    weight_decay: float
    prox: float

    def __post_init__(self) -> None:
        if self.kind not in (0, 1, 2):
            raise ValueError(f"rule must be 0 (SGD), 1 (momentum) or 2 (Adam), got {self.kind}")
        self.m: Tensor | None = None
        self.v: Tensor | None = None
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []  # d, m hat, v hat of each step
        self.m_bar: Tensor | None = None
        self.v_bar: Tensor | None = None

    def update(self, g: Tensor, theta: Tensor, start: Tensor) -> Tensor:
        """u of the next step."""
        d = g + self.weight_decay * theta
        if self.prox != 0:
            d = d + self.prox * (theta - start)
        if self.kind == 0:
            return d
        if self.kind == 1:
            self.m = d if self.m is None else self.momentum * self.m + d
            return self.m
        m, v = (1 - self.momentum) * d, (1 - self.beta2) * d * d
        self.m = m if self.m is None else self.momentum * self.m + m
        self.v = v if self.v is None else self.beta2 * self.v + v
        t = len(self.kept) + 1
        m_hat, v_hat = self.m / (1 - self.momentum**t), self.v / (1 - self.beta2**t)
        self.kept.append((d, m_hat, v_hat))
        return m_hat / (v_hat.sqrt() + self.eps)

    def backward(self, u_bar: Tensor) -> Tensor:
        """d bar of the last step that is not yet reversed."""
        if self.kind == 0:
            return u_bar
        if self.kind == 1:
            d_bar = u_bar if self.m_bar is None else u_bar + self.m_bar
            self.m_bar = self.momentum * d_bar
            return d_bar
        t = len(self.kept)
        d, m_hat, v_hat = self.kept.pop()
        root = v_hat.sqrt()
        denominator = root + self.eps
        m_bar = u_bar / denominator / (1 - self.momentum**t)
        through_root = torch.where(v_hat > 0, -u_bar * m_hat / (denominator.square() * 2 * root), 0)
        v_bar = through_root / (1 - self.beta2**t)
        if self.m_bar is not None and self.v_bar is not None:
            m_bar, v_bar = m_bar + self.m_bar, v_bar + self.v_bar
        self.m_bar, self.v_bar = self.momentum * m_bar, self.beta2 * v_bar
        return (1 - self.momentum) * m_bar + 2 * (1 - self.beta2) * d * v_bar
