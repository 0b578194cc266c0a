"""Augmentation of pictures with magnitudes that are tuned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafast._checks import positive
from metafast.tune._dynamics import compute_dtype
from metafast.tune.regularizers._bilinear import bilinear
from metafast.tune.regularizers._tunable import Tunable, check_floating

BOUNDS = {
    "shift": (1e-3, 0.5),
    "rotation": (0.1, 180.0),
    "scale": (1e-3, 1.0),
    "shear": (1e-3, 1.0),
    "contrast": (1e-3, 2.0),
    "brightness": (1e-4, 10.0),
    "noise": (1e-4, 10.0),
    "cutout": (1e-2, 1.0),
}


class Augment(Tunable):
    r"""Changes every picture at random, by amounts whose magnitudes m are tuned.

    With \(\epsilon\) uniform in [-1, 1], drawn for each picture. Only those that are given take place, in the order of
    the arguments; the first four are one affine map, with bilinear interpolation and 0 outside the picture. Shape and
    dtype stay, and in evaluation mode all pass.

    Args:
        shift: by \(m \epsilon\) of the height and, with another \(\epsilon\), of the width.
        rotation: by \(m \epsilon\) degrees around the middle.
        scale: by the factor \(e^{m \epsilon}\).
        shear: rows move sideways, by \(m \epsilon\) pixels for each pixel away from the middle.
        contrast: the distance from the picture's mean times \(e^{m \epsilon}\).
        brightness: plus \(m \epsilon\), in the unit of the pixels.
        noise: plus normal noise of standard deviation m in each value, in the unit of the pixels.
        cutout: a square with sides of m times the shorter side of the picture, around a random pixel, is 0; pixels at
            its edge are cut by their share.

    Attributes:
        shift, rotation, ...: those given, 0-d, tuned in log space in wide bounds.

    Raises:
        TypeError, ValueError: no magnitude, one that is not finite and above 0, or images that are no floating-point
            `[N, C, H, W]`.

    Example:
        >>> augment = Augment(shift=0.1, rotation=10.0, noise=0.05)
        >>> augment(torch.rand(8, 1, 28, 28)).shape
        torch.Size([8, 1, 28, 28])
        >>> [spec.name for spec in augment.tune()]
        ['augment.shift', 'augment.rotation', 'augment.noise']

    Source:
        R. Hataya et al., Faster AutoAugment, ECCV 2020 (differentiable magnitudes); T. DeVries, G. Taylor, Improved
        Regularization of Convolutional Neural Networks with Cutout, 2017.
    """

    def __init__(
        self,
        *,
        shift: float | None = None,
        rotation: float | None = None,
        scale: float | None = None,
        shear: float | None = None,
        contrast: float | None = None,
        brightness: float | None = None,
        noise: float | None = None,
        cutout: float | None = None,
    ) -> None:
        super().__init__("augment")
        given = {
            "shift": shift,
            "rotation": rotation,
            "scale": scale,
            "shear": shear,
            "contrast": contrast,
            "brightness": brightness,
            "noise": noise,
            "cutout": cutout,
        }
        for name, value in given.items():
            if value is not None:
                self._add(name, torch.tensor(positive(name, value)), "log", BOUNDS[name])
        if not self._magnitudes:
            raise ValueError(f"Augment needs a magnitude to tune: {', '.join(given)}; for example Augment(shift=0.1)")

    def forward(self, images: Tensor) -> Tensor:
        """Changed images, `[N, C, H, W]` as they came."""
        check_floating("images", images, "pictures of bytes as x / 255")
        if images.ndim != 4:
            raise ValueError(f"images must be [N, C, H, W], got shape {list(images.shape)}; one image as image[None]")
        if not self.training:
            return images
        x = images.to(compute_dtype(images.dtype))
        if any(name in self._buffers for name in ("shift", "rotation", "scale", "shear")):
            x = self._moved(x)
        if "contrast" in self._buffers:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * self._amount("contrast", x).exp().view(-1, 1, 1, 1)
        if "brightness" in self._buffers:
            x = x + self._amount("brightness", x).view(-1, 1, 1, 1)
        if "noise" in self._buffers:
            x = x + self._magnitude("noise", x) * torch.randn_like(x)
        if "cutout" in self._buffers:
            x = x * self._holes(x)
        return x.to(images.dtype)

    def _magnitude(self, name: str, x: Tensor) -> Tensor:
        value = self._buffers[name]
        assert value is not None
        return value.to(x.dtype)

    def _amount(self, name: str, x: Tensor) -> Tensor:
        """Magnitude times uniform noise, [N]; 0 for what is not given."""
        if name not in self._buffers:
            return x.new_zeros(len(x))
        return self._magnitude(name, x) * (2 * torch.rand(len(x), dtype=x.dtype, device=x.device) - 1)

    def _moved(self, x: Tensor) -> Tensor:
        """For each pixel of the result the position that it comes from: rotated, sheared, scaled, shifted."""
        height, width = x.shape[2:]
        right, down = self._amount("shift", x) * width, self._amount("shift", x) * height
        angle = self._amount("rotation", x) * (math.pi / 180)
        zoom = (-self._amount("scale", x)).exp()
        shear = self._amount("shear", x)
        across = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2  # [W]
        along = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2  # [H]
        along = along.view(1, -1, 1)
        across = across + _wide(shear) * along
        column = _wide(zoom) * (_wide(angle.cos()) * across - _wide(angle.sin()) * along) + _wide(right)
        row = _wide(zoom) * (_wide(angle.sin()) * across + _wide(angle.cos()) * along) + _wide(down)
        return bilinear(x, column + (width - 1) / 2, row + (height - 1) / 2)

    def _holes(self, x: Tensor) -> Tensor:
        """What is left of each pixel, [N, 1, H, W]."""
        height, width = x.shape[2:]
        half = self._magnitude("cutout", x) * min(height, width) / 2
        covered = []
        for length in (height, width):
            middle = torch.randint(length, (len(x), 1), device=x.device)
            distance = torch.arange(length, dtype=x.dtype, device=x.device) - middle  # [N, length]
            covered.append((torch.minimum(distance + 0.5, half) - torch.maximum(distance - 0.5, -half)).clamp_min(0))
        return (1 - covered[0][:, :, None] * covered[1][:, None, :]).unsqueeze(1)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)
