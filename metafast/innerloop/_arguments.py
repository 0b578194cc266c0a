"""Checks of an inner loop's arguments, and their translation to the ops' form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metafast._checks import integer
from metafast.innerloop._layout import Layout
from metafast.ops._program import Loss

if TYPE_CHECKING:
    from metafast.data import TaskBatch

PER = ("scalar", "tensor", "element")


def make_rates(rates: Any, per: str | None, steps: int, layout: Layout, like: Tensor) -> Tensor:
    """`[1 or K, 1 or parameters or P]` in the weights' dtype, differentiable with respect to `rates`.

    Raises:
        TypeError: rates are no number, tensor or mapping.
        ValueError: a shape that fits nothing, or several things, or rates that are not finite.
    """
    if per is not None and per not in PER:
        raise ValueError(f"per={per!r} is unknown; choose one of {', '.join(PER)}, or None to go by the shape")
    if isinstance(rates, Mapping):
        return _named_rates(rates, layout, like)
    if isinstance(rates, int | float) and not isinstance(rates, bool):
        if not math.isfinite(rates):
            raise ValueError(f"rates must be finite, got {rates}")
        return torch.full((1, 1), float(rates), dtype=like.dtype, device=like.device)
    if not isinstance(rates, Tensor):
        raise TypeError(f"rates must be a number, a tensor or a mapping of names, got {type(rates).__name__}")
    if not rates.is_floating_point():
        raise TypeError(f"rates must be floating point, got {rates.dtype}")
    rates = rates.to(dtype=like.dtype, device=like.device)
    widths = {"scalar": 1, "tensor": len(layout.sizes), "element": layout.numel}
    if rates.dim() == 0 or rates.numel() == 1:
        return rates.reshape(1, 1)
    allowed = widths.items() if per is None else [(per, widths[per])]
    fits = set()
    if rates.dim() == 1:
        for name, width in allowed:
            if name == "scalar" and rates.shape[0] == steps:
                fits.add((steps, 1))
            elif name != "scalar" and rates.shape[0] == width:
                fits.add((1, width))
    elif rates.dim() == 2:
        fits = {tuple(rates.shape) for _, width in allowed if rates.shape[0] in (1, steps) and rates.shape[1] == width}
    if not fits:
        n, p = widths["tensor"], widths["element"]
        raise ValueError(
            f"rates has shape {list(rates.shape)}; for {steps} steps it must be a number, [{steps}], "
            f"[{n}] (per tensor), [{p}] (per element), or [1 or {steps}, 1 or {n} or {p}]"
        )
    if len(fits) > 1:
        raise ValueError(
            f"rates of shape {list(rates.shape)} may mean {sorted(fits)}; say per='scalar', 'tensor' or 'element'"
        )
    return rates.reshape(fits.pop())


def _named_rates(rates: Mapping[str, Any], layout: Layout, like: Tensor) -> Tensor:
    """Rates by parameter name, a number or one for each element; parameters without one do not move."""
    unknown = [name for name in rates if name not in layout.shapes]
    if unknown:
        raise ValueError(f"rates: {unknown[0]!r} is no parameter of the model; there are {', '.join(layout.names)}")
    missing = sorted(layout.adapted - rates.keys())
    if missing:
        raise ValueError(f"rates: {missing[0]!r} has none, but is adapted; give 0.0 to hold it")
    values = [torch.as_tensor(rates.get(name, 0.0)).to(like) for name in layout.names]
    if all(v.numel() == 1 for v in values):
        return torch.stack([v.reshape(()) for v in values])[None]
    for name, v in zip(layout.names, values, strict=True):
        if v.numel() != 1 and tuple(v.shape) != layout.shapes[name]:
            raise ValueError(f"rates[{name!r}] must be a number or {list(layout.shapes[name])}, got {list(v.shape)}")
    parts = [v.reshape(-1).expand(size) for v, size in zip(values, layout.sizes, strict=True)]
    return torch.cat(parts)[None]


def make_query_weights(weights: Any, steps: int) -> Tensor:
    """`[K + 1]` float64 on the CPU; None is the loss after the last step."""
    if weights is None:
        chosen = torch.zeros(steps + 1, dtype=torch.float64)
        chosen[steps] = 1.0
        return chosen
    chosen = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if chosen.shape != (steps + 1,):
        raise ValueError(f"query_weights must be [steps + 1] = [{steps + 1}], got {list(chosen.shape)}")
    if not bool(chosen.isfinite().all()):
        raise ValueError(f"query_weights must be finite, got {chosen.tolist()}")
    return chosen


def make_task_weights(weights: Any, tasks: int, device: torch.device) -> Tensor | None:
    """`[T]` float64 on the device of the data; None: 1 / T."""
    if weights is None:
        return None
    chosen = torch.as_tensor(weights, dtype=torch.float64).detach().to(device)
    if chosen.shape != (tasks,):
        raise ValueError(f"task_weights must be [tasks] = [{tasks}], got {list(chosen.shape)}")
    if device.type == "cpu" and not bool(chosen.isfinite().all()):
        raise ValueError(f"task_weights must be finite, got {chosen.tolist()}; a weight of 0 leaves a task out")
    return chosen


def make_batches(batches: Tensor | None, tasks: int, steps: int, examples: int, device: torch.device) -> Tensor | None:
    """int64 `[K, B]` or `[T, K, B]` with numbers of support examples."""
    if batches is None:
        return None
    if not isinstance(batches, Tensor) or batches.dtype is not torch.int64:
        raise TypeError(f"batches must be an int64 tensor, got {getattr(batches, 'dtype', type(batches).__name__)}")
    if batches.dim() not in (2, 3) or batches.shape[-2] != steps or batches.dim() == 3 and batches.shape[0] != tasks:
        raise ValueError(f"batches must be [{steps}, B] or [{tasks}, {steps}, B], got {list(batches.shape)}")
    if batches.shape[-1] < 1:
        raise ValueError("batches must have at least one example for each step")
    low, high = (int(v) for v in batches.aminmax())
    if low < 0 or high >= examples:
        raise ValueError(f"batches must number support examples from 0 to {examples - 1}, got {low} to {high}")
    return batches.to(device).contiguous()


def make_stats(stats: Tensor | None, steps: int, width: int, like: Tensor) -> Tensor | None:
    """`[1 or K + 1, S]`: fixed statistics of batch norms."""
    if stats is None:
        return None
    if stats.dim() != 2 or stats.shape[0] not in (1, steps + 1) or stats.shape[1] != width:
        raise ValueError(f"stats must be [1 or {steps + 1}, {width}], got {list(stats.shape)}")
    return stats.detach().to(like).contiguous()


def check_transforms(what: str, allowed: tuple[str, ...], way_out: str) -> None:
    """No `torch.func` transform around an inner loop: a derivative of a vmap may lose terms, see docs/innerloop.md.

    Raises:
        ValueError: there is one that is not allowed.
    """
    names = {interpreter.key().name for interpreter in torch._C._functorch.get_interpreter_stack() or ()}
    wrong = sorted(names - {"Functionalize", *allowed})
    if wrong:
        raise ValueError(f"{what} cannot run inside torch.func.{wrong[0].lower()}; {way_out}")


def check_steps(steps: Any) -> int:
    """`steps` as an int of at least 1."""
    return integer("steps", steps, minimum=1)


def check_batch(batch: TaskBatch, like: Tensor) -> None:
    """dtypes, devices and sizes that `TaskBatch` itself cannot know."""
    if batch.tasks < 1 or batch.support_x.shape[1] < 1 or batch.query_x.shape[1] < 1:
        raise ValueError(
            f"batch must have tasks, support and query examples, got {batch.tasks} tasks, {batch.support_x.shape[1]} "
            f"support and {batch.query_x.shape[1]} query examples"
        )
    check_examples("support_x", batch.support_x, like)
    for which in ("support", "query"):
        mask = getattr(batch, f"{which}_mask")
        if mask is not None and mask.device.type == "cpu" and not bool(mask.any(1).all()):
            task = int((~mask.any(1)).nonzero()[0])
            raise ValueError(f"{which}_mask: task {task} has no valid example")


def check_examples(name: str, x: Tensor, like: Tensor) -> None:
    """The device and the dtype of a model's input."""
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, the model's parameters are on {like.device}; use batch.to(device)")
    if x.is_floating_point() and x.dtype != like.dtype:
        raise TypeError(f"{name} is {x.dtype}, the model's parameters are {like.dtype}; use batch.to(dtype=...)")


