"""What the ops are checked against: a program run by plain autograd, one task at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metafast.ops._dropout_hash import QUERY_STEP, dropout_keep
from metafast.ops._program import Loss, Opcode, Program, decode

ACTIVATIONS: dict[Opcode, Any] = {
    Opcode.RELU: lambda x, i: F.relu(x),
    Opcode.GELU: lambda x, i: F.gelu(x, approximate="tanh" if i.ints[0] else "none"),
    Opcode.TANH: lambda x, i: torch.tanh(x),
    Opcode.SIGMOID: lambda x, i: torch.sigmoid(x),
    Opcode.SILU: lambda x, i: F.silu(x),
    Opcode.LEAKY_RELU: lambda x, i: F.leaky_relu(x, i.attributes[0]),
}


def forward(
    program: Program, theta: Tensor, x: Tensor, stats: Tensor | None, seed: int, step: int, task: int, examples: Tensor,
    found: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The logits of one task; batch statistics go into `found`."""

    def param(index: int, *shape: int) -> Tensor | None:
        if index < 0:
            return None
        p = program.params[index]
        return theta[p.offset : p.offset + p.numel].view(*shape)

    c, h, w = program.values[0]
    values = {0: x if program.tokens else x.reshape(-1, c, h, w)}
    for index, i in enumerate(program.instructions):
        v, (c, h, w), (d, _, _) = values[i.in0], program.values[i.in0], program.values[i.out]
        bias = None if i.bias < 0 else param(i.bias, -1)
        if i.opcode is Opcode.CONV2D:
            kh, kw, sh, sw, ph, pw, groups = i.ints[:7]
            y = F.conv2d(v, param(i.weight, d, c // groups, kh, kw), bias, (sh, sw), (ph, pw), 1, groups)
        elif i.opcode is Opcode.LINEAR:
            y = F.linear(v.flatten(1), param(i.weight, d, c * h * w), bias)[..., None, None]
        elif i.opcode is Opcode.BATCH_NORM:
            mode, offset = i.ints[:2]
            weight = param(i.weight, c)
            if mode:
                mean, var = stats[offset : offset + c], stats[offset + c : offset + 2 * c]
                y = F.batch_norm(v, mean, var, weight, bias, False, 0.0, i.attributes[0])
            else:
                y = F.batch_norm(v, None, None, weight, bias, True, 0.0, i.attributes[0])
                if found is not None:
                    found[offset : offset + c] = v.detach().mean((0, 2, 3))
                    found[offset + c : offset + 2 * c] = v.detach().var((0, 2, 3), unbiased=True)
        elif i.opcode is Opcode.LAYER_NORM:
            y = F.layer_norm(v, (c, h, w), param(i.weight, c, h, w), param(i.bias, c, h, w), i.attributes[0])
        elif i.opcode is Opcode.GROUP_NORM:
            y = F.group_norm(v, i.ints[0], param(i.weight, c), bias, i.attributes[0])
        elif i.opcode is Opcode.MAX_POOL:
            y = F.max_pool2d(v, i.ints[:2], i.ints[2:4], i.ints[4:6])
        elif i.opcode is Opcode.AVG_POOL:
            y = F.avg_pool2d(v, i.ints[:2], i.ints[2:4], i.ints[4:6], count_include_pad=bool(i.ints[6]))
        elif i.opcode is Opcode.ADD:
            y = v + values[i.in1]
        elif i.opcode is Opcode.DROPOUT:
            p = i.attributes[0]
            y = v * dropout_keep(seed, task, step, index, examples, (c, h, w), p) / (1 - p)
        elif i.opcode is Opcode.EMBED_MEAN:
            # Not F.embedding_bag: torch cannot differentiate it twice.
            rows = F.embedding(v, param(i.weight, program.params[i.weight].shape[0], d))
            real = (v != i.ints[0])[..., None].to(rows.dtype)
            y = ((rows * real).sum(1) / real.sum(1).clamp(min=1))[..., None, None]
        else:
            y = ACTIVATIONS[i.opcode](v, i)
        values[i.out] = y
    return values[program.logits].flatten(1)


def loss(program: Program, z: Tensor, y: Tensor, classes: int | None) -> Tensor:
    if program.loss is Loss.MSE:
        return F.mse_loss(z, y.view(z.shape))
    return F.cross_entropy(z if classes is None else z[:, :classes], y, label_smoothing=program.label_smoothing)


def inner_loop(args: dict[str, Any], create_graph: bool = True) -> dict[str, Tensor]:
    """Every output of the op, by a loop over tasks and autograd through it."""
    program = decode(args["program"], args["attributes"])
    tasks, steps, order = args["support_x"].shape[0], args["steps"], args["order"]
    weights = args["weights"].detach().clone().requires_grad_()
    rates = args["rates"].detach().clone().requires_grad_()
    xs = [args[k].detach().clone() for k in ("support_x", "query_x")]
    xs = [x.requires_grad_() if x.is_floating_point() else x for x in xs]
    mask = torch.cat([torch.full((p.numel,), float(p.adapted)) for p in program.params]).to(weights.dtype)
    sizes = torch.tensor([p.numel for p in program.params])
    share = args["task_weights"]
    share = torch.full((tasks,), 1 / tasks, dtype=weights.dtype) if share is None else share.to(weights.dtype)
    out: dict[str, Any] = {k: [] for k in ("task_losses", "support_losses", "query_losses", "logits", "adapted")}
    found = torch.zeros(steps + 1, program.stats, dtype=weights.dtype)
    total = weights.new_zeros(())
    seed, wanted = args["seed"], args["query_weights"].tolist()
    for t in range(tasks):
        start = weights if weights.dim() == 1 else weights[t]
        theta, v, m = start, torch.zeros_like(start), torch.zeros_like(start)
        classes = None if args["classes"] is None else int(args["classes"][t])
        support_losses, query_losses, task_loss = [], [], weights.new_zeros(())

        def run(theta, which, step, chosen=None, t=t, classes=classes, found=None, k=0):
            x, y = xs[0 if which == "support" else 1][t], args[f"{which}_y"][t]
            m = args[f"{which}_mask"]
            examples = torch.arange(len(x)) if chosen is None else chosen
            if m is not None:
                examples = examples[m[t][examples]]
            stats = args["stats"]
            stats = None if stats is None else stats[k if len(stats) > 1 else 0]
            z = forward(program, theta, x[examples], stats, seed, step, args["first_task"] + t, examples, found)
            return loss(program, z, y[examples], classes), z, examples

        for k in range(steps + 1):
            here = torch.zeros(program.stats, dtype=weights.dtype)
            if wanted[k] != 0 or k == steps:
                value, z, examples = run(theta, "query", QUERY_STEP + k, found=here if k == steps else None, k=k)
                task_loss = task_loss + wanted[k] * value
                query_losses.append(value.detach())
            else:
                query_losses.append(torch.full((), float("nan"), dtype=weights.dtype))
            if k == steps:
                found[k] += here * float(share[t] != 0)
                break
            batches = args["batches"]
            chosen = None if batches is None else (batches[k] if batches.dim() == 2 else batches[t, k])
            value, _, _ = run(theta, "support", k, chosen, found=here, k=k)
            found[k] += here * float(share[t] != 0)
            support_losses.append(value.detach())
            (g,) = torch.autograd.grad(value, theta, create_graph=create_graph and order == 2, retain_graph=True)
            d = g + args["weight_decay"] * theta + args["prox"] * (theta - start)
            if args["rule"] == 0:
                u = d
            elif args["rule"] == 1:
                v = args["momentum"] * v + d
                u = v
            else:
                m = args["momentum"] * m + (1 - args["momentum"]) * d
                v = args["beta2"] * v + (1 - args["beta2"]) * d * d
                root = (v / (1 - args["beta2"] ** (k + 1))).clamp(min=1e-300).sqrt()
                u = m / (1 - args["momentum"] ** (k + 1)) / (root + args["eps"])
            rate = rates[k if len(rates) > 1 else 0]
            if rate.numel() == len(sizes) and rate.numel() != program.numel:
                rate = rate.repeat_interleave(sizes)
            theta = theta - mask * rate * u
        total = total + share[t] * task_loss
        full = z.new_zeros(args["query_x"].shape[1], z.shape[1])
        full[examples] = z.detach()
        for key, value in (
            ("task_losses", task_loss.detach()), ("support_losses", torch.stack(support_losses)),
            ("query_losses", torch.stack(query_losses)), ("logits", full), ("adapted", theta.detach()),
        ):  # fmt: skip
            out[key].append(value)
    result = {key: torch.stack(values) for key, values in out.items()}
    result["batch_stats"] = found / max(int((share != 0).sum()), 1)
    if order:
        leaves = {"grad_weights": weights, "grad_rates": rates, "grad_support_x": xs[0], "grad_query_x": xs[1]}
        leaves = {k: v for k, v in leaves.items() if v.requires_grad}
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for (key, leaf), grad in zip(leaves.items(), grads, strict=True):
            result[key] = torch.zeros_like(leaf) if grad is None else grad
    return result
