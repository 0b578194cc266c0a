"""One of two processes of the data-parallel tests; writes what it found as JSON. Run by test_parallel.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from metafast.tune import Forward, OnlineTuner, Tune

STEPS = 7
METHODS = ["forward", "reverse", "implicit", "sama"]


class Net(nn.Module):
    """With a layer that no loss uses, a batch norm that only counts, and a tensor to tune."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.unused = nn.Linear(2, 2).double()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += x.sum()
        return self.layers(x)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS + 1):
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        yield x, (x.sum(1) > 0).long()


def train(method: str, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """What a tuner finds; with `size` 2, on this rank's half of each batch."""
    net = Net()
    model: nn.Module = DistributedDataParallel(net, find_unused_parameters=True) if size > 1 else net
    penalty = torch.tensor([0.02, 0.03], dtype=torch.float64, requires_grad=True)
    opt = torch.optim.AdamW(net.parameters(), lr=0.02)
    all_batches = [(x[rank::size], y[rank::size]) for x, y in batches()]
    own = method == "update"
    tune = ["lr", "weight_decay", *([] if own else [Tune(penalty, space="log", name="penalty")])]
    how = Forward(hvp=False, decay=0.9) if own else method
    tuner = OnlineTuner(model, opt, tune, all_batches[-1:], how, 3, max_grad_norm=0.5, hyper_lr=0.05)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        norms = torch.stack([net.layers[i].weight.square().sum() for i in (0, 2)])
        return F.cross_entropy(model(x), y) + (0 if own else penalty @ norms)

    losses = []
    for x, y in all_batches[:-1]:
        if own:
            opt.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            tuner.update()
        else:
            loss = tuner.step(loss_of, x, y)
        losses.append(float(loss.detach()))
    return {
        "weights": [p.tolist() for p in net.layers.parameters()],
        "values": {name: tuned.history for name, tuned in tuner.state.items()},
        "hypergradients": {name: tuned.hypergradients for name, tuned in tuner.state.items()},
        "validation": tuner.validation,
        "losses": losses,
        "seen": float(net.seen),
    }


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = {method: train(method, rank, 2) for method in [*METHODS, "update"]}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
