"""The frozen backbone of the transfer experiment: one of transformers, or a small one pre-trained on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.models._resnet import BasicBlock
from metafast.runs._checkpoint import replace_file


class SmallBackbone(nn.Module):
    """A stem and three residual blocks: pictures `[N, 3, 32, 32]` to maps `[N, 64, 8, 8]`; 0.3 M parameters.

    Args:
        seed: of the initial weights.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
            self.blocks = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 2), BasicBlock(64, 64, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps of pictures."""
        maps: Tensor = self.blocks(self.stem(pictures))
        return maps


def own_backbone(
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int,
    file: Path,
    batch_size: int = 64,
    progress: Callable[[int, float], None] | None = None,
) -> SmallBackbone:
    """A `SmallBackbone` trained to tell all classes apart by Adam with a cosine schedule; read from `file` if there.

    Args:
        pictures: normalized, `[N, 3, 32, 32]`.
        labels: `[N]`.
        steps: of the training.
        seed: of weights, batches and flips.
        file: where it is kept.
        batch_size: pictures of a step.
        progress: called with the step and its loss.
    """
    backbone = SmallBackbone(seed)
    if file.is_file():
        backbone.load_state_dict(load_file(file))
        return backbone.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(64, int(labels.max()) + 1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        rows = torch.randint(len(pictures), (batch_size,), generator=generator)
        loss = F.cross_entropy(head(backbone(pictures[rows]).mean((2, 3))), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    replace_file(file, lambda path: save_file(state, path))
    return backbone.eval()


def hub_backbone(name: str, device: str) -> Callable[[Tensor], Tensor]:
    """The last feature maps of an image model of transformers, frozen.

    Args:
        name: of the hub, such as microsoft/resnet-50, or a folder.
        device: where it runs.

    Raises:
        ImportError: transformers is missing.
        ValueError: the model gives no maps `[N, C, h, w]`.
        OSError: no such model is at hand.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError("a backbone of the hub needs transformers: pip install 'metafast[hf]'") from error
    model: Any = AutoModel.from_pretrained(name).eval().to(device)

    @torch.no_grad()
    def extract(pictures: Tensor) -> Tensor:
        maps: Tensor = model(pixel_values=pictures.to(device)).last_hidden_state
        if maps.dim() != 4:
            raise ValueError(f"backbone {name!r} must give maps [N, C, h, w], got {tuple(maps.shape)}; use a ResNet")
        return maps

    return extract
