"""What every algorithm shares: a module whose parameters are the meta-parameters, called with a batch of tasks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.innerloop import SGD, InnerLoop
from metafast.innerloop._rules import make_rule
from metafast.maml._clone import Learner
from metafast.maml._metrics import per_task
from metafast.maml._modules import check_batch, check_examples, freeze_batch_statistics, trainable_names
from metafast.maml._rules import update
from metafast.maml._task_learner import ON_NAN, TaskLearner
from metafast.ops._dropout_hash import QUERY_STEP

if TYPE_CHECKING:
    from metafast.data import TaskBatch
    from metafast.innerloop import Outcome


class MetaLearner(TaskLearner):
    """The base of all algorithms: model, inner loop, learning rates, and the ways to use them.

    `parameters()` are the meta-parameters: those of the model, and the learned rates. Subclasses say in `_rates`,
    `_order` and `_query_weights` what is particular to them.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float | Tensor = 0.01,
        steps: int = 5,
        order: int = 2,
        *,
        learn_lr: bool = False,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        label_smoothing: float = 0.0,
        rule: Any = "sgd",
        adapted: Sequence[str] | Callable[[str], bool] | None = None,
        batch_norm: str = "batch",
        inner_batch: int | None = None,
        on_nan: str = "raise",
        seed: int = 0,
        engine: str = "auto",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if order not in (1, 2):
            raise ValueError(f"order must be 2 (exact) or 1 (first order), got {order!r}")
        if on_nan not in ON_NAN:
            raise ValueError(f"on_nan must be one of {ON_NAN}, got {on_nan!r}")
        self.model = model
        self.steps = integer("steps", steps, minimum=1)
        self.order = order
        self.on_nan = on_nan
        self.seed = integer("seed", seed, minimum=0)
        self.inner_batch = None if inner_batch is None else integer("inner_batch", inner_batch, minimum=1)
        self.loss = loss
        self.batch_norm = batch_norm
        self.adapted_names = trainable_names(model, adapted)
        self._calls = 0
        self._options: dict[str, Any] = {
            "loss": loss,
            "label_smoothing": label_smoothing,
            "steps": self.steps,
            "rule": rule,
            "order": order,
            "adapted": frozenset(self.adapted_names).__contains__,
            "engine": engine,
            "on_nan": on_nan,
            "memory_budget": memory_budget,
        }
        self._rule = make_rule(rule)
        self._sizes = [parameter.numel() for parameter in model.parameters()]
        self.inner = InnerLoop(model, **self._options, batch_norm=batch_norm)
        self._set_rate(inner_lr, learn_lr)

    # ---- what an algorithm says

    def _rates(self, steps: int) -> float | Tensor:
        """The inner rates of `steps` steps: a number, or `[1 or steps, 1 or tensors or elements]`."""
        if not isinstance(self.inner_lr, Tensor) or self.inner_lr.dim() == 0:
            return self.inner_lr
        rates = self.inner_lr
        if rates.dim() == 1:
            rates = rates[:, None] if self._rates_are_steps else rates[None]
        return first_rows(rates, steps)

    def _order(self) -> int:
        return self.order if torch.is_grad_enabled() else 0

    def _query_weights(self, steps: int) -> Tensor | None:
        """The weight of the query loss after each step, `[steps + 1]`; None: only the last counts."""
        return None

    def _start(self, x: Tensor, y: Tensor, mask: Tensor | None, classes: Tensor | None) -> dict[str, Tensor] | None:
        """Initial weights that depend on the support sets `[T, S, ...]`; None: the model's own."""
        return None

    def _stats(self, steps: int) -> Tensor | None:
        """Fixed batch-norm statistics of each step, `[steps + 1, S]`; None: those that the loop computes."""
        return None

    def _loop(self) -> InnerLoop:
        """The inner loop to use now."""
        return self.inner

    def _update(
        self, step: int, params: Tensor, grads: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One inner step of flat weights `[P]`, for `clone()`."""
        rate = self._rates(step + 1)
        if isinstance(rate, Tensor) and rate.dim() == 2:
            rate = rate[min(step, len(rate) - 1)]
            if rate.numel() == len(self._sizes) and rate.numel() > 1:
                rate = rate.repeat_interleave(torch.tensor(self._sizes, device=rate.device))
        return update(self._rule, step, params, grads, rate, state)

    # ---- use

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """The query loss after adaptation, mean over tasks, and what each task reached.

        Args:
            batch: support and query sets of T tasks.
            steps: inner steps; default those of the learner. Rates per step go on with those of the last.
            task_weights: `[T]`, the weight of each task's loss; default 1/T.
            first_task: the number of the batch's first task in a larger batch that several processes share.

        Returns:
            `(loss, metrics)`. `loss.backward()` gives the meta-gradient, once. `metrics` has, without gradients:
            "loss" `[T]`; "accuracy" `[T]` (classification) after the last step; "support_losses" `[T, K]`;
            "query_losses" `[T, K + 1]`, NaN where they were not needed; "logits" `[T, Q, C]`; "dropped", a list of
            the tasks that were left out because their loss was not finite.

        Raises:
            ValueError: arguments that do not fit, or a loss that is not finite with `on_nan="raise"`.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        outcome = self._run(batch, steps, task_weights, first_task)
        self._seen(outcome)
        return outcome.loss, self._metrics(batch, outcome)

    @torch.no_grad()
    def before(self, batch: TaskBatch) -> dict[str, Any]:
        """The metrics of `forward` at the initial weights, before any adaptation.

        Args:
            batch: as in `forward`.

        Returns:
            The metrics; "loss" is the query loss.
        """
        check_batch(batch)
        start = self._start(batch.support_x, batch.support_y, batch.support_mask, batch.classes)
        weights = start or dict(self.model.named_parameters())
        flat = self.inner.flatten({name: weight.detach() for name, weight in weights.items()})
        if flat.dim() == 1:
            flat = flat.expand(len(batch.query_x), -1)
        stats = self._stats(1)
        losses, logits, _ = self._loop().gradient(
            flat,
            batch.query_x,
            batch.query_y,
            mask=batch.query_mask,
            classes=batch.classes,
            stats=None if stats is None else stats[:1],
            step=QUERY_STEP,
        )
        return {"loss": losses, **per_task(logits, batch.query_y, batch.query_mask, batch.classes), "logits": logits}

    @torch.no_grad()
    def trajectory(self, batch: TaskBatch, steps: int | None = None) -> Iterator[dict[str, Any]]:
        """The metrics of `forward` before adaptation and after each step, for steps 0 to `steps`.

        Args:
            batch: as in `forward`.
            steps: inner steps; default those of the learner.

        Returns:
            An iterator of metrics. Where the inner optimizer has a memory (momentum, Adam, a rule of its own) every
            step count is a run of its own; else one run serves all.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        yield self.before(batch)
        if not (isinstance(self._rule, SGD) and not self._rule.momentum and not self._rule.prox):
            for count in range(1, steps + 1):
                yield self(batch, steps=count)[1]
            return
        rates, stats, batches = self._rates(steps), self._stats(steps), self._mini_batches(batch, steps, 0)
        params = self._start(batch.support_x, batch.support_y, batch.support_mask, batch.classes)
        for step in range(steps):
            outcome = self._loop()(
                batch,
                rates=rates[min(step, len(rates) - 1)][None] if isinstance(rates, Tensor) and rates.dim() else rates,
                params=params,
                steps=1,
                order=0,
                batches=None if batches is None else batches[:, step : step + 1],
                stats=None if stats is None else stats[step : step + 2],
                want_adapted=True,
                seed=self.seed,
            )
            params = outcome.adapted
            yield self._metrics(batch, outcome)

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """The model adapted to one task.

        Args:
            x: support examples `[S, ...]`.
            y: their labels `[S]`, or targets.
            steps: inner steps; default those of the learner.

        Returns:
            A copy of the model with the adapted weights, an ordinary module. Where the inner loop normalized by batch
            statistics, the copy's batch norms do too, in evaluation mode as well: it computes what the loop did.

        Raises:
            ValueError: arguments that do not fit, or a loss that is not finite.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        check_examples(x, y)
        with torch.no_grad():
            starts = self._start(x.unsqueeze(0), y.unsqueeze(0), None, None)
            own = dict(self.model.named_parameters())
            start = starts and {n: p[0] if p.dim() > own[n].dim() else p for n, p in starts.items()}
            weights = self._loop().adapt(
                x, y, rates=self._rates(steps), steps=steps, params=start, stats=self._stats(steps), seed=self.seed
            )
        bad = [name for name, weight in weights.items() if not weight.isfinite().all()]
        if bad:
            raise ValueError(
                f"adaptation to x and y diverged: {bad[0]} is not finite after {steps} steps; "
                "lower inner_lr, or look for NaN in x"
            )
        model = copy.deepcopy(self.model)
        copied = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                copied[name].copy_(weight)
        self._finish_copy(model, steps)
        return model

    def clone(self) -> Learner:
        """A learner for one task, adapted by hand: `learner.adapt(loss)`, then `learner(x)`.

        The way of learn2learn: ordinary autograd, one task at a time, any loss. `forward` gives the same numbers for
        a whole batch of tasks, faster.

        Returns:
            The learner; a loss of its outputs can be differentiated to this module's parameters.
        """
        return Learner(self)

    def explain(self) -> Any:
        """Which engine runs the model, layer by layer, and why; `str()` of it is for reading."""
        return self.inner.explain()

    def get_extra_state(self) -> Tensor:
        """The number of training batches seen, on which dropout masks and annealing depend."""
        return torch.tensor(self._calls)

    def set_extra_state(self, state: Tensor) -> None:
        """Put back what `get_extra_state` gave."""
        self._calls = int(state)

    # ---- inside

    def _set_rate(self, inner_lr: float | Tensor, learn: bool) -> None:
        parameter = next(iter(self.model.parameters()), None)
        like = torch.empty(0) if parameter is None else parameter.detach()
        values = inner_lr.detach() if isinstance(inner_lr, Tensor) else inner_lr
        if not isinstance(values, Tensor) and (isinstance(values, bool) or not isinstance(values, int | float)):
            raise TypeError(f"inner_lr must be a number or a tensor, got {type(inner_lr).__name__}")
        finite = bool(values.isfinite().all()) if isinstance(values, Tensor) else math.isfinite(values)
        if not finite:
            raise ValueError(f"inner_lr must be finite, got {inner_lr!r}")
        if isinstance(values, Tensor):
            self._check_rate_shape(values)
        self.inner_lr: Any
        if isinstance(inner_lr, nn.Parameter):
            self.inner_lr = inner_lr
        elif learn:
            self.inner_lr = nn.Parameter(torch.as_tensor(values, dtype=like.dtype, device=like.device).clone())
        elif isinstance(values, Tensor):
            self.register_buffer("inner_lr", values.to(like))
        else:
            self.inner_lr = float(values)

    def _check_rate_shape(self, rates: Tensor) -> None:
        tensors, elements, shape = len(self._sizes), sum(self._sizes), tuple(rates.shape)
        self._rates_are_steps = shape == (self.steps,)
        allowed = [(), (self.steps,), (tensors,), (elements,)]
        allowed += [(rows, columns) for rows in (1, self.steps) for columns in (1, tensors, elements)]
        if shape not in allowed:
            raise ValueError(
                f"inner_lr must be 0-d, [{self.steps}] (steps), [{tensors}] (tensors), [{elements}] (elements) or "
                f"[{self.steps}, {tensors} or {elements}], got shape {shape}"
            )
        if self._rates_are_steps and self.steps in (tensors, elements):
            raise ValueError(
                f"inner_lr of shape {shape} may mean steps or tensors; write inner_lr[:, None] for one per step, "
                "inner_lr[None] for one per tensor"
            )

    def _run(
        self, batch: TaskBatch, steps: int, task_weights: Tensor | None, first_task: int, **options: Any
    ) -> Outcome:
        check_batch(batch)
        options = {
            "order": self._order(),
            "query_weights": self._query_weights(steps),
            "params": self._start(batch.support_x, batch.support_y, batch.support_mask, batch.classes),
            "stats": self._stats(steps),
            **options,
        }
        common: dict[str, Any] = {
            "rates": self._rates(steps),
            "steps": steps,
            "batches": self._mini_batches(batch, steps, first_task),
            "seed": (self.seed * 1_000_003 + self._calls) % 2**31,
            "first_task": first_task,
        }
        outcome: Outcome = self._loop()(batch, task_weights=task_weights, **options, **common)
        return outcome

    def _mini_batches(self, batch: TaskBatch, steps: int, first_task: int) -> Tensor | None:
        """Which support examples each step sees, `[T, K, B]`, the same in whatever process a task is."""
        if self.inner_batch is None:
            return None
        tasks, shots = batch.support_x.shape[:2]
        rows = []
        for task in range(tasks):
            mask = None if batch.support_mask is None else batch.support_mask[task]
            valid = torch.arange(shots) if mask is None else mask.cpu().nonzero().flatten()
            generator = torch.Generator().manual_seed(
                (self.seed * 1_000_003 + self._calls) * 65_537 % 2**40 + first_task + task
            )
            need = steps * self.inner_batch
            passes = -(-need // len(valid))
            order = torch.cat([valid[torch.randperm(len(valid), generator=generator)] for _ in range(passes)])
            rows.append(order[:need].view(steps, self.inner_batch))
        return torch.stack(rows).to(batch.support_x.device)

    def _seen(self, outcome: Outcome) -> None:
        if self.training and torch.is_grad_enabled():
            self._calls += 1

    def _metrics(self, batch: TaskBatch, outcome: Outcome) -> dict[str, Any]:
        return {
            "loss": outcome.task_losses,
            **per_task(outcome.logits, batch.query_y, batch.query_mask, batch.classes),
            "support_losses": outcome.support_losses,
            "query_losses": outcome.query_losses,
            "logits": outcome.logits,
            "dropped": list(outcome.dropped),
        }

    def _finish_copy(self, model: nn.Module, steps: int) -> None:
        if self.batch_norm == "batch":
            freeze_batch_statistics(model)


def first_rows(rows: Tensor, count: int) -> Tensor:
    """`count` rows of a table with a row per step; the last row goes on where there are fewer."""
    if len(rows) == 1 or len(rows) == count:
        return rows
    return rows[torch.arange(count, device=rows.device).clamp(max=len(rows) - 1)]


def row(rows: Tensor, step: int) -> Tensor:
    """The row of a step; the last one goes on."""
    return rows[min(step, len(rows) - 1)]
