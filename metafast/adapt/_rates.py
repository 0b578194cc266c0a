"""ALFA: the rate and decay of every tensor's next step, read off the task's state by a small network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metafast.adapt._feedback import SIGNALS

TENSOR_FEATURES = 5
TINY = 1e-12


class Rates(nn.Module):
    r"""\(\alpha = e^{a_{k,l} + 2 \tanh h}\), \(\beta = b_{k,l} + 0.1 \tanh h'\); h, h' of one network for all tensors.

    What the network sees of tensor l at step k: the sizes of gradient and weights, their means in these sizes, the
    cosine between the gradient and the last update; of the task its support loss, how it has changed, and how far the
    steps are.

    Args:
        tensors: how many adapt.
        steps: K; later ones have the rates of the last.
        rate: where all rates start.
        width: of the hidden layer.
        dropout: of the hidden layer.

    Source:
        S. Baik et al., Meta-Learning with Adaptive Hyperparameters, NeurIPS 2020; one network for all tensors and
        learned rates in log space are ours.
    """

    def __init__(self, tensors: int, steps: int, rate: float, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.full((steps, tensors), math.log(rate)))
        self.decay = nn.Parameter(torch.zeros(steps, tensors))
        self.inputs = nn.Linear(TENSOR_FEATURES + SIGNALS, width)
        self.places = nn.Parameter(torch.zeros(tensors, width))
        self.dropout = nn.Dropout(dropout)
        self.outputs = nn.Linear(width, 2)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def forward(self, state: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Rates and decays `[T, tensors]` from the state `[T, tensors, features]`."""
        row = min(step, len(self.log_rate) - 1)
        hidden = self.dropout(torch.relu(self.inputs(state) + self.places))
        rate, decay = torch.tanh(self.outputs(hidden)).unbind(-1)
        return torch.exp(self.log_rate[row] + 2 * rate), self.decay[row] + 0.1 * decay


@torch.no_grad()
def state_of(values: list[Tensor], grads: list[Tensor], updates: list[Tensor] | None, signals: Tensor) -> Tensor:
    """What `Rates` sees, `[T, tensors, 8]`.

    Args:
        values: of each tensor, `[T, ...]`.
        grads: likewise.
        updates: the last ones; None before the first.
        signals: `[T, 3]`, see `feedback`.
    """
    size, mean, value_size, value_mean = [], [], [], []
    cosine = []
    for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
        g, v = grad.flatten(1), value.flatten(1)
        size.append(g.square().mean(1).sqrt())
        mean.append(g.mean(1) / (size[-1] + TINY))
        value_size.append(v.square().mean(1).sqrt())
        value_mean.append(v.mean(1) / (value_size[-1] + TINY))
        if updates is None:
            cosine.append(torch.zeros_like(size[-1]))
        else:
            u = updates[i].flatten(1)
            cosine.append((g * u).sum(1) / (g.norm(dim=1) * u.norm(dim=1) + TINY))
    logs = [(torch.stack(found, 1) + 1e-8).log10() / 4 for found in (size, value_size)]
    own = torch.stack([logs[0], logs[1], *(torch.stack(found, 1) for found in (mean, value_mean, cosine))], 2)
    return torch.cat([own, signals[:, None].expand(-1, own.shape[1], -1)], 2)
