"""A learned rule for each coordinate: what a small network adds to the update of every single number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafast.adapt._feedback import SIGNALS

TINY = 1e-12
FEATURES = 3 + SIGNALS


class Coordinate(nn.Module):
    r"""\(u \leftarrow u + |g|\, d\, e^{0.1 m}\), where d and m come of an 8-8-2 network on each coordinate's features.

    Features: gradient, its running mean, and the number itself, each in units of its tensor's root mean square, and
    the task's feedback.

    Args:
        width: of the two hidden layers.

    Source:
        L. Metz et al., Practical Tradeoffs between Memory, Compute, and Performance in Learned Optimizers, CoLLAs 2022
        (the small_fc_lopt family), with fewer features.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        last = nn.Linear(width, 2)
        self.net = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, value: Tensor, grad: Tensor, mean: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
        """The update `[T, ...]` in place of the gradient, and the new running mean."""
        mean = 0.9 * mean + 0.1 * grad.detach()
        size = _size(grad)
        own = torch.stack([grad.detach() / size, mean / _size(mean), value.detach() / _size(value)], -1)
        told = signals.view(-1, *[1] * (grad.dim() - 1), SIGNALS).expand(*grad.shape, SIGNALS)
        inputs = torch.cat([own, told], -1)
        direction, magnitude = self.net(inputs).unbind(-1)
        return grad + size * direction * torch.exp(0.1 * magnitude), mean


def _size(x: Tensor) -> Tensor:
    size = x.detach().flatten(1).square().mean(1).sqrt() + TINY
    return size.view(-1, *[1] * (x.dim() - 1))
