"""Algorithms whose meta-gradient is not that of the query loss through the steps: Reptile, iMAML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.innerloop import SGD
from metafast.maml._clone import Learner
from metafast.maml._learner import MetaLearner
from metafast.maml._modules import check_batch, flat_mask
from metafast.ops._dropout_hash import QUERY_STEP

if TYPE_CHECKING:
    from metafast.data import TaskBatch


class GivenGradient(MetaLearner):
    """A learner that states its meta-gradient instead of differentiating."""

    def _order(self) -> int:
        return 0

    def clone(self) -> Learner:
        """Not for this algorithm: its meta-gradient is no derivative through the steps.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no meta-gradient through clone(): it does not differentiate the inner steps; "
            "call it with a batch of tasks, or use adapt(x, y)"
        )

    def _weights(self, batch: TaskBatch, task_weights: Tensor | None, dropped: Sequence[int]) -> Tensor:
        """`[T]`, 0 for the dropped tasks."""
        count = len(batch.support_x)
        if task_weights is None:
            weights = torch.full((count,), 1 / (count - len(dropped)), dtype=torch.float64)
        else:
            weights = task_weights.detach().cpu().double().clone()
        weights[list(dropped)] = 0.0
        return weights

    def _with_gradient(self, loss: Tensor, gradient: Callable[[], Tensor]) -> Tensor:
        """The loss, whose derivative to the model's parameters is the flat `gradient()`."""
        if not torch.is_grad_enabled():
            return loss.detach()
        parameters = list(self.model.parameters())
        flat = gradient()
        parts = flat.split([parameter.numel() for parameter in parameters])
        return _Given.apply(
            loss.detach(), [part.view_as(p) for part, p in zip(parts, parameters, strict=True)], *parameters
        )


