"""One of two processes of the data-parallel test; writes what it found as JSON. Run by test_parallel.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import metafast.optim
from metafast.schedule import LRController

MAKERS = {
    "metafast": lambda params: metafast.optim.Adam(params, lr=1e-2),
    "torch": lambda params: torch.optim.Adam(params, lr=1e-2),
    "wrecked": lambda params: torch.optim.Adam(params, lr=5.0),
}


def train(name: str, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """Rates, weights and events; with `size` 2, on this rank's half of each batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    model: nn.Module = DistributedDataParallel(net) if size > 1 else net
    opt = MAKERS[name](net.parameters())
    ctl = LRController.load().attach(opt, interval=3, per="tensor", total_steps=24)
    generator = torch.Generator().manual_seed(1)
    for _ in range(24):
        x = torch.randn(8, 5, generator=generator)
        y = (x.sum(1) > 0).long()
        opt.zero_grad()
        loss = F.cross_entropy(model(x[rank::size]), y[rank::size])
        loss.backward()
        opt.step()
        ctl.step(loss)
    return {
        "history": ctl.history,
        "weights": [p.tolist() for p in net.parameters()],
        "events": [[event["step"], event["rewound"]] for event in ctl.events],
    }


def main() -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: train(name, rank, 2) for name in MAKERS}
    (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
