"""The learn2learn way: one task at a time, ordinary autograd."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metafast.maml._modules import batch_statistics, flat_mask

if TYPE_CHECKING:
    from metafast.maml._learner import MetaLearner


class Learner:
    """One task's copy of a meta-learner's model, from `MetaLearner.clone()`.

    Example:
        >>> import torch, metafast
        >>> from torch.nn import functional as F
        >>> model = torch.nn.Linear(3, 2)
        >>> maml = metafast.maml.MAML(model, inner_lr=0.1)
        >>> x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> learner = maml.clone()
        >>> learner.adapt(F.cross_entropy(learner(x), y))
        >>> F.cross_entropy(learner(x), y).backward()  # through the adaptation, to model.weight
        >>> model.weight.grad.shape
        torch.Size([2, 3])
    """

    def __init__(self, learner: MetaLearner, start: dict[str, Tensor] | None = None) -> None:
        self._learner = learner
        own = dict(learner.model.named_parameters())
        weights = {**own, **(start or {})}
        self._shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
        self._flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
        if not self._flat.requires_grad:
            self._flat.requires_grad_()
        self._mask = flat_mask(learner.model, learner.adapted_names)
        self._state: dict[str, Tensor] = {}
        self._steps = 0

    def parameters(self) -> dict[str, Tensor]:
        """The weights as they are now, by name."""
        parts = self._flat.split([torch.Size(shape).numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def __call__(self, *inputs: Any) -> Any:
        model = self._learner.model
        with batch_statistics(model) if self._learner.batch_norm == "batch" else contextlib.nullcontext():
            return torch.func.functional_call(model, self.parameters(), inputs)

    def adapt(self, loss: Tensor) -> None:
        """One inner step on a loss of this learner's outputs.

        Args:
            loss: 0-d.

        Raises:
            ValueError: a loss that is not 0-d or not finite.
            RuntimeError: a loss that does not depend on the learner.
        """
        if loss.dim() != 0:
            raise ValueError(f"loss must be 0-d, got shape {tuple(loss.shape)}; take the mean over examples")
        if not bool(loss.isfinite()):
            raise ValueError(f"loss is {float(loss)} before inner step {self._steps}; lower inner_lr")
        exact = self._learner._order() == 2
        (grad,) = torch.autograd.grad(loss, self._flat, create_graph=exact)
        grad = torch.where(self._mask, grad, torch.zeros_like(grad))
        new, self._state = self._learner._update(self._steps, self._flat, grad, self._state)
        self._flat = torch.where(self._mask, new, self._flat)
        self._steps += 1
