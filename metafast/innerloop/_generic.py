"""The path for any module: `torch.func.functional_call`, task by task, or all tasks under `vmap`.

The gradient of a task is always taken inside: `vmap(grad(task))`, never a derivative of a `vmap`, which in torch 2.13
silently loses a term through batch norm (pytorch issue 186256).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from metafast.innerloop._call import Call, Result
from metafast.innerloop._layout import Layout
from metafast.innerloop._loss import LossKind
from metafast.innerloop._model import logits_of, norm_layers
from metafast.innerloop._rules import SGD, Adam, Rule
from metafast.ops._dropout_hash import QUERY_STEP
from metafast.ops._program import Loss
from metafast.ops._rounding import rounding_key


class Steps:
    """The inner optimizer in differentiable operations, on flat `[..., A]` tensors of the adapted parameters."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.m: Tensor | None = None
        self.v: Tensor | None = None
        self.t = 0

    def update(self, g: Tensor, theta: Tensor, start: Tensor) -> Tensor:
        rule = self.rule
        assert isinstance(rule, SGD | Adam)
        self.t += 1
        d = g + rule.weight_decay * theta if rule.weight_decay else g
        if rule.prox:
            d = d + rule.prox * (theta - start)
        if isinstance(rule, SGD):
            self.m = d if self.m is None or not rule.momentum else rule.momentum * self.m + d
            return self.m
        self.m = (1 - rule.beta1) * d if self.m is None else rule.beta1 * self.m + (1 - rule.beta1) * d
        self.v = (1 - rule.beta2) * d * d if self.v is None else rule.beta2 * self.v + (1 - rule.beta2) * d * d
        v_hat = self.v / (1 - rule.beta2**self.t)
        moving = v_hat > 0  # the root has no derivative at 0
        root = torch.where(moving, torch.where(moving, v_hat, 1).sqrt(), 0)
        return self.m / (1 - rule.beta1**self.t) / (root + rule.eps)


