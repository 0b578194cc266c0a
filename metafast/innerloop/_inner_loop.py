"""The inner loop of a model: adaptation to many tasks, and the gradient through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.innerloop import _arguments as arguments
from metafast.innerloop._call import Call, detached, flat_starts, take_tasks
from metafast.innerloop._compiled import Compiled
from metafast.innerloop._engines import ENGINES, Engine, Engines
from metafast.innerloop._generic import Generic
from metafast.innerloop._hook import run_hook
from metafast.innerloop._layout import Adapted, Layout
from metafast.innerloop._loss import make_loss
from metafast.innerloop._meta import attach, meta_loss, without
from metafast.innerloop._outcome import Explanation, Outcome
from metafast.innerloop._rules import Rule, make_rule
from metafast.ops._program import Loss

if TYPE_CHECKING:
    from metafast.data import TaskBatch

BATCH_NORM = ("auto", "batch", "running")
ON_NAN = ("raise", "drop", "ignore")
Rates = float | Tensor | Mapping[str, Any]


class InnerLoop:
    r"""K steps of adaptation for every task of a batch, each task with its own weights, and their meta-gradient.

    From \(\theta_0\), the model's parameters, each task t takes K steps \(\theta_{k+1} = \theta_k - \alpha_k \odot
    u_k\) down its support loss; the meta-loss is the mean over tasks of the query loss at \(\theta_K\). Its gradient is
    computed with the loss, by a backward recursion over hand-written second-order layers for supported models and by
    `torch.func` for all others, and handed out by the one `backward()` of `Outcome.loss`.

    Args:
        model: any module that maps a batch of examples to logits `[N, C]` (or to an object with `.logits`). It is not
            changed; its parameters are the start of every task.
        loss: `"cross_entropy"`, `"mse"`, or a function (logits, targets) -> scalar mean over examples.
        label_smoothing: of cross-entropy, in [0, 1).
        steps: K, at least 1. Default 5.
        rule: the inner optimizer: `"sgd"`, `"momentum"`, `"adam"`, `SGD(...)`, `Adam(...)`, or a hook
            `rule(step, params, grads, losses, state) -> (params, state)` on `[T, P]` tensors, through which autograd
            goes; a hook has its own rates.
        order: 2 is the exact meta-gradient, 1 takes inner gradients as constants, 0 computes none.
        adapted: the parameters that adapt: patterns of names such as `["classifier.*"]`, or a predicate of a name.
            Default: all that require a gradient.
        engine: `"compiled"` (an error on unsupported models), `"loop"` or `"vmap"` (any module), `"reference"` (the
            compiled program by slow PyTorch); default `"auto"`: compiled where possible, else the faster of the others.
        memory_budget: bytes of activations that a kernel may store; less makes it recompute. Default: no limit.
        batch_norm: `"batch"` normalizes by the task's batch, `"running"` by fixed statistics; default `"auto"`: as each
            layer's training flag says.
        on_nan: `"raise"` an error that names the first task whose loss is not finite, `"drop"` such tasks from the
            meta-loss, or `"ignore"` them.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.

    Example:
        >>> import torch
        >>> from metafast.data import TaskBatch
        >>> inner = InnerLoop(torch.nn.Linear(4, 3), steps=2)
        >>> x, y = torch.randn(8, 10, 4), torch.randint(0, 3, (8, 10))
        >>> outcome = inner(TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]), rates=0.1)
        >>> outcome.loss.backward()
        >>> outcome.query_losses.shape, inner.explain().engine
        (torch.Size([8, 3]), 'compiled')

    Source:
        C. Finn et al., Model-Agnostic Meta-Learning, ICML 2017; I. Kemaev et al., Scalable Meta-Learning via
        Mixed-Mode Differentiation, ICML 2025.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        label_smoothing: float = 0.0,
        steps: int = 5,
        rule: str | Rule = "sgd",
        order: int = 2,
        adapted: Adapted = None,
        engine: str = "auto",
        memory_budget: int | None = None,
        batch_norm: str = "auto",
        on_nan: str = "raise",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        for name, value, allowed in (("engine", engine, ENGINES), ("batch_norm", batch_norm, BATCH_NORM),
                                     ("on_nan", on_nan, ON_NAN), ("order", order, (0, 1, 2))):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        self.model = model
        self.steps = arguments.check_steps(steps)
        self.rule = make_rule(rule)
        self.order = order
        self.engine = engine
        self.memory_budget = -1 if memory_budget is None else integer("memory_budget", memory_budget, minimum=0)
        self.batch_norm = batch_norm
        self.on_nan = on_nan
        self.layout = Layout(model, adapted)
        self.loss = make_loss(loss, label_smoothing)
        self._engines = Engines(model, self.layout, self.loss, engine, batch_norm)
        self._constants: dict[Any, Tensor] = {}
        self._last_only: dict[int, Tensor] = {}
        self._want_logits = True

    def __call__(
        self,
        batch: TaskBatch,
        *,
        rates: Rates = 0.01,
        per: str | None = None,
        params: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        order: int | None = None,
        query_weights: Sequence[float] | Tensor | None = None,
        task_weights: Sequence[float] | Tensor | None = None,
        batches: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        first_task: int = 0,
        want_adapted: bool = False,
        want_batch_stats: bool = False,
    ) -> Outcome:
        """Adapts to every task of a batch and evaluates on its query examples.

        Args:
            batch: T tasks with S support and Q query examples.
            rates: inner learning rates: a number; a tensor `[K]`, `[parameters]`, `[P]`, or `[1 or K, 1 or parameters
                or P]`; or a mapping from names to numbers or tensors. Default 0.01. A hook ignores them.
            per: `"scalar"`, `"tensor"` or `"element"`, where the shape of `rates` alone could mean several things.
            params: starts other than the model's parameters, `[*shape]` or `[T, *shape]` by name.
            steps: K of this call; default that of the loop.
            order: of this call; default that of the loop, and 0 where nothing requires a gradient.
            query_weights: `[K + 1]`, the weight of the query loss at each \\(\\theta_k\\); default 0, ..., 0, 1.
            task_weights: `[T]`; default 1 / T each. A task of weight 0 takes no part.
            batches: int64 `[K, B]` or `[T, K, B]`, the support examples of each step; default: all.
            stats: `[1 or K + 1, S]`, the fixed statistics of batch norms; default: the model's running ones.
            seed: of dropout.
            first_task: the number of the batch's first task, so that dropout does not depend on how tasks are split.
            want_adapted: return \\(\\theta_K\\) of each task.
            want_batch_stats: return the batch statistics of each step (compiled engines only).

        Returns:
            An `Outcome`; call `outcome.loss.backward()` once.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an argument that does not fit, or a loss that is not finite with `on_nan="raise"`.
        """
        steps = self.steps if steps is None else arguments.check_steps(steps)
        order = self.order if order is None else order
        if order not in (0, 1, 2):
            raise ValueError(f"order must be 0, 1 or 2, got {order!r}")
        arguments.check_transforms(
            "InnerLoop",
            (),
            "it takes all tasks in one batch, and torch.autograd.grad(outcome.loss, ...) differentiates it",
        )
        own = self.layout.params()
        like = own[0]
        if not hasattr(batch, "support_mask"):
            raise TypeError(f"batch must be a metafast.data.TaskBatch, got {type(batch).__name__}")
        arguments.check_batch(batch, like)
        tasks, device = batch.tasks, batch.support_x.device
        chosen_rates = self._rates(rates, per, steps, like)
        starts = own if params is None else self._starts(params, own, tasks)
        sources = (*starts, chosen_rates, batch.support_x, batch.query_x)
        if not torch.is_grad_enabled() or not any(s.requires_grad for s in sources) and not callable(self.rule):
            order = 0
        engine = self._engines.choose(batch.support_x)
        self._check_data(engine, batch, batches)
        with torch.no_grad():
            weights = flat_starts(starts, self.layout, tasks)
        call = Call(
            batch=detached(batch),
            weights=weights,
            rates=chosen_rates.detach().contiguous(),
            batches=arguments.make_batches(batches, tasks, steps, batch.support_x.shape[1], device),
            stats=self._stats(engine, stats, steps, like),
            query_weights=self._query_weights(query_weights, steps),
            task_weights=arguments.make_task_weights(task_weights, tasks, device),
            steps=steps,
            order=order,
            rule=self.rule,
            seed=arguments.make_seed("seed", seed),
            first_task=arguments.make_seed("first_task", first_task),
            memory_budget=self.memory_budget,
            wants_weights=any(s.requires_grad for s in starts),
            wants_rates=chosen_rates.requires_grad,
            wants_support_x=batch.support_x.requires_grad,
            wants_query_x=batch.query_x.requires_grad,
            want_adapted=want_adapted,
            want_batch_stats=want_batch_stats,
            want_logits=self._want_logits,
        )
        if callable(self.rule):
            return self._by_hook(engine, call, starts, batch)
        engine, result = self._engines.run(engine, call)
        loss, dropped = meta_loss(result.task_losses, call.task_weights, self.on_nan, batch, call.weights, call.rates)
        if dropped and order:
            result = engine.run(replace(call, task_weights=without(call.task_weights, dropped, tasks, device)))
        if order:
            loss = attach(loss, result, self.layout.sizes, starts, chosen_rates, batch)
        adapted = None if result.adapted is None else self.layout.unflatten(result.adapted)
        return Outcome(
            loss, result.task_losses, result.support_losses, result.query_losses, result.logits, adapted,
            result.batch_stats, dropped,
        )  # fmt: skip

    def adapt(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        classes: Tensor | None = None,
        rates: Rates = 0.01,
        per: str | None = None,
        params: Mapping[str, Tensor] | None = None,
        steps: int | None = None,
        batches: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        first_task: int = 0,
    ) -> dict[str, Tensor]:
        """The parameters after adaptation, detached.

        Args:
            x: support examples, `[T, S, ...]`, or `[S, ...]` of one task.
            y: their targets, `[T, S]` (`[T, S, D]` for mse), or `[S]` (`[S, D]`).
            mask: bool `[T, S]` or `[S]`, False where an example is padding.
            classes: int64 `[T]` (or 0-d), how many classes each task has.
            rates: as when the loop is called; likewise the arguments after it.
            per: which shape the rates have.
            params: where the parameters start.
            steps: number of steps.
            batches: examples of each step.
            stats: statistics of the batch norms.
            seed: of dropout.
            first_task: number of the first task.

        Returns:
            By name, `[T, *shape]`, or `[*shape]` where x has no task dimension.

        Raises:
            TypeError, ValueError: as when the loop is called.

        Example:
            >>> inner = InnerLoop(nn.Linear(4, 3), steps=2)
            >>> weights = inner.adapt(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]), rates=0.1)
            >>> weights["weight"].shape
            torch.Size([3, 4])
        """
        from metafast.data import TaskBatch

        single = y.dim() == (1 if self.loss.kind is not Loss.MSE else 2)
        if single:
            x, y = x[None], y[None]
            mask = None if mask is None else mask[None]
            classes = None if classes is None else classes.view(1)
        batch = TaskBatch(x, y, x[:, :1], y[:, :1], support_mask=mask, classes=classes)
        if mask is not None:  # the query set is not used, but must have a valid example
            first = mask.to(torch.int64).argmax(1)
            rows = torch.arange(len(x), device=x.device)
            batch = TaskBatch(
                x, y, x[rows, first][:, None], y[rows, first][:, None], support_mask=mask, classes=classes
            )
        count = self.steps if steps is None else arguments.check_steps(steps)
        with torch.no_grad():
            outcome = self._quiet()(
                batch, rates=rates, per=per, params=params, steps=steps, query_weights=[0.0] * (count + 1),
                batches=batches, stats=stats, seed=seed, first_task=first_task, want_adapted=True,
            )  # fmt: skip
        assert outcome.adapted is not None
        return {name: value[0] if single else value for name, value in outcome.adapted.items()}

    def gradient(
        self,
        params: Tensor | Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        classes: Tensor | None = None,
        stats: Tensor | None = None,
        seed: int = 0,
        step: int = 0,
        first_task: int = 0,
    ) -> tuple[Tensor, Tensor, Any]:
        """Loss, logits and gradient of every task at weights of its own, differentiable once more: for update rules.

        Args:
            params: flat `[T, P]` (or `[P]` for all), or a mapping by name of `[T, *shape]` or `[*shape]`.
            x: `[T, N, ...]`.
            y: `[T, N]`, or `[T, N, D]` for mse.
            mask: bool `[T, N]`.
            classes: int64 `[T]`.
            stats: `[1, S]`.
            seed: with `step` and `first_task` it chooses the elements that dropout keeps.
            step: number of the inner step.
            first_task: number of the first task.

        Returns:
            (losses `[T]`, logits `[T, N, C]` without gradient, gradients in the form of `params`, of all parameters).

        Raises:
            TypeError, ValueError: as when the loop is called.

        Example:
            >>> inner = InnerLoop(nn.Linear(4, 3))
            >>> flat = inner.flatten(dict(inner.model.named_parameters())).detach().expand(2, -1).requires_grad_()
            >>> losses, _, grads = inner.gradient(flat, torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64))
            >>> (hv,) = torch.autograd.grad(grads, flat, torch.ones_like(grads))  # the Hessian times ones
            >>> hv.shape
            torch.Size([2, 15])
        """
        arguments.check_transforms("InnerLoop.gradient", ("Grad",), "it takes all tasks in one batch")
        mapping = not isinstance(params, Tensor)
        flat = self.layout.flatten(params) if mapping else params  # type: ignore[arg-type]
        assert isinstance(flat, Tensor)
        if flat.shape[-1] != self.layout.numel or flat.dim() not in (1, 2) or flat.dim() == 2 and len(flat) != len(x):
            raise ValueError(f"params must be [{len(x)}, {self.numel}] or [{self.numel}], got {list(flat.shape)}")
        arguments.check_examples("x", x, flat)
        arguments.check_sides(x, y, mask, classes)
        numbers = [arguments.make_seed(*v) for v in (("seed", seed), ("step", step), ("first_task", first_task))]
        flat = flat.expand(len(x), -1)
        engine = self._engines.choose(x)
        if isinstance(engine, Compiled):
            self._check_compiled(engine, "x", x, "y", y, mask, classes)
        else:
            engine = self._engines.loop
        row = self._stats(engine, stats, 0, flat)
        losses, logits, grads = engine.gradient(flat, x, y, mask, classes, row, *numbers)
        return losses, logits, self.layout.unflatten(grads) if mapping else grads

    def explain(self) -> Explanation:
        """Which engine ran last, why, and in how much memory; `print(inner.explain())` shows every layer."""
        return self._engines.explain()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parameters, in the order of the flat vector."""
        return self.layout.names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        return dict(self.layout.shapes)

    @property
    def numel(self) -> int:
        """P, the number of elements of all parameters."""
        return self.layout.numel

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """`[P]`, or `[T, P]` where any parameter has a task dimension; those left out are the model's."""
        return self.layout.flatten(params)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `[P]` or `[T, P]` by name."""
        return self.layout.unflatten(flat)

    # ---- arguments

    def _rates(self, rates: Rates, per: str | None, steps: int, like: Tensor) -> Tensor:
        if isinstance(rates, float):
            key = (rates, like.dtype, like.device)
            if key not in self._constants:
                self._constants = {key: arguments.make_rates(rates, per, steps, self.layout, like)}
            return self._constants[key]
        return arguments.make_rates(rates, per, steps, self.layout, like)

    def _query_weights(self, weights: Any, steps: int) -> Tensor:
        if weights is not None:
            return arguments.make_query_weights(weights, steps)
        if steps not in self._last_only:
            self._last_only[steps] = arguments.make_query_weights(None, steps)
        return self._last_only[steps]

    def _starts(self, params: Mapping[str, Tensor], own: list[Tensor], tasks: int) -> list[Tensor]:
        found = self.layout.tasks_of(params)
        if found is not None and found != tasks:
            raise ValueError(f"params are for {found} tasks, the batch has {tasks}")
        return [params.get(name, p) for name, p in zip(self.layout.names, own, strict=True)]

    def _stats(self, engine: Engine, stats: Tensor | None, steps: int, like: Tensor) -> Tensor | None:
        """The statistics given, or the model's running ones where a batch norm is fixed."""
        if stats is not None:
            return arguments.make_stats(stats, steps, engine.stats_width, like)
        return engine.running_stats() if isinstance(engine, Compiled) else None

    def _check_data(self, engine: Engine, batch: TaskBatch, batches: Tensor | None) -> None:
        if isinstance(engine, Compiled):
            for which in ("support", "query"):
                x, y, mask = (getattr(batch, f"{which}_{part}") for part in ("x", "y", "mask"))
                self._check_compiled(engine, f"{which}_x", x, f"{which}_y", y, mask, batch.classes)
                if engine.norm_of_vectors is not None and (which == "support" or self._want_logits):
                    size = batches.shape[-1] if which == "support" and isinstance(batches, Tensor) else None
                    arguments.check_single(f"{which}_x", engine.norm_of_vectors, x, mask, size)

    def _check_compiled(
        self,
        engine: Compiled,
        name_x: str,
        x: Tensor,
        name_y: str,
        y: Tensor,
        mask: Tensor | None,
        classes: Tensor | None,
    ) -> None:
        program = engine.traced.program
        if program.loss is Loss.CROSS_ENTROPY:
            arguments.check_labels(name_y, y, mask, classes, program.classes)
        else:
            arguments.check_targets(name_y, y, program.classes, self.layout.params()[0].dtype)
        if program.tokens:
            tables = [program.params[i.weight].shape[0] for i in program.instructions if i.opcode.name == "EMBED_MEAN"]
            arguments.check_tokens(name_x, x, min(tables))

    def _by_hook(self, engine: Engine, call: Call, starts: list[Tensor], batch: TaskBatch) -> Outcome:
        source = self._engines.loop if isinstance(engine, Generic) else engine
        weights = flat_starts(starts, self.layout, batch.tasks)
        outcome = run_hook(source, call, weights, batch, self.layout)
        _, dropped = meta_loss(outcome.task_losses, call.task_weights, self.on_nan, batch, call.weights)
        if not dropped:
            return outcome
        # Autograd went through all tasks at once: those with NaN are taken out of the batch.
        kept = [t for t in range(batch.tasks) if t not in set(dropped)]
        share = without(call.task_weights, dropped, batch.tasks, weights.device)[kept]
        batches = call.batches if call.batches is None or call.batches.dim() == 2 else call.batches[kept]
        part = replace(call, task_weights=share, batches=batches)
        weights = weights if weights.dim() == 1 else weights[kept]
        rest = run_hook(source, part, weights, take_tasks(batch, kept), self.layout)
        return replace(outcome, loss=rest.loss, dropped=dropped)

    def _quiet(self) -> InnerLoop:
        """The same loop that lets losses be what they are and looks at no query: for adaptation alone."""
        quiet = object.__new__(InnerLoop)
        quiet.__dict__ = {**self.__dict__, "on_nan": "ignore", "_want_logits": False}
        return quiet
