"""Data parallel over tasks: each process takes a share of every meta-batch, the meta-gradients are added up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from metafast._collectives import together

if TYPE_CHECKING:
    from metafast.data import TaskBatch
    from metafast.maml._task_learner import TaskLearner


def world() -> tuple[int, int]:
    """This process's rank, and the number of processes; `(0, 1)` outside of torchrun and accelerate."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(tasks: int) -> slice:
    """The tasks of a meta-batch that are this process's."""
    rank, size = world()
    if tasks < size:
        raise ValueError(
            f"a meta-batch must have at least one task per process, got {tasks} tasks for {size} processes"
        )
    return slice(rank * tasks // size, (rank + 1) * tasks // size)


def meta_gradient(maml: TaskLearner, batch: TaskBatch, *, own: bool = False) -> dict[str, Any]:
    """Fill `.grad` of the meta-parameters with the gradient of the mean query loss over all processes' tasks.

    Every process gets the same result, that of one process up to rounding. Tasks that were dropped do not count in
    the mean, wherever they were.

    Args:
        maml: any algorithm, with equal weights in all processes.
        batch: the whole meta-batch, the same in all processes, of which each works on its share; or this process's
            share, all of one size, with `own=True`.
        own: see `batch`. `metafast.data.episodes(rank=..., world_size=...)` makes shares.

    Returns:
        The metrics of the whole batch: "loss" and "accuracy" or "mse" `[T]`, and "dropped".

    Raises:
        ValueError: fewer tasks than processes, or what the learner raises.

    Example:
        >>> import torch, metafast
        >>> x, y = torch.randn(8, 10, 4), torch.randint(0, 2, (8, 10))
        >>> maml = metafast.maml.MAML(torch.nn.Linear(4, 2), steps=2)
        >>> metrics = meta_gradient(maml, metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> metrics["loss"].shape, maml.model.weight.grad.shape
        (torch.Size([8]), torch.Size([2, 4]))
    """
    rank, size = world()
    for parameter in maml.parameters():
        parameter.grad = None
    if size == 1:
        loss, metrics = maml(batch)
        loss.backward()
        return {key: metrics[key] for key in ("loss", "accuracy", "mse", "dropped") if key in metrics}
    tasks = len(batch) * size if own else len(batch)
    mine = share(tasks)
    count = mine.stop - mine.start
    weights = torch.full((count,), 1 / tasks, dtype=torch.float64, device=batch.query_x.device)
    problem, kept = None, {}
    try:
        loss, metrics = maml(batch if own else batch[mine], task_weights=weights, first_task=mine.start)
        loss.backward()
        kept = {key: metrics[key].cpu() for key in ("loss", "accuracy", "mse") if key in metrics}
        kept["dropped"] = [mine.start + task for task in metrics["dropped"]]
    except ValueError as error:  # the others wait for this process: tell them first
        problem = f"process {rank}, whose tasks are {mine.start} to {mine.stop - 1} of the meta-batch: {error}"
        if maml.on_nan == "drop" and f"({count} of {count} tasks" in problem:  # others may have some left
            problem, kept = None, {"dropped": list(range(mine.start, mine.stop))}
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, (problem, kept))
    problems = [text for text, _ in parts if text is not None]
    if problems:
        raise ValueError(problems[0])
    dropped = [task for _, part in parts for task in part["dropped"]]
    if len(dropped) == tasks:
        raise ValueError(f"all {tasks} tasks have losses that are not finite; lower inner_lr or the meta rate")
    left = count - len(kept["dropped"])
    # the learner's loss is the mean over what is left of its share, times its share of all tasks
    _add_up(list(maml.parameters()), left / (tasks - len(dropped)) * tasks / count)
    _average_buffers(maml, left / (tasks - len(dropped)))
    names = next(part.keys() for _, part in parts if len(part) > 1)
    merged: dict[str, Any] = {
        key: torch.cat(
            [part[key] if key in part else torch.full((len(part["dropped"]),), torch.nan) for _, part in parts]
        )
        for key in names
        if key != "dropped"
    }
    return {**merged, "dropped": dropped}


def _add_up(parameters: list[nn.Parameter], scale: float) -> None:
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    for parameter, total in zip(learned, together([grad * scale for grad in grads], dist.all_reduce), strict=True):
        parameter.grad = total


def _average_buffers(module: nn.Module, weight: float) -> None:
    """Recorded statistics are means over tasks, hence weighted means over processes."""
    for buffer in module.buffers():
        if buffer.is_floating_point() and buffer.numel():
            buffer.mul_(weight)
            dist.all_reduce(buffer)
