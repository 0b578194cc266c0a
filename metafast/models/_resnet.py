"""The residual network of CIFAR experiments, in any width."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from metafast.models._small import _seeded, _sizes


class ResNet18(nn.Module):
    """ResNet-18 as it is used on CIFAR: a 3×3 stem without pooling, four stages of two residual blocks, one layer.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        width: channels of the first stage; the others have 2, 4 and 8 times as many. 64 is the usual network, with
            11.2 M parameters; with 8 it has 0.18 M and 1/64 of the work.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> ResNet18(3, 10, width=4, seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, with section 4.2's stem.
    """

    def __init__(self, in_channels: int, classes: int, *, width: int = 64, seed: int | None = None) -> None:
        super().__init__()
        in_channels, classes, width = _sizes(in_channels=in_channels, classes=classes, width=width)
        with _seeded(seed):
            layers: list[nn.Module] = [
                nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            before = width
            for stage in range(4):
                after = width * 2**stage
                layers += [BasicBlock(before, after, 2 if stage else 1), BasicBlock(after, after, 1)]
                before = after
            self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.classifier = nn.Linear(before, classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, in_channels, H, W]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to their input, which a 1×1 convolution fits where shapes differ."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        plain = stride == 1 and before == after
        self.shortcut: nn.Module = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's outputs."""
        return F.relu(self.branch(x) + self.shortcut(x))
