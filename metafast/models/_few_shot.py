"""The models of the few-shot papers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from metafast._checks import integer
from metafast.models._small import _seeded, _sizes


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, batch norm and ReLU that halve the image, then one linear layer.

    `downsample="stride"` with 64 channels is MAML's model for Omniglot (the linear layer sees the mean over positions);
    `"max_pool"` with 32 channels is its model for miniImageNet (the linear layer sees all positions).

    Args:
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        image_size: height and width of the square images.
        channels: of every convolution.
        downsample: `"stride"` (stride 2) or `"max_pool"` (2×2 after the ReLU).
        track_running_stats: of the batch norms; False normalizes by the batch at hand, in evaluation too, as MAML does.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, images that shrink to nothing, an unknown `downsample`.

    Example:
        >>> omniglot = Conv4(1, 5, 28, seed=0)
        >>> mini_imagenet = Conv4(3, 5, 84, channels=32, downsample="max_pool", seed=0)
        >>> [sum(p.numel() for p in model.parameters()) for model in (omniglot, mini_imagenet)]
        [112261, 32901]

    Source:
        C. Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, section 5.2;
        O. Vinyals et al., Matching Networks for One Shot Learning, NeurIPS 2016.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        image_size: int,
        *,
        channels: int = 64,
        downsample: str = "stride",
        track_running_stats: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        in_channels, classes, image_size, channels = _sizes(
            in_channels=in_channels, classes=classes, image_size=image_size, channels=channels
        )
        if downsample not in ("stride", "max_pool"):
            raise ValueError(f"downsample must be 'stride' or 'max_pool', got {downsample!r}")
        strided = downsample == "stride"
        side = image_size
        for _ in range(4):
            side = (side + 1) // 2 if strided else side // 2
        if side < 1:
            raise ValueError(f"image_size must be at least 16 with downsample='max_pool', got {image_size}")
        with _seeded(seed):
            layers: list[nn.Module] = []
            for block in range(4):
                layers += [
                    nn.Conv2d(channels if block else in_channels, channels, 3, stride=2 if strided else 1, padding=1),
                    nn.BatchNorm2d(channels, track_running_stats=track_running_stats),
                    nn.ReLU(),
                ]
                if not strided:
                    layers.append(nn.MaxPool2d(2))
            if strided:
                layers.append(nn.AdaptiveAvgPool2d(1))
            self.features = nn.Sequential(*layers, nn.Flatten())
            self.classifier = nn.Linear(channels if strided else channels * side * side, classes)
            _xavier(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, in_channels, image_size, image_size]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class OmniglotFC(nn.Module):
    """Linear layers 784-256-128-64-64 with batch norm and ReLU, then one to the classes: MAML's fully connected model.

    Args:
        classes: number of classes.
        in_features: numbers per image.
        hidden: widths of the hidden layers.
        track_running_stats: of the batch norms; False normalizes by the batch at hand, in evaluation too, as MAML does.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> OmniglotFC(5, seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    Source:
        C. Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, section 5.2.
    """

    def __init__(
        self,
        classes: int,
        *,
        in_features: int = 784,
        hidden: Sequence[int] = (256, 128, 64, 64),
        track_running_stats: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(hidden, int) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths such as (256, 128), got {hidden!r}")
        classes, in_features = _sizes(classes=classes, in_features=in_features)
        widths = [in_features, *(integer(f"hidden[{i}]", width, minimum=1) for i, width in enumerate(hidden))]
        with _seeded(seed):
            layers: list[nn.Module] = [nn.Flatten()]
            for before, after in pairwise(widths):
                norm = nn.BatchNorm1d(after, track_running_stats=track_running_stats)
                layers += [nn.Linear(before, after), norm, nn.ReLU()]
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Linear(widths[-1], classes)
            _xavier(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, ...]` with `in_features` numbers each."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class SinusoidMLP(nn.Module):
    """Linear layers 1-40-40-1 with ReLU between them: MAML's model of a curve.

    Args:
        hidden: widths of the hidden layers.
        in_features: numbers per input.
        out_features: numbers per output.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> SinusoidMLP(seed=0)(torch.zeros(10, 1)).shape
        torch.Size([10, 1])

    Source:
        C. Finn et al., Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017, section 5.1.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (40, 40),
        *,
        in_features: int = 1,
        out_features: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(hidden, int) or not isinstance(hidden, Sequence):
            raise TypeError(f"hidden must be a sequence of widths such as (40, 40), got {hidden!r}")
        in_features, out_features = _sizes(in_features=in_features, out_features=out_features)
        inner = [integer(f"hidden[{i}]", width, minimum=1) for i, width in enumerate(hidden)]
        widths = [in_features, *inner, out_features]
        with _seeded(seed):
            layers: list[nn.Module] = []
            for index in range(len(widths) - 1):
                layers += [nn.ReLU()] * (index > 0) + [nn.Linear(widths[index], widths[index + 1])]
            self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[N, out_features]` of inputs `[N, in_features]`."""
        outputs: Tensor = self.layers(inputs)
        return outputs


class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions, leaky ReLU and 2×2 pooling, then the mean and one linear layer.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        classes: number of classes.
        widths: channels of the four blocks; (64, 128, 256, 512) is the smaller one of the literature.
        track_running_stats: of the batch norms; False normalizes by the batch at hand, in evaluation too.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or no four widths.

    Example:
        >>> import torch
        >>> ResNet12(3, 5, widths=(8, 8, 16, 16), seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])

    Source:
        K. Lee et al., Meta-Learning with Differentiable Convex Optimization, CVPR 2019, without DropBlock;
        B. N. Oreshkin et al., TADAM, NeurIPS 2018.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        widths: Sequence[int] = (64, 160, 320, 640),
        track_running_stats: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(widths, int) or not isinstance(widths, Sequence) or len(widths) != 4:
            raise ValueError(f"widths must be four numbers of channels, got {widths!r}")
        in_channels, classes = _sizes(in_channels=in_channels, classes=classes)
        channels = [in_channels, *(integer(f"widths[{i}]", width, minimum=1) for i, width in enumerate(widths))]
        with _seeded(seed):
            blocks = [_ResidualBlock(before, after, track_running_stats) for before, after in pairwise(channels)]
            self.features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.classifier = nn.Linear(channels[-1], classes)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, classes]` of images `[N, in_channels, H, W]`, H and W at least 16."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class _ResidualBlock(nn.Module):
    def __init__(self, before: int, after: int, track: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [nn.LeakyReLU(0.1)] * (index > 0) + [
                nn.Conv2d(before if index == 0 else after, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after, track_running_stats=track),
            ]
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after, track_running_stats=track)
        )
        self.activation = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.activation(self.branch(x) + self.shortcut(x)))
        return y


def _xavier(model: nn.Module) -> None:
    """MAML's initial weights; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
