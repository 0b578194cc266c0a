"""One rank of the distributed tests; writes what it found as JSON. Run by test_distributed.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import metafast

STEPS = 6
OPTIONS: dict[str, dict[str, Any]] = {
    "fixed": {"max_grad_norm": 0.5},
    "global": {"hypergrad": "global", "max_grad_norm": 0.5},
    "group exact": {"hypergrad": "group", "hyper_exact": True},
    "tensor": {"hypergrad": "tensor", "hyper_rule": "sign"},
    "element": {"hypergrad": "element"},
    "large lr": {"hypergrad": "tensor", "lr": 1.0},  # the safe start looks at whole tensors too
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    # An odd number of rows, and one: shards differ, and one of them is empty.
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 1))


def make_optimizer(model: nn.Module, case: str) -> metafast.optim.AdamW:
    first, second = model[0], model[2]
    groups = [{"params": list(first.parameters())}, {"params": list(second.parameters()), "weight_decay": 0.0}]
    return metafast.optim.AdamW(groups, **{"lr": 0.01, **OPTIONS[case]})


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)


def train(model: nn.Module, opt: torch.optim.Optimizer, part: slice, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        opt.zero_grad()
        nn.functional.mse_loss(model(x[part]), y[part]).backward()
        opt.step()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def summary(model: nn.Module, opt: metafast.optim.AdamW) -> dict[str, Any]:
    return {
        "params": [whole(p).flatten().tolist() for p in model.parameters()],
        "rates": opt.learned_lr(),
        "stats": opt.tensor_stats().tolist(),
    }


def ddp(case: str, part: slice) -> dict[str, Any]:
    model = nn.parallel.DistributedDataParallel(make_model())
    opt = make_optimizer(model.module, case)
    train(model, opt, part, range(STEPS))
    return summary(model.module, opt)


def fsdp(case: str, part: slice) -> dict[str, Any]:
    """Half of the steps, a checkpoint through torch.distributed.checkpoint's state dicts, and the other half anew."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    def sharded() -> nn.Module:
        model = make_model()
        fully_shard(model[0])
        fully_shard(model)
        return model

    calls = 0
    original = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    model = sharded()
    opt = make_optimizer(model, case)
    train(model, opt, part, range(STEPS // 2))
    dist.all_reduce = counted
    train(model, opt, part, range(STEPS // 2, STEPS))
    dist.all_reduce = original
    result = {**summary(model, opt), "all_reduces": calls / (STEPS - STEPS // 2)}

    model = sharded()
    opt = make_optimizer(model, case)
    train(model, opt, part, range(STEPS // 2))
    saved = get_optimizer_state_dict(model, opt)
    again = sharded()
    for new, old in zip(again.parameters(), model.parameters(), strict=True):
        new.data.copy_(old.data)
    resumed = make_optimizer(again, case)
    set_optimizer_state_dict(again, resumed, saved)
    train(again, resumed, part, range(STEPS // 2, STEPS))
    result["resumed"] = summary(again, resumed)
    result["is_dtensor"] = all(hasattr(p, "full_tensor") for p in model.parameters())
    return result


def tensor_parallel(placement: str) -> dict[str, Any]:
    """Split batches leave gradients that are sums still to be made, whatever the parameter's own placement."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    where = {"replicate": Replicate(), "rows": Shard(0), "columns": Shard(1)}[placement]
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(4, 3, generator=generator), torch.randn(8, 3, generator=generator)
    sharded = nn.Parameter(distribute_tensor(weight.clone(), mesh, [where]))
    whole_weight = nn.Parameter(weight.clone())
    options: dict[str, Any] = {"lr": 0.1, "hypergrad": "tensor", "max_grad_norm": 0.5}
    results = {}
    for name, param, inputs in (
        ("sharded", sharded, distribute_tensor(x, mesh, [Shard(0)])),
        ("whole", whole_weight, x),
    ):
        opt = metafast.optim.AdamW([param], **options)
        for _ in range(3):
            opt.zero_grad()
            (inputs @ param.t()).pow(2).sum().backward()
            opt.step()
        results[name] = {"params": whole(param).flatten().tolist(), "rates": opt.learned_lr()}
    return {**results, "partial": sharded.grad.placements[0].is_partial()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    half = slice(rank * 8 // size, (rank + 1) * 8 // size)
    results: dict[str, Any] = {}
    for case in OPTIONS:
        results[f"ddp {case}"] = ddp(case, half)
        results[f"fsdp {case}"] = fsdp(case, half)
    for placement in ("replicate", "rows", "columns"):
        results[f"tensor parallel {placement}"] = tensor_parallel(placement)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
