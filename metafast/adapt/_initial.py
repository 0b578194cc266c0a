"""Where adaptation starts, read off the support set: prototypes as the head, and a shift of every site."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metafast.adapt._sites import Site, Values

TINY = 1e-12


class Initial(nn.Module):
    r"""A head from the classes' mean features, and starts of the sites from the mean feature of the task.

    The head is \(w_c = 2 \tau m_c\), \(b_c = -\tau |m_c|^2\) with \(m_c = c + V \mathrm{relu}(U c)\) of the class's
    mean feature c less that of the task, and \(\tau = e^a / \mathrm{mean}_c |m_c|^2\): the nearest prototype at a
    learned temperature. V starts at 0, and so do the shifts.

    Args:
        width: of the features.
        sites: those that adapt.
        hidden: width of the hidden layers.
        dropout: of the task's hidden layer.

    Source:
        E. Triantafillou et al., Meta-Dataset, ICLR 2020 (Proto-MAML); J. Requeima et al., Fast and Flexible Multi-Task
        Classification Using Conditional Neural Adaptive Processes, NeurIPS 2019 (adapters read off the support set).
    """

    def __init__(self, width: int, sites: Sequence[Site], hidden: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.task = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        self.counts = [site.modulations for site in sites]
        self.shifts = nn.Linear(hidden, sum(self.counts)) if sum(self.counts) else None
        for layer in (self.up, self.shifts):
            if layer is not None:
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)

    def sites(self, features: Tensor, mask: Tensor | None, sites: Sequence[Site], starts: list[Values]) -> list[Values]:
        """The starts `[T, *shape]` of the sites.

        Args:
            features: `[T, S, D]` of the support set at the common starts.
            mask: `[T, S]`.
            sites: those that adapt.
            starts: the common ones, `[*shape]`.
        """
        tasks = len(features)
        if self.shifts is None:
            amounts = [features.new_zeros(tasks, 0)] * len(sites)
        else:
            hidden = self.task(_mean(features, mask))
            amounts = list(self.shifts(hidden).split(self.counts, 1))
        return [
            site.modulate(start, amount)
            if site.modulations
            else {name: value.expand(tasks, *value.shape) for name, value in start.items()}
            for site, start, amount in zip(sites, starts, amounts, strict=True)
        ]

    def head(self, features: Tensor, labels: Tensor, mask: Tensor | None, classes: int) -> Values:
        """Weight `[T, C, D]` and bias `[T, C]` of a head; classes without an example are at 0.

        Args:
            features: `[T, S, D]` of the support set.
            labels: `[T, S]`.
            mask: `[T, S]`.
            classes: C.
        """
        hot = nn.functional.one_hot(labels.clamp(0, classes - 1), classes).to(features.dtype)  # [T, S, C]
        if mask is not None:
            hot = hot * mask.unsqueeze(-1)
        count = hot.sum(1)  # [T, C]
        centre = _mean(features, mask)
        means = torch.einsum("tsc,tsd->tcd", hot, features - centre[:, None]) / count.clamp(min=1).unsqueeze(-1)
        means = means + self.up(torch.relu(self.down(means)))
        square = means.square().sum(-1)
        there = (count > 0).to(square.dtype)
        typical = (square * there).sum(1) / there.sum(1).clamp(min=1)
        tau = torch.exp(self.temperature) / (typical + TINY)  # [T]
        weight = 2 * tau[:, None, None] * means
        # the features are not centred when the head sees them
        bias = -tau[:, None] * square - torch.einsum("tcd,td->tc", weight, centre)
        return {"weight": weight, "bias": bias}


def _mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """`[T, D]` over the support set."""
    if mask is None:
        return features.mean(1)
    weight = mask.to(features.dtype)
    return (features * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
