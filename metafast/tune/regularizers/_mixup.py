"""Mixup with a strength that is tuned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from metafast._checks import integer, positive
from metafast.tune._dynamics import compute_dtype
from metafast.tune.regularizers._beta import symmetric_beta
from metafast.tune.regularizers._tunable import Tunable, check_classes, check_floating

PER = ("example", "batch")


class Mixup(Tunable):
    r"""Mixes every example with another one of its batch, inputs and targets alike, with \(\lambda \sim\) Beta(a, a).

    \(\tilde x = \lambda x + (1 - \lambda) x'\) and the same for targets; the loss of the mixed batch depends on the
    strength a through \(\lambda\). Cross-entropy of the mixed targets is the mixture of both cross-entropies. A batch
    of one is mixed with itself, and so is every batch in evaluation mode: it comes back as it is.

    Args:
        strength: where a starts, above 0. Small: mostly one of the two; 1: uniform; large: halves. Default 0.2.
        num_classes: C, for targets that are class numbers; they come back as probabilities.
        per: a \(\lambda\) for each "example" (default), which tells more about the strength, or for each "batch".

    Attributes:
        strength: 0-d, tuned in log space between 0.02 and 10.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; class numbers without `num_classes`, or, on the
            CPU, outside their range.

    Example:
        >>> mixup = Mixup(0.2, num_classes=10)
        >>> x, y = mixup(torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))
        >>> x.shape, y.shape  # loss = F.cross_entropy(model(x), y)
        (torch.Size([8, 3, 16, 16]), torch.Size([8, 10]))

    Source:
        H. Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, equation 2.
    """

    strength: Tensor

    def __init__(self, strength: float = 0.2, num_classes: int | None = None, per: str = "example") -> None:
        super().__init__("mixup")
        if per not in PER:
            raise ValueError(f"per must be one of {', '.join(map(repr, PER))}, got {per!r}")
        self.num_classes = None if num_classes is None else integer("num_classes", num_classes, minimum=2)
        self.per = per
        self._add("strength", torch.tensor(positive("strength", strength)), "log", (0.02, 10.0))

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed batch, in training mode.

        Args:
            inputs: `[N, ...]`, floating-point.
            targets: `[N, ...]`: class numbers in int64, or probabilities or values in floating-point.

        Returns:
            Inputs of their shape and dtype; targets of theirs, or `[N, C, ...]` from class numbers, in float32 or
            float64.
        """
        check_floating("inputs", inputs, "pictures as x / 255, tokens as embeddings")
        if not isinstance(targets, Tensor) or inputs.ndim == 0 or targets.shape[:1] != inputs.shape[:1]:
            came = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise ValueError(f"targets must be a tensor of as many as the inputs {list(inputs.shape)}, got {came}")
        if not self.training:
            return inputs, targets
        if not targets.is_floating_point():
            targets = self._probabilities(targets, compute_dtype(inputs.dtype))
        count = len(inputs)
        share = symmetric_beta(self.strength, count if self.per == "example" else 1).to(inputs.device)
        partner = torch.randperm(count, device=inputs.device)
        return _mix(inputs, partner, share), _mix(targets, partner, share)

    def _probabilities(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        if self.num_classes is None:
            raise ValueError(
                "targets are class numbers, whose mixture needs to know how many there are: Mixup(num_classes=...)"
            )
        check_classes(targets, self.num_classes)
        return F.one_hot(targets, self.num_classes).movedim(-1, 1).to(dtype)


def _mix(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    share = share.to(compute_dtype(values.dtype)).view(-1, *[1] * (values.ndim - 1))
    return (share * values + (1 - share) * values[partner]).to(values.dtype)
