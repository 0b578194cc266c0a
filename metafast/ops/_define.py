"""Registers ops: schemas, references and fakes live in Python, so that they exist without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LIBRARY = torch.library.Library("metafast", "DEF")

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """One op: its schema, the PyTorch reference that every backend is compared with, and sample inputs for tests."""

    name: str
    reference: Kernel
    sample_inputs: Callable[..., list[tuple[Any, ...]]]
    triton: Kernel | None = None

    @property
    def overload(self) -> Any:
        return getattr(torch.ops.metafast, self.name).default


REGISTRY: dict[str, Op] = {}


def define(
    schema: str,
    reference: Kernel,
    sample_inputs: Callable[..., list[tuple[Any, ...]]],
    *,
    fake: Kernel | None = None,
    triton: Kernel | None = None,
) -> Op:
    """Defines `schema`; the reference serves every device that has no kernel of its own."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"metafast::{name}", fake or _no_output, lib=LIBRARY)
    REGISTRY[name] = Op(name, reference, sample_inputs, triton)
    return REGISTRY[name]


def _no_output(*args: Any, **kwargs: Any) -> None:
    """The fake of an op that only writes to its arguments."""
