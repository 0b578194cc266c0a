"""ALFA: inner learning rates and weight decay that a small network reads off the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.maml._learner import MetaLearner, row


class ALFA(MetaLearner):
    r"""MAML with a learned update: a network maps the state of a task to rates and decays of its next step.

    \(\theta_{k+1} = (1 - \beta_{k}) \odot \theta_k - \alpha_k \odot \nabla L(\theta_k)\), where \(\alpha_{k,l}\) and
    \(\beta_{k,l}\), for step k and tensor l, are learned numbers times what the network makes of the means of all
    tensors' gradients and weights in this task at this step.

    Args:
        model: as in `MAML`.
        inner_lr: where the rates start. Default 0.01.
        steps: as in `MAML`.
        order: as in `MAML`.
        inner_decay: where the decays start. Default 5e-4.
        options: as in `MAML`, but for `learn_lr` and `rule`.

    Example:
        >>> import torch, metafast
        >>> maml = metafast.maml.ALFA(torch.nn.Linear(4, 2), inner_lr=0.1, steps=2)
        >>> x, y = torch.randn(6, 10, 4), torch.randint(0, 2, (6, 10))
        >>> loss, metrics = maml(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()

    Source:
        S. Baik et al., Meta-Learning with Adaptive Hyperparameters, NeurIPS 2020.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.01,
        steps: int = 5,
        order: int = 2,
        *,
        inner_decay: float = 5e-4,
        **options: Any,
    ) -> None:
        for name in ("learn_lr", "rule"):
            if name in options:
                raise TypeError(f"ALFA takes no {name}: its network is the rule and makes the rates")
        super().__init__(model, inner_lr, steps, order, rule=self._step, **options)
        sizes = [parameter.numel() for parameter in model.parameters()]
        like = next(iter(model.parameters()))
        count, steps = len(sizes), integer("steps", steps, minimum=1)
        self.inner_lr = nn.Parameter(torch.full((steps, count), inner_lr, dtype=like.dtype, device=like.device))
        self.inner_decay = nn.Parameter(torch.full((steps, count), inner_decay, dtype=like.dtype, device=like.device))
        # its last bias starts at 1, so that the first updates are plain gradient steps of rate inner_lr
        last = nn.Linear(2 * count, 2 * count)
        self.generator = nn.Sequential(nn.Linear(2 * count, 2 * count), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)
        self.generator.to(like)
        members = torch.repeat_interleave(torch.arange(count), torch.tensor(sizes))  # [P]
        self.register_buffer("_members", members.to(like.device), persistent=False)
        self._members: Tensor

    def _step(self, step: int, params: Tensor, grads: Tensor, losses: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Weights `[T, P]` after a step, from weights and gradients `[T, P]`."""
        count = len(self._sizes)
        # the task's state is read, not differentiated, as in the paper's code
        tau = torch.cat([self._means(grads.detach()), self._means(params.detach())], 1)  # [T, 2 tensors]
        made = self.generator(tau)
        rates = made[:, :count] * row(self.inner_lr, step)
        decays = made[:, count:] * row(self.inner_decay, step)
        return (1 - decays[:, self._members]) * params - rates[:, self._members] * grads, state

    def _means(self, flat: Tensor) -> Tensor:
        return torch.stack([part.mean(1) for part in flat.split(self._sizes, 1)], 1)

    def _rates(self, steps: int) -> float | Tensor:
        return 0.0  # the rule has its own

    def _update(
        self, step: int, params: Tensor, grads: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        new, state = self._step(step, params.unsqueeze(0), grads.unsqueeze(0), None, state)
        return new.squeeze(0), state
