"""A quadratic penalty whose weights are tuned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from metafast._checks import positive
from metafast.tune._dynamics import compute_dtype
from metafast.tune.regularizers._tunable import Tunable

PER = ("global", "layer", "tensor")


class L2(Tunable):
    r"""The penalty \(\tfrac12 \sum_k w_k \sum_{\theta \in k} \lVert\theta\rVert^2\), to be added to a training loss.

    With the half, a weight means what `weight_decay` of SGD means. In Adam it passes the preconditioner; AdamW's own
    decay does not.

    Args:
        model: its parameters that require a gradient are penalized; or pairs `(name, parameter)`, such as
            `[(n, p) for n, p in model.named_parameters() if p.ndim > 1]`, which leaves out biases and norms.
        weight: where the weights start, above 0: one number for all, or one for each of `labels`. Default 1e-4.
        per: one weight for all ("global"), per module ("layer", default) or per parameter ("tensor").

    Attributes:
        weight: `[K]`, tuned in log space between 1e-10 and 1; float32, or float64 as the parameters.
        labels: K names of what each weight is for.

    Raises:
        TypeError, ValueError: nothing to penalize, a weight that is not finite and above 0, too few of them, or an
            unknown `per`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> penalty = L2(model, 1e-3)
        >>> penalty.labels, penalty.weight.shape
        (['0', '2'], torch.Size([2]))
        >>> penalty().shape
        torch.Size([])

    Source:
        J. Luketina et al., Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters, ICML 2016.
    """

    weight: Tensor

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        weight: float | Sequence[float] = 1e-4,
        per: str = "layer",
    ) -> None:
        super().__init__("l2")
        if per not in PER:
            raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
        found: dict[str, list[Tensor]] = {}
        for name, param in model.named_parameters() if isinstance(model, nn.Module) else _pairs(model):
            if param.requires_grad:
                label = {"global": "all", "tensor": name, "layer": name.rpartition(".")[0] or name}[per]
                found.setdefault(label, []).append(param)
        if not found:
            raise ValueError("model has no parameter that requires a gradient; there is nothing to penalize")
        self.labels = list(found)
        self._members = list(found.values())  # lists, so that they are not this module's own parameters
        weights = list(weight) if isinstance(weight, list | tuple) else [weight] * len(found)
        if len(weights) != len(found):
            raise ValueError(
                f"weight must be one number, or one for each of the {len(found)} labels {', '.join(self.labels[:4])}"
                f"{', ...' if len(found) > 4 else ''}, got {len(weights)}"
            )
        first = self._members[0][0]
        start = torch.tensor(
            [positive("weight", w) for w in weights], dtype=compute_dtype(first.dtype), device=first.device
        )
        self._add("weight", start, "log", (1e-10, 1.0))

    def forward(self) -> Tensor:
        """The penalty, 0-d."""
        weight = self.weight
        sizes = [
            torch.stack([p.to(weight.dtype).square().sum().to(weight.device) for p in members]).sum()
            for members in self._members
        ]
        return 0.5 * (weight * torch.stack(sizes)).sum()


def _pairs(model: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    pairs = list(model) if isinstance(model, Iterable) else [model]
    for pair in pairs:
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], Tensor)
        ):
            raise TypeError(
                f"model must be an nn.Module or pairs (name, parameter), got {type(pair).__name__}; "
                "write model or model.named_parameters()"
            )
    return pairs
