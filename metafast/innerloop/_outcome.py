"""What an inner loop returns, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Outcome:
    """The result of one call of an inner loop on T tasks.

    Args:
        loss: the meta-loss, 0-d. Its `backward()` gives the meta-gradient to the parameters, the rates and those of
            support_x and query_x that require a gradient.
        task_losses: `[T]`, the query loss of each task (weighted over steps by `query_weights`), detached.
        support_losses: `[T, K]`, before each step.
        query_losses: `[T, K+1]`, at θ_0 .. θ_K; NaN where `query_weights` skips the pass.
        logits: `[T, Q, C]` of the query examples at θ_K, detached; 0 at padding.
        adapted: θ_K by parameter name, each `[T, *shape]`, detached; None unless asked for by `want_adapted=True`.
        batch_stats: `[K+1, S]` batch means and unbiased variances of each batch norm, means over tasks (support pass at
            θ_k; the query pass in the last row); None unless asked for by `want_batch_stats=True`.
        dropped: the tasks whose loss was not finite and that `on_nan="drop"` left out of the meta-loss.
    """

    loss: Tensor
    task_losses: Tensor
    support_losses: Tensor
    query_losses: Tensor
    logits: Tensor
    adapted: dict[str, Tensor] | None = None
    batch_stats: Tensor | None = None
    dropped: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """Which engine an inner loop uses, and why.

    Args:
        engine: `"compiled"`, `"reference"`, `"loop"` or `"vmap"`; `"undecided"` before the first call.
        reason: one sentence.
        layers: a row (layer, what it became) for each instruction of the program.
        seconds: measured seconds for one meta-gradient by engine, where a measurement decided.
        memory: bytes that the last compiled call worked in beside its inputs and results, on all threads: weight
            copies, activations, sums. They are kept for the next call of that shape. None where PyTorch's allocator
            has the memory (the other engines, and CUDA: `torch.cuda.max_memory_allocated`), or before the first call.
    """

    engine: str
    reason: str
    layers: tuple[tuple[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    memory: int | None = None

    def __str__(self) -> str:
        lines = [f"engine: {self.engine} ({self.reason})"]
        width = max((len(name) for name, _ in self.layers), default=0)
        lines += [f"  {name:<{width}}  {what}" for name, what in self.layers]
        lines += [f"  {name}: {1e3 * seconds:.3g} ms for a meta-gradient" for name, seconds in self.seconds.items()]
        if self.memory is not None:
            lines.append(f"  memory: {self.memory / 1e6:.3g} MB for the last call")
        return "\n".join(lines)
