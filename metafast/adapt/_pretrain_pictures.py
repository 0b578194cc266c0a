"""What picture backbones are trained on: Omniglot's background alphabets, and the training classes of CIFAR-FS."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.adapt._share import replace
from metafast.data import ClassSet, few_shot
from metafast.models import Conv4


class Pictures:
    """Batches of pictures of a set of classes, changed at random.

    Args:
        classes: to learn.
        turned: a picture turned by a quarter is of another class.
        flip: left and right, every second time.
        crop: a window of the picture with this many pixels of padding on each side.
    """

    def __init__(self, classes: ClassSet, *, turned: bool = False, flip: bool = False, crop: int = 0) -> None:
        self.classes = classes
        self.inputs, self.labels = classes.tensors()
        self.turned, self.flip, self.crop = turned, flip, crop
        members, starts = classes.members()
        self._members = [members[a:b] for a, b in pairwise(starts)]

    @property
    def outputs(self) -> int:
        """Classes, turned ones included."""
        return self.classes.classes * (4 if self.turned else 1)

    def batch(self, random: np.random.Generator, size: int, per_class: int) -> tuple[Tensor, Tensor]:
        """Inputs and class numbers: `per_class` examples of each of some classes, or any (`per_class` 1)."""
        if per_class == 1:
            rows = random.integers(0, len(self.labels), size)
            turns = random.integers(0, 4, size) if self.turned else np.zeros(size, np.int64)
        else:
            chosen = random.choice(self.outputs, min(self.outputs, size // per_class), replace=False)
            rows = np.concatenate([random.choice(self._members[k % self.classes.classes], per_class) for k in chosen])
            turns = np.repeat(chosen // self.classes.classes, per_class)
        x, y = self.inputs[rows].clone(), self.labels[rows] + torch.from_numpy(turns) * self.classes.classes
        for turn in range(1, 4):
            at = torch.from_numpy(turns == turn)
            x[at] = torch.rot90(x[at], turn, (2, 3))
        if self.flip:
            at = torch.from_numpy(random.random(len(x)) < 0.5)
            x[at] = x[at].flip(3)
        return self._cropped(x, random), y

    def _cropped(self, x: Tensor, random: np.random.Generator) -> Tensor:
        if not self.crop:
            return x
        side = x.shape[2]
        padded = F.pad(x, [self.crop] * 4, mode="reflect")
        offsets = random.integers(0, 2 * self.crop + 1, (len(x), 2))
        return torch.stack([p[:, a : a + side, b : b + side] for p, (a, b) in zip(padded, offsets, strict=True)])


def omniglot() -> tuple[Pictures, dict[str, ClassSet]]:
    """The 25 background alphabets to learn on; the five others to choose on."""
    parts = few_shot("omniglot_alphabets")
    return Pictures(parts.train, turned=True), {"omniglot_alphabets": parts.val}


def cifar() -> tuple[Pictures, dict[str, ClassSet]]:
    """The 64 training classes of CIFAR-FS; its 16 validation classes to choose on."""
    parts = few_shot("cifar_fs")
    return Pictures(parts.train, flip=True, crop=4), {"cifar_fs": parts.val}


def omniglot_network(**sizes: Any) -> nn.Module:
    """Strided convolutions, the mean over positions."""
    return _body(Conv4(1, 2, 28, track_running_stats=True, **sizes))


def cifar_network(**sizes: Any) -> nn.Module:
    """Pooled convolutions, all positions."""
    return _body(Conv4(3, 2, 32, downsample="max_pool", track_running_stats=True, **sizes))


def _body(model: Conv4) -> Conv4:
    replace(model, "classifier", nn.Identity())
    return model
