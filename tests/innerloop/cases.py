"""Models, data and comparisons that the tests of inner loops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.data import TaskBatch
from metafast.innerloop import InnerLoop, Outcome


class Residual(nn.Module):
    """A block written with functions: in-place sum, views by size, a mean over positions."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), norm(4)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.gelu(self.norm(self.stem(x))), 2)
        y = self.left(x)
        y += self.right(x)
        return self.head((F.silu(y) + torch.tanh(x)).mean((2, 3)).view(x.size(0), -1))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.again(torch.tanh(self.first(torch.flatten(x, 1)))))
        return self.last(F.leaky_relu(self.again(x), 0.2))


class Means(nn.Module):
    """The mean over positions, one dimension after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, (3, 1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.tanh(self.first(x)).mean(3, keepdim=True))
        return self.head(x.mean(-1).mean(-1))


class Bag(nn.Module):
    """The mean of embeddings, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 5, mode="mean", padding_idx=0), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.bag(tokens)))


class MeanEmbedding(nn.Module):
    """An embedding, averaged by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


def strided(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), norm(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, (3, 2)), norm(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


def pooled() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"), nn.GroupNorm(2, 4), nn.MaxPool2d(2), nn.InstanceNorm2d(4, affine=True),
        nn.LeakyReLU(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.LayerNorm(16), nn.Identity(), nn.Linear(16, 3),
    )  # fmt: skip


def unflattened() -> nn.Sequential:
    """Examples that are neither vectors nor maps, made maps first."""
    return nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (2, 3, 4)), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
    )


def rows() -> nn.Sequential:
    """Examples without a channel dimension."""
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.SiLU(), nn.Linear(5, 3))


IMAGE = (2, 6, 6)
COMPILED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "strided": (strided, IMAGE),
    "residual": (Residual, IMAGE),
    "pooled": (pooled, IMAGE),
    "shared": (Shared, (1, 2, 3)),
    "means": (Means, IMAGE),
    "unflattened": (unflattened, (2, 2, 2, 3)),
    "rows": (rows, (3, 4)),
    "bag": (Bag, (4,)),
    "mean_embedding": (MeanEmbedding, (4,)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    model = COMPILED[name][0]().to(dtype)
    with torch.no_grad():  # away from ones and zeros, which hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def make_batch(
    shape: tuple[int, ...], *, tasks: int = 3, support: int = 5, query: int = 4, classes: int = 3, seed: int = 0,
    dtype: torch.dtype = torch.float64, tokens: bool = False, masked: bool = False,
) -> TaskBatch:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    fields: dict[str, Any] = {}
    for part, n in (("support", support), ("query", query)):
        if tokens:
            fields[f"{part}_x"] = torch.randint(0, 9, (tasks, n, *shape), generator=generator)
        else:
            fields[f"{part}_x"] = torch.randn(tasks, n, *shape, generator=generator).to(dtype)
        fields[f"{part}_y"] = torch.randint(0, classes - int(masked), (tasks, n), generator=generator)
        if masked:
            fields[f"{part}_mask"] = torch.arange(n) < n - torch.arange(tasks)[:, None] % 3
    if masked:
        fields["classes"] = classes - torch.arange(tasks) % 2
    return TaskBatch(**fields)


def batch_of(name: str, **options: Any) -> TaskBatch:
    return make_batch(COMPILED[name][1], tokens="bag" in name or "embedding" in name, **options)


def gradients(inner: InnerLoop, batch: TaskBatch, **options: Any) -> tuple[Outcome, dict[str, Tensor]]:
    """The outcome, and every gradient by name; rates and inputs too where they require one."""
    inner.model.zero_grad(set_to_none=True)
    rates = options.get("rates")
    sources = {"rates": rates, "support_x": batch.support_x, "query_x": batch.query_x}
    for source in sources.values():
        if isinstance(source, Tensor):
            source.grad = None
    outcome = inner(batch, **options)
    outcome.loss.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in inner.model.named_parameters()}
    for name, source in sources.items():
        if isinstance(source, Tensor) and source.requires_grad:
            found[name] = torch.zeros_like(source) if source.grad is None else source.grad.clone()
    return outcome, {name: grad.clone() for name, grad in found.items()}


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error of any gradient, relative to the largest element of all."""
    assert actual.keys() == expected.keys()
    scale = max(float(e.abs().max()) for e in expected.values())
    return max((float((actual[n] - e).abs().max()) / scale, n) for n, e in expected.items())
