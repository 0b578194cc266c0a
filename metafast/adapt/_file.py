"""A meta-network as a safetensors file, refused whole or loaded whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from metafast._files import Kind

if TYPE_CHECKING:
    from metafast.adapt._fine_tuner import MetaFineTuner

FILE = Kind(
    format="meta-fine-tuner",
    version=1,
    noun="meta-network",
    where="MetaFineTuner.save writes one",
    maker="MetaFineTuner.save",
    anew="meta-train it anew",
)
ARGUMENTS = (
    "ways",
    "steps",
    "inner_lr",
    "order",
    "loss",
    "meta_lr",
    "weight_decay",
    "dropout",
    "hidden",
    "chunk",
    "on_nan",
    "seed",
)


def settings_of(meta: MetaFineTuner) -> dict[str, Any]:
    """What makes one like it, for files and records."""
    adapt = meta.adapt_spec if isinstance(meta.adapt_spec, str) else dict(meta.adapt_spec)
    found = {name: getattr(meta, name) for name in ARGUMENTS}
    if meta.loss == "span":
        found["ways"] = None
    return {"adapt": adapt, "net": "+".join(meta.parts) or None, **found}


def arguments_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `MetaFineTuner` from a file's description."""
    return {name: about[name] for name in ("adapt", "net", *ARGUMENTS)}


def save(meta: MetaFineTuner, path: Path) -> Path:
    """Write a file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in meta.state_dict().items()}
    about = {**settings_of(meta), "base": _base_of(meta)}
    FILE.write(save_file, tensors, {**about, "checksum": checksum(about, tensors)}, path)
    return path


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or something else.
    """
    about, tensors = FILE.read(path, "pt")
    told = {name: about[name] for name in ("adapt", "net", *ARGUMENTS, "base") if name in about}
    if about.get("checksum") != checksum(told, tensors):
        raise ValueError(
            f"{path} is damaged: it does not have the checksum that was written; save the meta-network again"
        )
    bad = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{path} has numbers in {bad[0]!r} that are not finite; save the meta-network again")
    return about, tensors


def checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description and of all tensors, in the order of their names."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def fill(meta: MetaFineTuner, about: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Any) -> None:
    """Put the tensors into a learner that was made from the description.

    Raises:
        ValueError: the base, or the tensors, differ.
    """
    theirs, mine = about["base"], _base_of(meta)
    if theirs["width"] != mine["width"]:
        raise ValueError(
            f"base: its features have width {mine['width']}, and {path} was made for {theirs['width']}; give the base "
            "that it was made for"
        )
    for (name, shapes), (own, own_shapes) in zip(theirs["sites"].items(), mine["sites"].items(), strict=False):
        if name != own or shapes != own_shapes:
            raise ValueError(
                f"base: {path} was made for one that adapts {name!r} with {shapes}, this one adapts {own!r} with "
                f"{own_shapes}; give the base that it was made for"
            )
    if len(theirs["sites"]) != len(mine["sites"]):
        raise ValueError(
            f"base: {path} was made for one that adapts {len(theirs['sites'])} modules, this one adapts "
            f"{len(mine['sites'])}; give the base that it was made for"
        )
    state = meta.state_dict()
    wrong = sorted(set(state) ^ set(tensors)) or [n for n, v in state.items() if v.shape != tensors[n].shape]
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong[0]!r} is missing, unknown or of another shape; save it again")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])


def _base_of(meta: MetaFineTuner) -> dict[str, Any]:
    shapes = {site.name: {name: list(shape) for name, shape in site.shapes.items()} for site in meta.sites}
    return {"width": meta.base.width, "sites": shapes}