@dataclass
class Generic:
    """A model, its layout and its loss, run by `torch.func`.

    Args:
        model: any module.
        layout: of its parameters.
        loss: what is minimized.
        batch_norm: "auto", "batch" or "running".
        vectorized: all tasks under `vmap`; else one after another.
    """

    model: nn.Module
    layout: Layout
    loss: LossKind
    batch_norm: str
    vectorized: bool = False

    def __post_init__(self) -> None:
        self.norms = norm_layers(self.model)
        self.recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        self.inside = [name in self.layout.adapted for name in self.layout.names]

    @property
    def stats_width(self) -> int:
        """S, the elements of all batch statistics."""
        return sum(2 * layer.channels for layer in self.norms)

    # ---- the model as a function

    def forward(
        self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, stats: Tensor | None, key: int | None
    ) -> Tensor:
        """Logits; batch norms as `batch_norm` says, random layers seeded by `key` (None: left alone)."""
        if stats is not None:
            for layer in self.norms:
                c, o = layer.channels, layer.offset
                for name, value in zip(layer.buffers, (stats[o : o + c], stats[o + c : o + 2 * c]), strict=True):
                    if name is not None:
                        buffers = {**buffers, name: value}
        modes: list[tuple[nn.Module, bool]] = []
        if self.batch_norm != "auto":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    modes.append((module, module.training))
                    module.training = self.batch_norm == "batch"
        try:
            if key is None:
                return self.call(params, buffers, x)
            with _seeded(key, x.device):
                return self.call(params, buffers, x)
        finally:
            for module, training in modes:
                module.training = training

    def call(self, params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        """Logits by kernels that can be differentiated twice: fused attention and cuDNN's recurrent layers cannot."""
        with ExitStack() as contexts:
            contexts.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.recurrent and x.is_cuda:
                tf32 = torch.backends.cudnn.allow_tf32
                contexts.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=tf32))
            return _tensor(functional_call(self.model, (params, buffers), (x,)))

    def split(self, params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The adapted parameters as one vector, and the others."""
        flat = torch.cat(
            [params[n].reshape(-1) for n, inside in zip(self.layout.names, self.inside, strict=True) if inside]
        )
        return flat, {n: params[n] for n, inside in zip(self.layout.names, self.inside, strict=True) if not inside}

    def join(self, flat: Tensor, others: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `split`."""
        inner = [n for n, inside in zip(self.layout.names, self.inside, strict=True) if inside]
        shapes = [self.layout.shapes[n] for n in inner]
        parts = flat.split([math.prod(shape) for shape in shapes])
        return {**others, **{n: part.view(shape) for n, part, shape in zip(inner, parts, shapes, strict=True)}}

    def rate(self, rates: Tensor, k: int) -> Tensor:
        """The rates of step k, for the adapted elements only."""
        row = rates[k if rates.shape[0] > 1 else 0]
        sizes = self.layout.sizes
        if row.numel() == 1:
            return row.view(())
        if row.numel() == len(sizes):
            chosen = [i for i, inside in enumerate(self.inside) if inside]
            repeats = torch.tensor([sizes[i] for i in chosen], device=row.device)
            return row[chosen].repeat_interleave(repeats, output_size=sum(sizes[i] for i in chosen))
        return torch.cat([part for part, inside in zip(row.split(sizes), self.inside, strict=True) if inside])

    # ---- one task

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
            z = self.forward(self.join(theta, others), {n: b.clone() for n, b in buffers.items()}, x, stats, key)
            open_z = z[:, : int(data["classes"])] if "classes" in data else z
            return self.judge(open_z, y, f"{which}_y", task), z

        def support_loss(k: int, chosen: Tensor | None, theta: Tensor) -> Tensor:
            return evaluate(theta, "support", k, chosen)[0]

        for k in range(call.steps + 1):
            if wanted[k] != 0 or k == call.steps:
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
        assert logits is not None
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
                point = theta if differentiable and order == 2 else theta.detach().requires_grad_()
                value = loss(point)
                if not value.requires_grad:
                    raise ValueError(
                        "model: the loss does not depend on the adapted parameters by differentiable operations"
                    )
                create = differentiable and order == 2
                (gradient,) = torch.autograd.grad(value, point, create_graph=create)
        return value.detach(), gradient if order == 2 else gradient.detach()

    def judge(self, z: Tensor, y: Tensor, name: str, task: int | None) -> Tensor:
        """The loss, 0 for no examples; labels that the logits do not have are named."""
        if y.shape[0] == 0:
            return z.sum() * 0
        if self.loss.kind is Loss.CROSS_ENTROPY and task is not None:
            low, high = y.aminmax()
            if int(low) < 0 or int(high) >= z.shape[1]:
                raise ValueError(
                    f"{name}: task {task} has labels {int(low)} to {int(high)}, the model has {z.shape[1]} classes"
                )
        value = self.loss.function(z, y)
        if value.dim() != 0:
            raise ValueError(f"loss must return a scalar for one task, got shape {list(value.shape)}")
        return value

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
                z = self.forward(self.layout.unflatten(flat), own, x[t][rows], row, key)
                open_z = z if classes is None else z[:, : int(classes[t])]
                value = self.judge(open_z, y[t][rows], "y", t)
                (g,) = torch.autograd.grad(value, flat, create_graph=differentiable)
            losses.append(value if differentiable else value.detach())
            logits.append(z.detach())
            grads.append(g)
        return torch.stack(losses), pad_logits(logits, x.shape[1], mask), torch.stack(grads)


@contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of the device start from `key`, and go on afterwards where they were."""
    generators = [torch.default_generator]  # torch.manual_seed would format a stack trace for every device
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def pad_logits(parts: list[Tensor], examples: int, mask: Tensor | None) -> Tensor:
    """`[T, N, C]` of the logits of each task's valid examples, 0 elsewhere."""
    if mask is None:
        return torch.stack(parts)
    full = parts[0].new_zeros(len(parts), examples, parts[0].shape[1])
    for t, part in enumerate(parts):
        full[t, mask[t]] = part
    return full


def _tensor(output: Any) -> Tensor:
    logits = logits_of(output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits, or an object with .logits, got {type(output).__name__}")
    return logits


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
