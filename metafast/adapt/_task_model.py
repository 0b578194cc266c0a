"""One adapted task as an ordinary module: it can be called, saved, trained further, merged and exported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from metafast.adapt._share import replace, share

if TYPE_CHECKING:
    from metafast.adapt._backbone import Backbone
    from metafast.adapt._sites import Site


class Adapted(nn.Module):
    """A module of the frozen model with what one task adds to it.

    Args:
        site: where the model adapts; it is not changed.
        module: the frozen module.
        values: the site's numbers for the task, `[*shape]` each.
    """

    def __init__(self, site: Site, module: nn.Module, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.site = _without_state(site, module)
        self.values = nn.ParameterDict({name: nn.Parameter(value.detach().clone()) for name, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        """What models look up on the module in this place, such as the dtype of `weight`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("site", "values"):
                raise
            return getattr(self.site.module, name)

    def forward(self, x: Tensor) -> Tensor:
        """The output for one task."""
        return self.site.run(x, {name: value[None] for name, value in self.values.items()})[0]

    def merged(self) -> nn.Module:
        """The module with the task's numbers folded into its own weights."""
        return self.site.merged({name: value.detach() for name, value in self.values.items()})


class MergedModel(nn.Module):
    """An adapted model without adapters: the user's architecture with weights of its own where it adapted, and a head.

    Args:
        base: features, `base.model` is the user's architecture.
        head: of the task.
    """

    def __init__(self, base: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.base, self.head = base, head

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, C]`."""
        out: Tensor = self.head(self.base(x))
        return out


class TaskModel(nn.Module):
    """A model adapted to one task. `MetaFineTuner.adapt` makes it.

    The frozen weights are those of the backbone, in the same memory. What a gradient reaches are the adapters and the
    head, so that `Adam(p for p in model.parameters() if p.requires_grad)` trains it further.

    Args:
        base: the frozen model.
        sites: where it adapts, by the names of `base.model`.
        values: the numbers of each site for this task, by the site's name, `[*shape]` each.
        weight: of the head, `[C, D]`.
        bias: of the head, `[C]`.

    Raises:
        ValueError: sites and values that do not fit each other, or a head that does not fit the features.

    Example:
        >>> import torch
        >>> from metafast.adapt import TaskModel, freeze
        >>> from metafast.adapt._sites import LoRALinear
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> base = freeze(model)
        >>> site = LoRALinear("0", base.model[0], r=2)
        >>> task_model = TaskModel(base, [site], {"0": site.start()}, torch.zeros(5, 8), torch.zeros(5))
        >>> [name for name, p in task_model.named_parameters() if p.requires_grad]
        ['base.model.0.values.A', 'base.model.0.values.B', 'head.weight', 'head.bias']
        >>> task_model.merge()(torch.randn(6, 4)).shape
        torch.Size([6, 5])
    """

    def __init__(
        self,
        base: Backbone,
        sites: Sequence[Site],
        values: Mapping[str, Mapping[str, Tensor]],
        weight: Tensor,
        bias: Tensor,
    ) -> None:
        super().__init__()
        check_head(base.width, weight, bias)
        check_values(sites, values)
        self.base = share(base)
        for site in sites:
            module = self.base.model.get_submodule(site.name)
            replace(self.base.model, site.name, Adapted(site, module, values[site.name]))
        self.head = linear(weight, bias, trained=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, C]` (`[N, L, C]` of a backbone that gives features for every token)."""
        out: Tensor = self.head(self.base(x))
        return out

    def adapted(self) -> dict[str, Adapted]:
        """Where the model adapts, by the module's name in `base.model`."""
        found = self.base.model.named_modules()
        return {name: module for name, module in found if isinstance(module, Adapted)}

    def frozen(self) -> Backbone:
        """The backbone without what the task adds, on the same memory."""
        base = share(self.base)
        for name, module in self.adapted().items():
            replace(base.model, name, module.site.module)
        return base

    def merge(self) -> MergedModel:
        """The same function without adapters: their numbers are folded into the weights they belong to.

        Returns:
            A module whose `base.model` is the user's architecture with new weights where it adapted and the backbone's
            own, in the same memory, everywhere else; `base.model.save_pretrained(folder)` writes one of transformers.
            This model and the backbone stay as they are.
        """
        base = share(self.base)
        for name, module in self.adapted().items():
            replace(base.model, name, module.merged())
        return MergedModel(base, linear(self.head.weight, self.head.bias, trained=False)).eval()

    def export(self, folder: str | os.PathLike[str], model: nn.Module | None = None) -> list[Path]:
        """Writes the adapters in the format of peft: `PeftModel.from_pretrained(model, folder)` reads them.

        The head goes into the same file where `model` has a head of the same shape in that place; else, or where it has
        none, into head.safetensors beside it ("weight" `[C, D]`, "bias" `[C]`).

        Args:
            folder: is made where it does not exist.
            model: the model that peft will load them into, the one that was frozen or another with the same weights in
                memory. Default: the one that was given to `freeze`.

        Returns:
            The files.

        Raises:
            ValueError: adapters that are not LoRA, or LoRA that peft's format cannot say.
        """
        from metafast.adapt._peft import export_adapters

        return export_adapters(self, Path(folder), model)

    @staticmethod
    def from_peft(base: Backbone, folder: str | os.PathLike[str]) -> TaskModel:
        """A task model from LoRA adapters in the format of peft, such as `export` writes.

        Args:
            base: the frozen model that they were made for.
            folder: with adapter_config.json and adapter_model.safetensors.

        Returns:
            The model, with the head that is in the folder.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: adapters of another kind, or that do not fit the backbone.
        """
        from metafast.adapt._peft import import_adapters

        return import_adapters(base, Path(folder))


def linear(weight: Tensor, bias: Tensor, *, trained: bool) -> nn.Linear:
    """A linear layer with these numbers."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=trained)
    return layer


def check_head(width: int, weight: Tensor, bias: Tensor) -> None:
    """Errors for a head that does not fit features of `width`."""
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(f"weight must be [classes, {width}], the backbone's width, got {list(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}] as weight, got {list(bias.shape)}")


def check_values(sites: Sequence[Site], values: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Errors for values that are not those of the sites."""
    names = {site.name for site in sites}
    if names != set(values):
        raise ValueError(
            f"values must be given for each of the {len(names)} sites and no other; "
            f"missing {sorted(names - set(values))}, too many {sorted(set(values) - names)}"
        )
    for site in sites:
        got = {name: tuple(value.shape) for name, value in values[site.name].items()}
        if got != site.shapes:
            raise ValueError(f"values of {site.name!r} must have the shapes {site.shapes} of one task, got {got}")


def _without_state(site: Site, module: nn.Module) -> Site:
    """Another site of the same options on `module`, without what a running adaptation keeps in it."""
    new: Site = object.__new__(type(site))
    new.__dict__ = {**site.__dict__, "_modules": {"module": module}, "values": {}, "tape": None, "reuse": None}
    return new
