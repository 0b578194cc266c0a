"""The path for any module: `torch.func.functional_call`, task by task, or all tasks under `vmap`.

The gradient of a task is always taken inside: `vmap(grad(task))`, never a derivative of a `vmap`, which in torch 2.13
silently loses a term through batch norm (pytorch issue 186256).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from metafast.innerloop._arguments import check_labels
from metafast.innerloop._call import Call, Result
from metafast.innerloop._functional import Functional, Steps
from metafast.ops._dropout_hash import QUERY_STEP
from metafast.ops._program import Loss
from metafast.ops._rounding import rounding_key


@dataclass
class Generic(Functional):
    """The meta-gradient of a model by autograd, in either of two ways.

    Args:
        vectorized: all tasks under `vmap`; else one after another.
    """

    vectorized: bool = False

    def task_loss(
        self, params: dict[str, Tensor], rates: Tensor, data: dict[str, Any], call: Call, task: int | None,
        buffers: dict[str, Tensor], differentiable: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """The weighted query loss of one task, and what an outcome reports; the inner gradients are taken here.

        `task` numbers the task for seeds and names it in errors; None: under `vmap`.
        """
        theta, others = self.split(params)
        start, optimizer = theta, Steps(call.rule)
        wanted = call.query_weights.tolist()
        total = theta.new_zeros(())
        support_losses, query_losses = [], []
        logits: Tensor | None = None

        def evaluate(theta: Tensor, which: str, k: int, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
            x, y = data[f"{which}_x"], data[f"{which}_y"]
            if chosen is not None:
                x, y = x[chosen], y[chosen]
            step = QUERY_STEP + k if which == "query" else k
            key = None if task is None else rounding_key(call.seed, call.first_task + task, step)
            stats = None if call.stats is None else call.stats[k if len(call.stats) > 1 else 0]
            own = {n: b.clone() for n, b in buffers.items()}
            z = self.forward(self.join(theta, others), own, x, stats, key, f"{which}_x: task {task}")
            open_z = z
            if "classes" in data:
                count = int(data["classes"])
                if not 1 <= count <= z.shape[1]:
                    raise ValueError(f"classes: task {task} has {count}, the model has {z.shape[1]}")
                open_z = z[:, :count]
            return self.judge(open_z, y, f"{which}_y", task), z

        def support_loss(k: int, chosen: Tensor | None, theta: Tensor) -> Tensor:
            return evaluate(theta, "support", k, chosen)[0]

        for k in range(call.steps + 1):
            if wanted[k] != 0 or k == call.steps and call.want_logits:
                context = torch.enable_grad() if differentiable and wanted[k] != 0 else torch.no_grad()
                with context:
                    value, z = evaluate(theta, "query", k)
                    if wanted[k] != 0:
                        total = total + wanted[k] * value
                query_losses.append(value.detach())
                logits = z.detach()
            else:
                query_losses.append(torch.full_like(total, math.nan).detach())
            if k == call.steps:
                break
            chosen = data["batches"][k] if "batches" in data else None
            support = partial(support_loss, k, chosen)
            value, g = self.inner_gradient(support, theta, call.order, differentiable, task)
            support_losses.append(value)
            theta = theta - self.rate(rates, k) * optimizer.update(g, theta, start)
            if not differentiable:
                theta = theta.detach()
        if logits is None:
            logits = theta.new_zeros(data["query_x"].shape[0], 0)
        report = {"support_losses": torch.stack(support_losses), "query_losses": torch.stack(query_losses),
                  "logits": logits, "task_losses": total.detach()}  # fmt: skip
        if call.want_adapted:
            final = self.join(theta.detach(), others)
            report["adapted"] = torch.cat([final[n].detach().reshape(-1) for n in self.layout.names])
        return total, report

    def inner_gradient(
        self, loss: Callable[[Tensor], Tensor], theta: Tensor, order: int, differentiable: bool, task: int | None
    ) -> tuple[Tensor, Tensor]:
        """(value, gradient) of the support loss; the gradient is a constant but for order 2."""
        if task is None:
            gradient, value = grad_and_value(loss)(theta)
        else:
            with torch.enable_grad():
                through = differentiable and order == 2 and theta.requires_grad
                point = theta if through else theta.detach().requires_grad_()
                value = loss(point)
                if not value.requires_grad:
                    raise ValueError(
                        "model: the loss does not depend on the adapted parameters by differentiable operations"
                    )
                create = differentiable and order == 2
                (gradient,) = torch.autograd.grad(value, point, create_graph=create)
        return value.detach(), gradient if order == 2 else gradient.detach()

    # ---- all tasks

    def run(self, call: Call) -> Result:
        """The losses of a call, and its gradients where they are wanted."""
        return self.run_vectorized(call) if self.vectorized else self.run_loop(call)

    def task_weights(self, call: Call) -> Tensor:
        tasks = call.batch.support_x.shape[0]
        if call.task_weights is None:
            return torch.full((tasks,), 1 / tasks, dtype=call.weights.dtype, device=call.weights.device)
        return call.task_weights.to(call.weights.dtype)

    def run_loop(self, call: Call) -> Result:
        """One task after another, so that memory is that of one."""
        batch, share = call.batch, self.task_weights(call)
        tasks, per_task = batch.support_x.shape[0], call.weights.dim() == 2
        buffers = dict(self.model.named_buffers())
        result = Result(*[call.weights.new_empty(0)] * 4)
        if call.order:
            result.grad_weights = torch.zeros_like(call.weights)
            result.grad_rates = torch.zeros_like(call.rates) if call.wants_rates else None
            result.grad_support_x = torch.zeros_like(batch.support_x) if call.wants_support_x else None
            result.grad_query_x = torch.zeros_like(batch.query_x) if call.wants_query_x else None
        reports = []
        for t in range(tasks):
            active = call.order > 0 and float(share[t]) != 0
            data = _task_data(call, t)
            weights = self.layout.unflatten(call.weights[t] if per_task else call.weights)
            leaves = {n: w.detach().clone().requires_grad_(active and call.wants_weights) for n, w in weights.items()}
            rates = call.rates.detach().clone().requires_grad_(active and call.wants_rates)
            for name, wanted in (("support_x", call.wants_support_x), ("query_x", call.wants_query_x)):
                if active and wanted:
                    data[name] = data[name].detach().clone().requires_grad_()
            with torch.set_grad_enabled(active):
                total, report = self.task_loss(leaves, rates, data, call, t, buffers, active)
            reports.append(report)
            if not active or not total.requires_grad:
                continue
            targets = {n: p for n, p in {**leaves, "": rates, **_inputs(data)}.items() if p.requires_grad}
            grads = torch.autograd.grad(total * share[t], list(targets.values()), allow_unused=True)
            found = {n: g for n, g in zip(targets, grads, strict=True) if g is not None}
            self.collect(result, found, call, t)
        self.stack(result, reports, call)
        return result

    def collect(self, result: Result, grads: dict[str, Tensor], call: Call, t: int) -> None:
        """Adds the gradients of one task."""
        assert result.grad_weights is not None
        into = result.grad_weights[t] if call.weights.dim() == 2 else result.grad_weights
        for name, part in self.layout.unflatten(into).items():
            if name in grads:
                part.add_(grads[name])
        if result.grad_rates is not None and "" in grads:
            result.grad_rates.add_(grads[""])
        for which, into_x in (("support", result.grad_support_x), ("query", result.grad_query_x)):
            if into_x is not None and f"{which}_x" in grads:
                mask = getattr(call.batch, f"{which}_mask")
                into_x[t][slice(None) if mask is None else mask[t]] = grads[f"{which}_x"]

    def stack(self, result: Result, reports: list[dict[str, Tensor]], call: Call) -> None:
        """The tables of an outcome from those of the tasks; padding gets logits 0."""
        for key in ("task_losses", "support_losses", "query_losses"):
            setattr(result, key, torch.stack([report[key] for report in reports]))
        if call.want_adapted:
            result.adapted = torch.stack([report["adapted"] for report in reports])
        result.logits = pad_logits([r["logits"] for r in reports], call.batch.query_x.shape[1], call.batch.query_mask)

    def run_vectorized(self, call: Call) -> Result:
        """All tasks under `vmap`, the gradient of each inside it.

        Raises:
            RuntimeError: what `vmap` cannot do, such as random layers.
        """
        batch, share = call.batch, self.task_weights(call)
        tasks = batch.support_x.shape[0]
        data = {"support_x": batch.support_x, "support_y": batch.support_y,
                "query_x": batch.query_x, "query_y": batch.query_y}  # fmt: skip
        if call.batches is not None:
            data["batches"] = call.batches if call.batches.dim() == 3 else call.batches.expand(tasks, -1, -1)
        buffers = {n: b.expand(tasks, *b.shape).clone() for n, b in self.model.named_buffers()}
        weights = self.layout.unflatten(call.weights)
        if call.weights.dim() == 1:
            weights = {n: w.expand(tasks, *w.shape) for n, w in weights.items()}
        chosen = {"weights": weights if call.order else {}, "rates": call.rates.expand(tasks, *call.rates.shape)}
        inputs = {name: data.pop(name) for name, wanted in
                  (("support_x", call.wants_support_x), ("query_x", call.wants_query_x)) if wanted}  # fmt: skip
        chosen["inputs"] = inputs

        def task(free: dict[str, Any], fixed: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            params = {**fixed["weights"], **free["weights"]}
            all_data = {**fixed["data"], **free["inputs"]}
            total, report = self.task_loss(params, free["rates"], all_data, call, None, fixed["buffers"], True)
            return total * fixed["share"], report

        fixed = {"weights": weights, "data": data, "buffers": buffers, "share": share}
        with warnings.catch_warnings():  # an op without a batching rule is slow, which the measurement sees
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            if call.order == 0:
                _, report = vmap(task, randomness="error")(chosen, fixed)
                grads = None
            else:
                grads, (_, report) = vmap(grad_and_value(task, has_aux=True), randomness="error")(chosen, fixed)
        result = Result(report["task_losses"], report["support_losses"], report["query_losses"], report["logits"])
        result.adapted = report.get("adapted")
        if self.loss.kind is Loss.CROSS_ENTROPY:  # a loss under vmap does not look
            check_labels("support_y", batch.support_y, None, None, result.logits.shape[-1])
            check_labels("query_y", batch.query_y, None, None, result.logits.shape[-1])
        if grads is None:
            return result
        active = share != 0

        def clean(g: Tensor) -> Tensor:
            return torch.where(active.view(-1, *[1] * (g.dim() - 1)), g, 0)

        flat = torch.cat([clean(grads["weights"][n]).reshape(tasks, -1) for n in self.layout.names], 1)
        result.grad_weights = flat if call.weights.dim() == 2 else flat.sum(0)
        result.grad_rates = clean(grads["rates"]).sum(0) if call.wants_rates else None
        result.grad_support_x = clean(grads["inputs"]["support_x"]) if call.wants_support_x else None
        result.grad_query_x = clean(grads["inputs"]["query_x"]) if call.wants_query_x else None
        return result

    def gradient(
        self, params: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None, stats: Tensor | None,
        seed: int, step: int, first_task: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """(losses, logits, gradients) at `params` `[T, P]`, task by task, in ordinary autograd."""
        differentiable = torch.is_grad_enabled() and (params.requires_grad or x.requires_grad)
        buffers = dict(self.model.named_buffers())
        losses, logits, grads = [], [], []
        for t in range(x.shape[0]):
            with torch.enable_grad():
                flat = params[t] if differentiable else params[t].detach()
                flat = flat if flat.requires_grad else flat.requires_grad_()
                rows = slice(None) if mask is None else mask[t]
                key = rounding_key(seed, first_task + t, step)
                row = None if stats is None else stats[0]
                own = {n: b.clone() for n, b in buffers.items()}
                z = self.forward(self.layout.unflatten(flat), own, x[t][rows], row, key, f"x: task {t}")
                open_z = z if classes is None else z[:, : int(classes[t])]
                value = self.judge(open_z, y[t][rows], "y", t)
                (g,) = torch.autograd.grad(value, flat, create_graph=differentiable)
            losses.append(value if differentiable else value.detach())
            logits.append(z.detach())
            grads.append(g)
        return torch.stack(losses), pad_logits(logits, x.shape[1], mask), torch.stack(grads)


def pad_logits(parts: list[Tensor], examples: int, mask: Tensor | None) -> Tensor:
    """`[T, N, C]` of the logits of each task's valid examples, 0 elsewhere."""
    if mask is None:
        return torch.stack(parts)
    full = parts[0].new_zeros(len(parts), examples, parts[0].shape[1])
    for t, part in enumerate(parts):
        full[t, mask[t]] = part
    return full


def _inputs(data: dict[str, Any]) -> dict[str, Tensor]:
    return {name: data[name] for name in ("support_x", "query_x")}


def _task_data(call: Call, t: int) -> dict[str, Any]:
    """The valid examples of one task."""
    batch = call.batch
    data: dict[str, Any] = {}
    for which in ("support", "query"):
        x, y, mask = (getattr(batch, f"{which}_{part}") for part in ("x", "y", "mask"))
        rows = slice(None) if mask is None else mask[t]
        data[f"{which}_x"], data[f"{which}_y"] = x[t][rows], y[t][rows]
    if batch.classes is not None:
        data["classes"] = batch.classes[t]
    if call.batches is not None:
        chosen = call.batches if call.batches.dim() == 2 else call.batches[t]
        mask = batch.support_mask
        if mask is None:
            data["batches"] = list(chosen)
        else:  # positions among the valid examples
            place = mask[t].cumsum(0) - 1
            data["batches"] = [place[row[mask[t][row]]] for row in chosen]
    return data