class Reptile(GivenGradient):
    r"""Reptile: the meta-gradient is the way back from the adapted weights, \(\theta - \frac1T\sum_t \theta_{t,K}\).

    Needs no second derivatives and no query set. With plain SGD of rate \(\epsilon\) as the meta-optimizer, a step is
    the paper's \(\theta \leftarrow \theta + \epsilon\,\frac1T\sum_t(\theta_{t,K} - \theta)\).

    Args:
        model: as in `MAML`.
        inner_lr: as in `MAML`.
        steps: as in `MAML`.
        train_on: "support" adapts to the support set; "all" to the support and query sets together while training
            (what the paper does). Default "support".
        options: as in `MAML`, but for `order` and `learn_lr`. The paper's inner optimizer is
            `rule=metafast.innerloop.Adam(betas=(0, 0.999))` on mini-batches (`inner_batch=10`).

    Example:
        >>> import torch, metafast
        >>> maml = metafast.maml.Reptile(torch.nn.Linear(4, 2), inner_lr=0.1, steps=3)
        >>> x, y = torch.randn(6, 10, 4), torch.randint(0, 2, (6, 10))
        >>> loss, metrics = maml(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()

    Source:
        A. Nichol, J. Achiam, J. Schulman, On First-Order Meta-Learning Algorithms, arXiv:1803.02999, 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float | Tensor = 0.01,
        steps: int = 5,
        *,
        train_on: str = "support",
        **options: Any,
    ) -> None:
        for name in ("order", "learn_lr"):
            if name in options:
                raise TypeError(f"Reptile takes no {name}: it does not differentiate the inner steps")
        if train_on not in ("support", "all"):
            raise ValueError(f'train_on must be "support" or "all", got {train_on!r}')
        super().__init__(model, inner_lr, steps, **options)
        self.train_on = train_on

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """As `MAML`'s; `loss` is the query loss and its gradient Reptile's."""
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        if self.train_on == "all" and self.training and torch.is_grad_enabled():
            check_batch(batch)
            batch = _joined(batch)
        with torch.no_grad():
            outcome = self._run(batch, steps, task_weights, first_task, want_adapted=True)

        def gradient() -> Tensor:
            assert outcome.adapted is not None
            adapted = self.inner.flatten(outcome.adapted)  # [T, P]
            own = self.inner.flatten({name: p.detach() for name, p in self.model.named_parameters()})
            weights = self._weights(batch, task_weights, outcome.dropped).to(own)
            away = torch.where(weights[:, None] != 0, own - adapted, 0)  # a dropped task's weights may be NaN
            return weights @ away

        loss = self._with_gradient(outcome.loss, gradient)
        self._seen(outcome)
        return loss, self._metrics(batch, outcome)


class IMAML(GivenGradient):
    r"""Implicit MAML: the meta-gradient of a proximal inner problem, without unrolling its steps.

    The inner loop descends on \(L^{support}(\phi) + \frac\lambda2|\phi - \theta|^2\). At its solution \(\phi^*\) the
    implicit function theorem gives \(dL^{query}/d\theta = (I + \frac1\lambda \nabla^2 L^{support}(\phi^*))^{-1}
    \nabla L^{query}(\phi^*)\), which conjugate gradients solve with Hessian-vector products, for all tasks at once.
    Memory does not grow with `steps`; the gradient is exact as far as the inner loop and the solver converge.

    Args:
        model: as in `MAML`.
        inner_lr: as in `MAML`.
        steps: as in `MAML`; enough to come near the solution. Default 16.
        strength: the proximal strength \(\lambda\). Default 2.
        cg_steps: most conjugate-gradient steps. Default 5.
        cg_tolerance: they stop where all tasks' residuals are below this share of the right side. Default 1e-10.
        options: as in `MAML`, but for `order`, `learn_lr`, `rule` and `adapted`.

    Example:
        >>> import torch, metafast
        >>> maml = metafast.maml.IMAML(torch.nn.Linear(4, 2), inner_lr=0.1, steps=16, strength=1.0)
        >>> x, y = torch.randn(6, 10, 4), torch.randint(0, 2, (6, 10))
        >>> loss, metrics = maml(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()

    Source:
        A. Rajeswaran et al., Meta-Learning with Implicit Gradients, NeurIPS 2019, Algorithms 1 and 2.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float | Tensor = 0.01,
        steps: int = 16,
        *,
        strength: float = 2.0,
        cg_steps: int = 5,
        cg_tolerance: float = 1e-10,
        **options: Any,
    ) -> None:
        for name in ("order", "learn_lr", "rule", "adapted"):
            if name in options:
                raise TypeError(f"IMAML takes no {name}: its inner loop is proximal gradient descent of all weights")
        if not strength > 0:
            raise ValueError(f"strength must be positive, got {strength!r}")
        super().__init__(model, inner_lr, steps, rule=SGD(prox=strength), **options)
        self.strength = float(strength)
        self.cg_steps = integer("cg_steps", cg_steps, minimum=1)
        self.cg_tolerance = float(cg_tolerance)
        self._mask = flat_mask(model, self.adapted_names)

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """As `MAML`'s; the gradient of `loss` is the implicit one."""
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        with torch.no_grad():
            outcome = self._run(batch, steps, task_weights, first_task, want_adapted=True)

        def gradient() -> Tensor:
            assert outcome.adapted is not None
            at = self.inner.flatten(outcome.adapted).detach()  # [T, P]
            weights = self._weights(batch, task_weights, outcome.dropped).to(at)
            at = torch.where(weights[:, None] != 0, at, 0)
            return weights @ torch.where(weights[:, None] != 0, self._implicit(at, batch), 0)

        loss = self._with_gradient(outcome.loss, gradient)
        self._seen(outcome)
        return loss, self._metrics(batch, outcome)

    def _implicit(self, at: Tensor, batch: TaskBatch) -> Tensor:
        """`(I + H / strength)^-1 g` for each task, `[T, P]`; the right side is the query gradient at `at`."""
        mask = self._mask.to(at.device)
        step = self.steps
        with torch.no_grad():
            _, _, right = self.inner.gradient(
                at, batch.query_x, batch.query_y, mask=batch.query_mask, classes=batch.classes, step=QUERY_STEP + step
            )
        at = at.clone().requires_grad_()
        with torch.enable_grad():
            _, _, support = self.inner.gradient(
                at, batch.support_x, batch.support_y, mask=batch.support_mask, classes=batch.classes, step=step
            )

        def apply(v: Tensor) -> Tensor:
            (hv,) = torch.autograd.grad(support, at, v, retain_graph=True)
            return v + torch.where(mask, hv, 0) / self.strength

        right = torch.where(mask, right.detach(), 0)
        return conjugate_gradient(apply, right, self.cg_steps, self.cg_tolerance)


def conjugate_gradient(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int, tolerance: float) -> Tensor:
    """Solve `apply(x) = right` for each row `[T, P]` at once, from 0; a row that converged or curves down stays."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), residual.square().sum(1)
    goal = square * tolerance**2
    for _ in range(steps):
        applied = apply(direction)
        curvature = (direction * applied).sum(1)
        active = (square > goal) & (curvature > 0)
        if not bool(active.any()):
            break
        length = torch.where(active, square / curvature, 0)[:, None]
        x = x + length * direction
        residual = residual - length * applied
        new = residual.square().sum(1)
        direction = residual + torch.where(active, new / square, 0)[:, None] * direction
        square = new
    return x


def _joined(batch: TaskBatch) -> TaskBatch:
    """The batch with its query examples in the support set as well."""
    from dataclasses import replace

    masks = None
    if batch.support_mask is not None or batch.query_mask is not None:
        full = [
            torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            for x, mask in ((batch.support_x, batch.support_mask), (batch.query_x, batch.query_mask))
        ]
        masks = torch.cat(full, 1)
    return replace(
        batch,
        support_x=torch.cat([batch.support_x, batch.query_x], 1),
        support_y=torch.cat([batch.support_y, batch.query_y], 1),
        support_mask=masks,
    )


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (scale,) = grad_outputs
        return None, None, *(scale * gradient for gradient in ctx.gradients)
