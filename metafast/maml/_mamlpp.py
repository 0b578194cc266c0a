"""MAML++: what makes MAML train stably."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.innerloop import InnerLoop
from metafast.innerloop._rules import make_rule
from metafast.maml._learner import MetaLearner, first_rows, row
from metafast.maml._modules import BATCH_NORMS, flat_mask, norm_names, statistics_size, trainable_names
from metafast.maml._rules import update

if TYPE_CHECKING:
    from metafast.innerloop import Outcome

STATISTICS = ("batch", "per_step")
NORM_WEIGHTS = ("shared", "per_step")
LEAST = 0.03  # the share of 1/K that the loss of an early step keeps while it anneals


class MAMLpp(MetaLearner):
    r"""MAML++: multi-step loss, learned rates per layer and step, statistics per step, annealed order.

    The meta-loss \(\sum_{k=1}^K w_k L^{query}(\theta_k)\) starts with \(w_k = 1/K\) and anneals to the last step
    alone; the rates \(\alpha_{k,l}\) of step k and tensor l are learned. The meta-optimizer of the paper is Adam with
    `cosine_schedule`.

    Args:
        model: as in `MAML`.
        inner_lr: where the rates start. Default 0.1.
        steps: as in `MAML`.
        order: as in `MAML`, after the first `first_order_batches`.
        multi_step_batches: meta-batches over which the multi-step loss anneals; 0: the last step counts from the
            start. Default 1500.
        first_order_batches: meta-batches at the start that are first-order. Default 0.
        statistics: what batch norms use in evaluation mode: "batch" (default), each task's batch, as in training; or
            "per_step", the running statistics that training recorded for each inner step.
        momentum: of the running statistics. Default 0.1.
        norm_weights: "shared" (default): weights and biases of batch norms adapt as all others do; "per_step": those
            after each inner step are learned, as the paper has it, and do not adapt. The update is then a rule of its
            own, which the engine runs step by step: slower, and without `statistics="per_step"`.
        options: as in `MAML`, but for `learn_lr` and `batch_norm`.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> maml = metafast.maml.MAMLpp(model, steps=3, multi_step_batches=100)
        >>> maml.inner_lr.shape  # 3 steps, 4 tensors
        torch.Size([3, 4])
        >>> [round(w, 3) for w in maml.loss_weights().tolist()]  # of the query loss before and after each step
        [0.0, 0.333, 0.333, 0.333]

    Source:
        A. Antoniou, H. Edwards, A. Storkey, How to train your MAML, ICLR 2019.
    """

    stats: Tensor | None
    stats_seen: Tensor
    norm_weights: nn.Parameter | None
    _norm_places: Tensor

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float = 0.1,
        steps: int = 5,
        order: int = 2,
        *,
        multi_step_batches: int = 1500,
        first_order_batches: int = 0,
        statistics: str = "batch",
        momentum: float = 0.1,
        norm_weights: str = "shared",
        **options: Any,
    ) -> None:
        for name in ("learn_lr", "batch_norm"):
            if name in options:
                raise TypeError(f"MAMLpp takes no {name}: rates are learned, and `statistics` says what normalizes")
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {STATISTICS}, got {statistics!r}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, got {momentum!r}")
        if norm_weights not in NORM_WEIGHTS:
            raise ValueError(f"norm_weights must be one of {NORM_WEIGHTS}, got {norm_weights!r}")
        if norm_weights == statistics == "per_step":
            raise ValueError(
                'norm_weights="per_step" runs step by step, where no statistics are recorded; use statistics="batch"'
            )
        own = norm_names(model) if norm_weights == "per_step" else []
        if norm_weights == "per_step":
            if not own:
                raise ValueError('norm_weights="per_step" needs a batch norm with weights to learn; use "shared"')
            self._descent = make_rule(options.pop("rule", "sgd"))
            if callable(self._descent):
                raise TypeError('rule must be "sgd" or one of metafast.innerloop with norm_weights="per_step"')
            chosen = {*trainable_names(model, options.pop("adapted", None)), *own}
            options |= {"rule": self._step, "adapted": chosen.__contains__}
        tensors = len(list(model.parameters()))
        like = next(iter(model.parameters()))
        rates = torch.full(
            (integer("steps", steps, minimum=1), tensors), inner_lr, dtype=like.dtype, device=like.device
        )
        super().__init__(model, rates, steps, order, learn_lr=True, **options)
        self.multi_step_batches = integer("multi_step_batches", multi_step_batches, minimum=0)
        self.first_order_batches = integer("first_order_batches", first_order_batches, minimum=0)
        self.statistics = statistics
        self.momentum = momentum
        size = statistics_size(model)
        if statistics == "per_step" and not size:
            raise ValueError('statistics="per_step" needs a batch norm in the model, it has none; use "batch"')
        per_step = statistics == "per_step"
        self.register_buffer("stats", torch.zeros(steps + 1, size).to(like) if per_step else None)
        self.register_buffer("stats_seen", torch.zeros((), dtype=torch.int64) if per_step else None)
        self.register_parameter("norm_weights", None)
        if own:
            places = flat_mask(model, own).nonzero().flatten()
            start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])[places]
            self.norm_weights = nn.Parameter(start.repeat(self.steps, 1))  # row k: after step k + 1
            self.register_buffer("_norm_places", places, persistent=False)
        self._by_stats = InnerLoop(model, **self._options, batch_norm="running") if per_step else None

    def loss_weights(self) -> Tensor:
        """The weights of the query loss before and after each step, `[steps + 1]`, at this moment of the training."""
        steps, at = self.steps, self._calls
        weights = torch.zeros(steps + 1, dtype=torch.float64)
        if at >= self.multi_step_batches:
            weights[-1] = 1.0
            return weights
        least = LEAST / steps
        share = at / self.multi_step_batches / steps
        weights[1:-1] = max(1 / steps - share, least)
        weights[-1] = 1 - weights[1:-1].sum()
        return weights

    def _query_weights(self, steps: int) -> Tensor | None:
        if not self.training or steps != self.steps or self._calls >= self.multi_step_batches:
            return None
        return self.loss_weights()

    def _order(self) -> int:
        order = super()._order()
        return min(order, 1) if self.training and self._calls < self.first_order_batches else order

    def _step(self, step: int, params: Tensor, grads: Tensor, losses: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Weights `[T, P]` after a step; those of the batch norms are the step's own."""
        assert self.norm_weights is not None
        sizes = torch.tensor(self._sizes, device=params.device)
        rate = row(self.inner_lr, step).repeat_interleave(sizes)
        moved, state = update(self._descent, step, params, grads, rate, state or {})
        own = row(self.norm_weights, step).expand(len(params), -1)
        return moved.index_copy(1, self._norm_places, own), state

    def _update(
        self, step: int, params: Tensor, grads: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.norm_weights is None:
            return super()._update(step, params, grads, state)
        new, state = self._step(step, params.unsqueeze(0), grads.unsqueeze(0), None, state)
        return new.squeeze(0), state

    def _recorded(self) -> bool:
        return self.stats is not None and not self.training and int(self.stats_seen) > 0

    def _loop(self) -> InnerLoop:
        if not self._recorded():
            return self.inner
        assert self._by_stats is not None
        return self._by_stats

    def _stats(self, steps: int) -> Tensor | None:
        if not self._recorded():
            return None
        assert self.stats is not None
        return first_rows(self.stats, steps + 1)

    def _run(self, *args: Any, **options: Any) -> Outcome:
        want = self.training and self.stats is not None
        return super()._run(*args, want_batch_stats=want, **options)

    def _seen(self, outcome: Outcome) -> None:
        training = self.training and torch.is_grad_enabled()
        if training and self.stats is not None:
            with torch.no_grad():
                share = 1.0 if int(self.stats_seen) == 0 else self.momentum
                if outcome.batch_stats is None:
                    raise ValueError(
                        'statistics="per_step" needs the compiled engine, which records them; use statistics="batch" '
                        f"({self.inner.explain().reason})"
                    )
                if outcome.batch_stats.isfinite().all():
                    self.stats.lerp_(outcome.batch_stats.to(self.stats), share)
                    self.stats_seen += 1
        super()._seen(outcome)

    def _finish_copy(self, model: nn.Module, steps: int) -> None:
        if not self._recorded():
            super()._finish_copy(model, steps)
            return
        assert self.stats is not None
        last, at = first_rows(self.stats, steps + 1)[-1], 0
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                count = module.num_features
                module.track_running_stats = True
                module.running_mean = last[at : at + count].clone()
                module.running_var = last[at + count : at + 2 * count].clone()
                at += 2 * count
        model.eval()


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, *, final_share: float = 0.01
) -> torch.optim.lr_scheduler.LRScheduler:
    """The meta rate's way down: a half cosine from the optimizer's rate to `final_share` of it.

    Args:
        optimizer: the meta-optimizer.
        steps: its steps in the whole training.
        final_share: what is left at the end. Default 0.01.

    Returns:
        A scheduler; call `step()` after each step of the optimizer.

    Raises:
        ValueError: `steps` below 1 or `final_share` outside 0 to 1.

    Example:
        >>> import torch
        >>> opt = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        >>> schedule = cosine_schedule(opt, 2)
        >>> opt.step(); schedule.step(); opt.step(); schedule.step()
        >>> round(schedule.get_last_lr()[0], 8)
        1e-05
    """
    steps = integer("steps", steps, minimum=1)
    if not 0 <= final_share <= 1:
        raise ValueError(f"final_share must be from 0 to 1, got {final_share!r}")
    import math

    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps)),
    )
