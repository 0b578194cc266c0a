"""How good a backbone is as it stands: nearest prototypes and a linear probe on episodes of classes it never saw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from metafast.adapt._backbone import Backbone
from metafast.data import ClassSet, episodes
from metafast.metrics import Interval, mean_interval

RATES = (0.01, 0.1, 1.0, 10.0)  # of the probe, on features of length 1
STEPS = 50


@torch.no_grad()
def features_of(base: Backbone, classes: ClassSet, batch: int = 256) -> Tensor:
    """Features `[M, D]` of all examples; texts are cut to the longest of their batch."""
    inputs = classes.tensors()[0]
    device = next(base.parameters()).device
    order = torch.arange(len(inputs))
    lengths = None
    if base.vocabulary is not None:
        lengths = (inputs != (base.padding or 0)).sum(1).clamp(min=1)
        order = lengths.argsort()
    parts = []
    for rows in order.split(batch):
        x = inputs[rows] if lengths is None else inputs[rows, : int(lengths[rows].max())]
        parts.append(base(x.to(device)).cpu())
    found = torch.cat(parts)
    out = torch.empty_like(found)
    out[order] = found
    return out


def quality(
    base: Backbone, classes: ClassSet, *, ways: int = 5, shots: int = 1, queries: int = 15, n: int = 200, seed: int = 1
) -> dict[str, Interval]:
    """Accuracy on n episodes without adaptation of the backbone: nearest prototypes, and a linear probe.

    The probe is a linear layer that takes 50 steps of gradient descent from zero on features of length 1; of four rates
    the best one counts, so use it on validation classes alone.

    Args:
        base: the backbone.
        classes: that it was not trained on.
        ways: classes of an episode.
        shots: support examples of each.
        queries: query examples of each.
        n: episodes.
        seed: of the episodes.

    Returns:
        `{"prototypes": ..., "probe": ...}`, means with 95 % intervals.
    """
    table = F.normalize(features_of(base, classes), dim=1)
    rows = ClassSet(
        np.arange(len(classes.labels), dtype=np.float32)[:, None], classes.labels, classes.names, order=classes.order
    )
    drawn = episodes(rows, ways=ways, shots=shots, queries=queries, tasks=n, seed=seed, turned_classes=False)[0]
    support, query = (table[x.squeeze(-1).long()] for x in (drawn.support_x, drawn.query_x))  # [n, S, D]
    targets = F.one_hot(drawn.support_y, ways).to(support)
    prototypes = targets.mT @ support / shots
    nearest = torch.cdist(query, prototypes).argmin(2)
    probed = max(
        (_probed(support, targets, query, drawn.query_y, rate) for rate in RATES), key=lambda a: float(a.mean())
    )
    return {
        "prototypes": mean_interval((nearest == drawn.query_y).float().mean(1)),
        "probe": mean_interval(probed),
    }


def _probed(support: Tensor, targets: Tensor, query: Tensor, labels: Tensor, rate: float) -> Tensor:
    """Accuracy `[n]` of linear layers trained on all episodes at once."""
    weight = torch.zeros(len(support), targets.shape[2], support.shape[2])
    bias = torch.zeros(len(support), 1, targets.shape[2])
    for _ in range(STEPS):
        error = ((support @ weight.mT + bias).softmax(2) - targets) / targets.shape[1]
        weight -= rate * error.mT @ support
        bias -= rate * error.sum(1, keepdim=True)
    return ((query @ weight.mT + bias).argmax(2) == labels).float().mean(1)
