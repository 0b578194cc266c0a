"""Trainings whose time and memory are measured, on random data: neither depends on what the data are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.models import MLP, BertClassifier, ResNet18, SmallCNN

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """A model, its batches and its optimizer.

    Attributes:
        model: makes the model.
        inputs: makes the inputs of a batch of a size.
        batch: examples of a batch.
        adam: whether AdamW trains it; else SGD with momentum.
    """

    model: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]
    batch: int
    adam: bool = False

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """PyTorch's, with options that change nothing about the work."""
        if self.adam:
            return torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=1e-2)
        return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    @property
    def options(self) -> list[str]:
        """What is tuned of it."""
        return ["lr", "betas", "weight_decay"] if self.adam else ["lr", "momentum", "weight_decay"]

    def batches(self, count: int, seed: int) -> list[Batch]:
        """Batches of ten classes."""
        generator = torch.Generator().manual_seed(seed)
        return [
            (self.inputs(self.batch, generator), torch.randint(10, (self.batch,), generator=generator))
            for _ in range(count)
        ]


def _images(channels: int, size: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda batch, generator: torch.randn(batch, channels, size, size, generator=generator)


WORKLOADS = {
    "mlp": Workload(lambda: MLP(784, (512, 512), 10, seed=0), _images(1, 28), 64),
    "cnn": Workload(lambda: SmallCNN(3, 10, 32, width=16, seed=0), _images(3, 32), 64),
    "resnet18": Workload(lambda: ResNet18(3, 10, width=16, seed=0), _images(3, 32), 64),
    "bert": Workload(
        lambda: BertClassifier(10, dim=128, layers=2, heads=2, length=64, buckets=4096, seed=0),
        lambda batch, generator: torch.randint(1, 4096, (batch, 64), generator=generator),
        32,
        adam=True,
    ),
}


def loss_of(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of a batch."""
    return lambda x, y: F.cross_entropy(model(x), y)
