"""A frozen model with sites in it: all tasks in one pass, and what no site reaches computed once for all steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast.adapt._share import replace, share
from metafast.adapt._sites import Site, Tap, Values

if TYPE_CHECKING:
    from metafast.adapt._backbone import Backbone


class Tree:
    """A structural copy of a backbone, which shares its weights, with sites where the chosen modules were.

    Args:
        base: the backbone.
        sites: to put in, by the names of its model's modules.
    """

    def __init__(self, base: Backbone, sites: list[Site]) -> None:
        self.backbone, self.sites = share(base), sites
        for site in sites:
            site.module = self.backbone.model.get_submodule(site.name)
            replace(self.backbone.model, site.name, site)
        self.reuse = Reuse()
        for site in sites:
            site.reuse = self.reuse
        # the module of the first site sees frozen inputs too
        for module in [*_free(self.backbone.model), *(site.module for site in sites)]:
            module.forward = Once(module.forward, self.reuse)

    def features(
        self, x: Tensor, values: list[Values], *, tape: bool = False, kept: dict[str, Any] | None = None
    ) -> tuple[Tensor, list[list[Tap]]]:
        """Features of all tasks' examples, and the calls of each site.

        Args:
            x: `[T * N, ...]`.
            values: of each site, `[T, *shape]`.
            tape: note the calls, so that gradients can be taken at their outputs.
            kept: a mapping that lives as long as `x` does: what comes before the first site is kept in it.
        """
        for site, own in zip(self.sites, values, strict=True):
            site.values, site.tape, site.examples = own, [] if tape else None, len(x)
        try:
            with self.reuse.of(None if x.requires_grad or x.is_inference() else kept):
                found = self.backbone(x)
            overwritten = [site for site in self.sites if any(tap.changed for tap in site.tape or ())]
            if overwritten:  # found once: from now on these hand out copies
                for site in overwritten:
                    site.copies = True
                return self.features(x, values, tape=tape, kept=kept)
            return found, [site.tape or [] for site in self.sites]
        finally:
            for site in self.sites:
                site.values, site.tape = {}, None

    def apply(self, function: Any) -> None:
        """As `nn.Module._apply`, for `to()`."""
        self.backbone._apply(function)


class Reuse:
    """What the modules up to that of the first site gave for some inputs.

    They see the same inputs in every step of adaptation, so that their outputs are computed in the first and handed out
    in the others. An output that was changed in place behind them cannot be kept: then nothing is.
    """

    def __init__(self) -> None:
        self.entered = True
        self.outputs: list[Any] | None = None
        self.place: int | None = None
        self.versions: dict[int, tuple[Tensor, int]] = {}
        self._kept: dict[str, Any] | None = None

    def of(self, kept: dict[str, Any] | None) -> Reuse:
        self._kept = kept
        return self

    def __enter__(self) -> None:
        kept = self._kept
        if kept is None or kept.get("changed"):
            return
        self.entered, self.versions = False, {}
        self.outputs, self.place = (kept["outputs"], 0) if "outputs" in kept else ([], None)

    def __exit__(self, *error: object) -> None:
        kept = self._kept
        if kept is not None and self.outputs is not None and self.place is None and error[0] is None:
            changed = any(tensor._version != version for tensor, version in self.versions.values())
            kept.update({"changed": True} if changed else {"outputs": self.outputs})
        self.entered, self.outputs, self.place, self.versions, self._kept = True, None, None, {}, None

    def note(self, output: Any) -> None:
        assert self.outputs is not None
        self.outputs.append(output)
        for tensor in _tensors(output):
            self.versions[tensor.data_ptr()] = (tensor, tensor._version)


class Once:
    """The forward of a module that no site is in."""

    def __init__(self, forward: Any, reuse: Reuse) -> None:
        self.forward, self.reuse = forward, reuse

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reuse = self.reuse
        if reuse.entered:
            return self.forward(*args, **kwargs)
        if reuse.place is not None:
            assert reuse.outputs is not None
            reuse.place += 1
            return reuse.outputs[reuse.place - 1]
        output = self.forward(*args, **kwargs)
        if not reuse.entered:
            reuse.note(output)
        return output


def _free(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that no site is in."""
    for child in module.children():
        if isinstance(child, Site):
            continue
        container = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if container or any(isinstance(each, Site) for each in child.modules()):
            yield from _free(child)
        else:
            yield child


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
