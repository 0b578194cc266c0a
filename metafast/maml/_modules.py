"""What the algorithms ask a model: which parameters adapt, which layer is the head, what its batch norms use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from metafast.data import TaskBatch

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def check_batch(batch: Any) -> None:
    """Says what a batch must be, before something misses its fields."""
    if not isinstance(batch, TaskBatch):
        raise TypeError(
            f"batch must be a metafast.data.TaskBatch, got {type(batch).__name__}; episodes(...) gives them, and "
            "TaskBatch(support_x, support_y, query_x, query_y) makes one"
        )


def check_examples(x: Any, y: Any) -> None:
    """Says what one task's examples must be."""
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if x.dim() < 1 or y.dim() < 1 or len(x) != len(y):
        raise ValueError(f"x and y must hold as many examples, got shapes {list(x.shape)} and {list(y.shape)}")


def trainable_names(model: nn.Module, adapted: Sequence[str] | Callable[[str], bool] | None) -> list[str]:
    """Names of the parameters that the inner loop changes; frozen ones never do."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("model has no parameter that requires a gradient; there is nothing to adapt")
    if adapted is None:
        return names
    if callable(adapted):
        chosen = [name for name in names if adapted(name)]
    else:
        if isinstance(adapted, str):
            raise TypeError(f"adapted must be a list of name patterns, got the string {adapted!r}; write [{adapted!r}]")
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in adapted)]
    if not chosen:
        raise ValueError(f"adapted must choose at least one parameter, got {adapted!r}; the model has {names[:8]}")
    return chosen


def head_of(model: nn.Module, head: str | None = None) -> str:
    """The name of the last layer: `head`, or the last registered module that has parameters of its own."""
    modules = dict(model.named_modules())
    if head is not None:
        if head not in modules or not list(modules[head].parameters()):
            own = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
            raise ValueError(f"head must name a layer with parameters, got {head!r}; the model has {own}")
        return head
    own = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
    if len(own) < 2:
        raise ValueError(f"model must have at least two layers with parameters to part head from body, got {own}")
    return own[-1]


def features(model: nn.Module, head: str, call: Callable[[], Any]) -> Tensor:
    """What goes into the head while `call()` runs the model."""
    found: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        call()
    finally:
        handle.remove()
    if len(found) != 1:
        raise ValueError(f"head {head!r} must run once in a forward pass, it ran {len(found)} times")
    return found[0].flatten(1)


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalize by their batch and record nothing."""
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    before = [(module.training, module.track_running_stats) for module in norms]
    for module in norms:
        module.training, module.track_running_stats = True, False
    try:
        yield
    finally:
        for module, (training, track) in zip(norms, before, strict=True):
            module.training, module.track_running_stats = training, track


def freeze_batch_statistics(model: nn.Module) -> None:
    """Batch norms that normalize by their batch from now on, in evaluation mode too."""
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def statistics_size(model: nn.Module) -> int:
    """Means and variances of all batch norms."""
    return sum(2 * module.num_features for module in model.modules() if isinstance(module, BATCH_NORMS))


def norm_names(model: nn.Module) -> list[str]:
    """Names of the weights and biases of batch norms that require a gradient."""
    found = {id(p) for m in model.modules() if isinstance(m, BATCH_NORMS) for p in m.parameters() if p.requires_grad}
    return [name for name, parameter in model.named_parameters() if id(parameter) in found]


def flat_mask(model: nn.Module, names: Sequence[str]) -> Tensor:
    """`[P]`, true for the elements of the parameters in `names`."""
    chosen = set(names)
    return torch.cat([torch.full((p.numel(),), n in chosen, device=p.device) for n, p in model.named_parameters()])