def check_kind(name: str, y: Tensor, kind: Loss | None, dtype: torch.dtype) -> None:
    """Class numbers for cross-entropy, numbers of the model's dtype for squared errors; a user's loss takes any."""
    if kind is Loss.CROSS_ENTROPY and y.dtype is not torch.int64:
        raise TypeError(
            f"{name} must be int64 class numbers for cross_entropy, got {y.dtype}; for targets use loss='mse'"
        )
    if kind is Loss.MSE and y.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype} targets for mse, got {y.dtype}; for class numbers use loss='cross_entropy'"
        )


def check_labels(name: str, y: Tensor, mask: Tensor | None, classes: Tensor | None, width: int) -> None:
    """Class numbers below the task's number of classes, padding left out; on the CPU only, where it costs no wait."""
    check_kind(name, y, Loss.CROSS_ENTROPY, y.dtype)
    if y.device.type != "cpu":
        return
    if classes is not None:
        low, high = (int(v) for v in classes.aminmax())
        if low < 1 or high > width:
            task = int(((classes < 1) | (classes > width)).nonzero()[0])
            raise ValueError(f"classes: task {task} has {int(classes[task])}, the model has {width}")
    smallest, largest = y.aminmax()
    if classes is None and int(smallest) >= 0 and int(largest) < width:
        return
    limit = torch.full((y.shape[0],), width) if classes is None else classes
    wrong = (y < 0) | (y >= limit[:, None])
    if mask is not None:
        wrong &= mask
    if bool(wrong.any()):
        task, example = (int(v) for v in wrong.nonzero()[0])
        raise ValueError(
            f"{name}: task {task}, example {example} has label {int(y[task, example])}; "
            f"its labels must be from 0 to {int(limit[task]) - 1}"
        )


