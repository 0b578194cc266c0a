"""Cross-entropy with a label smoothing that is tuned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metafast._checks import fraction, integer
from metafast.tune._dynamics import compute_dtype
from metafast.tune.regularizers._tunable import Tunable, check_classes, check_floating

REDUCTIONS = ("mean", "sum", "none")


class LabelSmoothingCrossEntropy(Tunable):
    r"""Cross-entropy with targets \((1 - \epsilon) q + \epsilon / C\), where the smoothing \(\epsilon\) is tuned.

    Its values are those of `nn.CrossEntropyLoss(label_smoothing=...)`. For the training loss; a validation loss is to
    be the plain cross-entropy, which has no smoothing to hide behind.

    Args:
        smoothing: where \(\epsilon\) starts, above 0 and below 1. Default 0.1.
        weight: `[C]`, of classes, as in `nn.CrossEntropyLoss`.
        ignore_index: class number that does not count. Default -100.
        reduction: "mean" (default), "sum" or "none".

    Attributes:
        smoothing: 0-d, tuned in logit space between 1e-3 and 0.5.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value. On the CPU, a class number outside the range too.

    Example:
        >>> criterion = LabelSmoothingCrossEntropy(0.1)
        >>> scores, targets = torch.randn(8, 5), torch.randint(5, (8,))
        >>> expected = F.cross_entropy(scores, targets, label_smoothing=0.1)
        >>> torch.allclose(criterion(scores, targets), expected)
        True
        >>> [spec.name for spec in criterion.tune()]
        ['smoothing']

    Source:
        C. Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, section 7.
    """

    smoothing: Tensor
    weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__("smoothing")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")
        if weight is not None:
            check_floating("weight", weight, "one number for each class")
        self.ignore_index = integer("ignore_index", ignore_index)
        self.reduction = reduction
        self._add("smoothing", torch.tensor(fraction("smoothing", smoothing)), "logit", (1e-3, 0.5))
        self.register_buffer("weight", weight)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The loss, in float32 for scores in half precision.

        Args:
            scores: logits, `[N, C]`, `[N, C, ...]` or `[C]`.
            targets: class numbers in int64, of that shape without C; or probabilities, of that shape.

        Returns:
            0-d; with "none" of the shape of class numbers.
        """
        check_floating("scores", scores, "give the logits of a model")
        if scores.ndim == 0 or not isinstance(targets, Tensor):
            raise TypeError(
                f"scores and targets must be tensors [N, C, ...] and [N, ...], got {scores.ndim} dimensions and "
                f"{type(targets).__name__}"
            )
        where = min(1, scores.ndim - 1)
        expected = list(scores.shape)
        if not targets.is_floating_point():
            check_classes(targets, expected.pop(where), self.ignore_index)
        if list(targets.shape) != expected:
            raise ValueError(
                f"targets must have shape {expected} for scores {list(scores.shape)}, got {list(targets.shape)}"
            )
        scores = scores.to(compute_dtype(scores.dtype))
        options: dict[str, Any] = {
            "weight": None if self.weight is None else self.weight.to(scores),
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
        }
        # the loss is affine in the smoothing, whatever the other options are
        hard = F.cross_entropy(scores, targets, **options)
        uniform = F.cross_entropy(scores, targets, label_smoothing=1.0, **options)
        return hard + self.smoothing.to(scores.dtype) * (uniform - hard)
