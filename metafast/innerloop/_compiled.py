"""The compiled path: one op call for the whole meta-gradient of a batch of tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metafast import ops
from metafast.innerloop._attach import TaskGrad
from metafast.innerloop._call import Call, Result
from metafast.innerloop._rules import SGD, Adam
from metafast.innerloop._trace import Traced
from metafast.ops._inner_loop_graph import InnerLoopGraphs
from metafast.ops._native import LIBRARIES
from metafast.ops._program import Opcode, encode


@dataclass
class Compiled:
    """A program with its vectors; `backend` is "reference" or None for the best kernel of the device."""

    traced: Traced
    model: nn.Module
    backend: str | None

    def __post_init__(self) -> None:
        self.vectors = encode(self.traced.program)
        self.kernels: dict[tuple[str, str], Any] = {}
        self.memory = torch.zeros(1, dtype=torch.int64)  # bytes, written after each call of a native CPU kernel
        native = self.backend is None and LIBRARIES["cpu"].loaded
        self.note_memory: Any = ops.REGISTRY["inner_loop_memory"].overload if native else None
        program = self.traced.program
        self.norm_of_vectors = next(
            (name for i, (name, _) in zip(program.instructions, self.traced.layers, strict=True)
             if i.opcode is Opcode.BATCH_NORM and i.ints[0] == 0 and program.values[i.in0][1:] == (1, 1)), None,
        )  # fmt: skip
        c, h, w = self.traced.program.values[0]
        self.example = (h,) if self.traced.program.tokens else (c,) if h == w == 1 else (c, h, w)

    @property
    def stats_width(self) -> int:
        """S, the elements of all batch statistics."""
        return self.traced.program.stats

    def running_stats(self) -> Tensor | None:
        """`[1, S]`, the model's own statistics for those batch norms that are fixed; None where none is.

        Raises:
            ValueError: a fixed batch norm that has none.
        """
        fixed = [norm for norm in self.traced.norms if norm.fixed]
        if not fixed:
            return None
        buffers = dict(self.model.named_buffers())
        row = next(self.model.parameters()).new_zeros(self.stats_width)
        for norm in fixed:
            mean, variance = norm.buffers
            if mean is None or variance is None:
                raise ValueError(f"stats is needed: batch norm {norm.name!r} keeps no running statistics")
            c, o = norm.channels, norm.offset
            row[o : o + c], row[o + c : o + 2 * c] = buffers[mean], buffers[variance]
        return row[None]

    def kernel(self, name: str, device: torch.device) -> Any:
        """What runs an op; on a GPU, whole inner loops are captured as graphs."""
        key = (name, device.type)
        found = self.kernels.get(key)
        if found is None:
            found = ops.resolve(name, device.type, self.backend)
            native = self.backend is None and LIBRARIES["cuda"].loaded
            if name == "inner_loop" and device.type == "cuda" and native:
                found = InnerLoopGraphs()
            self.kernels[key] = found
        return found

    def call(self, name: str, device: torch.device, *args: Any) -> None:
        """Runs an op, and notes the memory that it worked in."""
        self.kernel(name, device)(*args)
        if self.note_memory is not None and device.type == "cpu":
            self.note_memory(self.memory)

    def shaped(self, x: Tensor | None) -> Tensor | None:
        """Examples of the program's shape: a view."""
        return x if x is None or x.shape[2:] == self.example else x.view(*x.shape[:2], *self.example)

    def run(self, call: Call) -> Result:
        """The losses of a call, and its gradients where they are wanted."""
        program, batch, weights = self.traced.program, call.batch, call.weights
        tasks, steps = batch.support_x.shape[0], call.steps
        rule = call.rule
        if isinstance(rule, Adam):
            options = (2, rule.beta1, rule.beta2, rule.eps, rule.weight_decay, rule.prox)
        else:
            assert isinstance(rule, SGD)
            options = (int(rule.momentum != 0), rule.momentum, 0.0, 0.0, rule.weight_decay, rule.prox)
        new = weights.new_empty
        result = Result(
            task_losses=new(tasks),
            support_losses=new(tasks, steps),
            query_losses=new(tasks, steps + 1),
            logits=new(tasks, batch.query_x.shape[1], program.classes),
        )
        if call.want_adapted:
            result.adapted = new(tasks, program.numel)
        if call.want_batch_stats:
            result.batch_stats = new(steps + 1, program.stats)
        if call.order:
            result.grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
            if call.wants_rates:
                result.grad_rates = torch.empty_like(call.rates, memory_format=torch.contiguous_format)
            if call.wants_support_x:
                result.grad_support_x = torch.empty_like(batch.support_x, memory_format=torch.contiguous_format)
            if call.wants_query_x:
                result.grad_query_x = torch.empty_like(batch.query_x, memory_format=torch.contiguous_format)
        self.call(
            "inner_loop", weights.device,
            *self.vectors, weights, call.rates, self.shaped(batch.support_x), batch.support_y, batch.support_mask,
            self.shaped(batch.query_x), batch.query_y, batch.query_mask, batch.classes, call.batches, call.stats,
            call.query_weights, call.task_weights, steps, call.order, *options, call.seed, call.first_task,
            call.memory_budget, result.task_losses, result.support_losses, result.query_losses,
            result.logits if call.want_logits else None,
            result.grad_weights, result.grad_rates, self.shaped(result.grad_support_x),
            self.shaped(result.grad_query_x), result.adapted, result.batch_stats,
        )  # fmt: skip
        return result

    def gradient(
        self, params: Tensor, x: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None, stats: Tensor | None,
        seed: int, step: int, first_task: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """(losses, logits, gradients) at `params` `[T, P]`, differentiable once."""
        tasks, n = x.shape[:2]
        data = (None if v is None else v.contiguous() for v in (y, mask, classes, stats))
        rest = (*data, seed, step, first_task)
        program = self.traced.program

        def compute(params: Tensor, x: Tensor, wants_x: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            losses, logits, grads = (
                params.new_empty(tasks),
                params.new_empty(tasks, n, program.classes),
                params.new_empty(params.shape),
            )
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
            own = self.shaped(x.contiguous())
            self.call(
                "task_grad", params.device, *self.vectors, params.contiguous(), own, *rest, losses, logits, grads,
                self.shaped(grad_x),
            )  # fmt: skip
            return losses, logits, grads, grad_x

        def product(params: Tensor, x: Tensor, direction: Tensor, wants_x: bool) -> tuple[Tensor, Tensor | None]:
            hvp = params.new_empty(params.shape)
            mixed = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
            own, direction = self.shaped(x.contiguous()), direction.contiguous()
            self.call(
                "task_hvp", params.device, *self.vectors, params.contiguous(), own, *rest, direction, hvp,
                self.shaped(mixed),
            )  # fmt: skip
            return hvp, mixed

        outputs: tuple[Tensor, Tensor, Tensor] = TaskGrad.apply(compute, product, params, x)
        return outputs
