"""What a meta-fine-tuner adapts, and how large it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from metafast.adapt._fine_tuner import MetaFineTuner


@dataclass(frozen=True)
class Report:
    """Sizes, in numbers.

    Args:
        base: parameters of the frozen model.
        network: of the meta-network, without the starts of adapters and head.
        starts: learned starts of adapters and head.
        adapted: numbers of one task: adapters and a head of the given classes.
        sites: `(module, kind, numbers)` of each site.
        parts: `(part, numbers)` of the meta-network.
    """

    base: int
    network: int
    starts: int
    adapted: int
    sites: tuple[tuple[str, str, int], ...]
    parts: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """The meta-network in units of the frozen model."""
        return self.network / self.base

    def __str__(self) -> str:
        lines = [
            f"frozen model: {self.base:,} parameters",
            f"meta-network: {self.network:,} ({100 * self.share:.2f} % of it), learned starts: {self.starts:,}",
            *(f"  {part}: {count:,}" for part, count in self.parts),
            f"a task: {self.adapted:,} numbers",
        ]
        width = max((len(name) for name, _, _ in self.sites), default=0)
        return "\n".join(lines + [f"  {name:<{width}}  {kind:<5} {count:,}" for name, kind, count in self.sites])


def report_of(meta: MetaFineTuner) -> Report:
    """The report of a meta-fine-tuner."""
    sites = tuple(
        (site.name, site.kind, sum(math.prod(shape) for shape in site.shapes.values())) for site in meta.sites
    )
    parts = [("rates", meta.net.rates), *((f"factors, {part.mixer}", part) for part in meta.net.factors)]
    parts += [("start from the support set", meta.net.initial), ("rule per coordinate", meta.net.coordinate)]
    head = 0 if meta.ways is None else meta.ways * (meta.base.width + 1)
    return Report(
        base=_count(meta.base),
        network=_count(meta.net),
        starts=sum(p.numel() for p in meta.parameters()) - _count(meta.net),
        adapted=sum(count for _, _, count in sites) + head,
        sites=sites,
        parts=tuple((name, _count(part)) for name, part in parts if part is not None),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