def check_sides(x: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None) -> None:
    """What `TaskBatch` checks of its fields, for those who come without one."""
    if y.shape[:2] != x.shape[:2]:
        raise ValueError(f"y must be [tasks, examples, ...] as x, {list(x.shape[:2])}, got {list(y.shape)}")
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != x.shape[:2]):
        raise ValueError(f"mask must be bool {list(x.shape[:2])} as x, got {mask.dtype} {list(mask.shape)}")
    if classes is not None and (classes.dtype is not torch.int64 or classes.shape != x.shape[:1]):
        raise ValueError(f"classes must be int64 {list(x.shape[:1])}, got {classes.dtype} {list(classes.shape)}")


def check_targets(name: str, y: Tensor, width: int, dtype: torch.dtype) -> None:
    """Targets of mean squared error, `[T, N, D]`."""
    check_kind(name, y, Loss.MSE, dtype)
    if y.dim() != 3 or y.shape[2] != width:
        raise ValueError(f"{name} must be [tasks, examples, {width}], as the model's output, got {list(y.shape)}")


def check_single(name: str, layer: str, x: Tensor, mask: Tensor | None, mini_batch: int | None = None) -> None:
    """A batch norm over vectors needs two examples of a task: of one it makes zeros."""
    if min(x.shape[1], mini_batch or x.shape[1]) > 1 and mask is None:
        return
    task, count = 0, min(x.shape[1], mini_batch or x.shape[1])
    if mask is not None and mask.device.type == "cpu":
        counts = mask.sum(1)
        task = int(counts.argmin())
        count = min(count, int(counts[task]))
    if count == 1:
        raise ValueError(
            f"{name}: task {task} has 1 example in a pass, and layer {layer} needs more than 1 value per channel; "
            "give more, or batch_norm='running'"
        )


def check_tokens(name: str, x: Tensor, vocabulary: int) -> None:
    """Token numbers below the size of the embedding table."""
    if x.dtype is not torch.int64:
        raise TypeError(f"{name} must be int64 tokens, got {x.dtype}")
    if x.device.type != "cpu" or x.numel() == 0:
        return
    low, high = x.aminmax()
    if int(low) < 0 or int(high) >= vocabulary:
        task = int(((x < 0) | (x >= vocabulary)).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"{name}: task {task} has tokens outside 0 to {vocabulary - 1}")


def make_seed(name: str, value: Any) -> int:
    """An integer that the ops can take."""
    number = integer(name, value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number


def name_nan(batch: TaskBatch, task: int, weights: Tensor | None = None, rates: Tensor | None = None) -> str:
    """Why the loss of a task may be not finite: its inputs, where it starts, its rates, or the adaptation."""
    for name in ("support_x", "support_y", "query_x", "query_y"):
        value = getattr(batch, name)[task]
        mask = getattr(batch, f"{name.split('_')[0]}_mask")
        value = value if mask is None else value[mask[task]]
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"its {name} contains NaN or infinity"
    if weights is not None and not bool((weights if weights.dim() == 1 else weights[task]).isfinite().all()):
        return "the parameters that it starts from contain NaN or infinity, as after an outer step that was too large"
    if rates is not None and not bool(rates.isfinite().all()):
        return "rates contain NaN or infinity"
    return "its inputs are finite, so adaptation diverged; lower rates"
