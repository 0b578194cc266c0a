"""The inner loop of a model: adaptation to many tasks, and the gradient through it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.innerloop import _arguments as arguments
from metafast.innerloop._attach import Attach
from metafast.innerloop._call import Call, Result
from metafast.innerloop._compiled import Compiled
from metafast.innerloop._generic import Generic
from metafast.innerloop._hook import run_hook
from metafast.innerloop._layout import Adapted, Layout
from metafast.innerloop._model import norm_layers
from metafast.innerloop._outcome import Explanation, Outcome
from metafast.innerloop._rules import SGD, Adam, Rule, make_rule
from metafast.innerloop._trace import Unsupported, trace
from metafast.ops._program import Loss

if TYPE_CHECKING:
    from metafast.data import TaskBatch

ENGINES = ("auto", "compiled", "reference", "loop", "vmap")
BATCH_NORM = ("auto", "batch", "running")
ON_NAN = ("raise", "drop", "ignore")
Rates = float | Tensor | Mapping[str, Any]
Engine = Compiled | Generic


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
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing!r}")
        if memory_budget is not None and memory_budget < 0:
            raise ValueError(f"memory_budget must be at least 0 bytes, got {memory_budget}; None is no limit")
        self.model = model
        self.steps = arguments.check_steps(steps)
        self.rule = make_rule(rule)
        self.order = order
        self.engine = engine
        self.memory_budget = -1 if memory_budget is None else int(memory_budget)
        self.batch_norm = batch_norm
        self.on_nan = on_nan
        self.layout = Layout(model, adapted)
        self._loss, self._function, self._loss_reason = _loss(loss, label_smoothing)
        self._smoothing = float(label_smoothing) if isinstance(loss, str) else getattr(loss, "label_smoothing", 0.0)
        self._modules = list(model.modules())
        self._engines: dict[Any, tuple[Engine, Explanation]] = {}
        self._explanation = Explanation("undecided", "no batch was seen yet")
        self._norms = norm_layers(model)
        self._generic = {
            v: Generic(model, self.layout, self._function, self._loss is Loss.CROSS_ENTROPY, batch_norm, v)
            for v in (False, True)
        }
        self._constants: dict[Any, Tensor] = {}
        self._last_only: dict[int, Tensor] = {}

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
        engine, explanation = self._decide(batch.support_x, batch.tasks)
        self._check_data(engine, batch)
        norm_width = engine.traced.program.stats if isinstance(engine, Compiled) else _width(self._norms)
        call = Call(
            batch=_plain(batch),
            weights=_flat(starts, self.layout, tasks),
            rates=chosen_rates.detach().contiguous(),
            batches=arguments.make_batches(batches, tasks, steps, batch.support_x.shape[1], device),
            stats=self._stats(engine, arguments.make_stats(stats, steps, norm_width, like)),
            query_weights=self._query_weights(query_weights, steps),
            task_weights=arguments.make_task_weights(task_weights, tasks, device),
            steps=steps,
            order=order,
            rule=self.rule,
            seed=int(seed),
            first_task=int(first_task),
            memory_budget=self.memory_budget,
            wants_weights=any(s.requires_grad for s in starts),
            wants_rates=chosen_rates.requires_grad,
            wants_support_x=batch.support_x.requires_grad,
            wants_query_x=batch.query_x.requires_grad,
            want_adapted=want_adapted,
            want_batch_stats=want_batch_stats,
        )
        if callable(self.rule):
            return self._by_hook(engine, call, starts, batch)
        engine, result = self._run(engine, explanation, call)
        share = call.task_weights
        loss, dropped = self._meta_loss(result, share, batch)
        if dropped and order:
            share = torch.ones(tasks, dtype=torch.float64, device=device) / tasks if share is None else share.clone()
            kept = [t for t in range(tasks) if t not in set(dropped)]
            scale = share.sum() / share[kept].sum() if kept else 0.0
            share[dropped] = 0.0
            result = engine.run(replace(call, task_weights=share * scale))
        if order:
            loss = self._attach(loss, result, starts, chosen_rates, batch)
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
            rates, per, params, steps, batches, stats, seed, first_task: as when the loop is called.

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

        single = y.dim() == (1 if self._loss is Loss.CROSS_ENTROPY else 2)
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
            seed, step, first_task: choose the elements that dropout keeps.

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
        mapping = not isinstance(params, Tensor)
        flat = self.layout.flatten(params) if mapping else params  # type: ignore[arg-type]
        assert isinstance(flat, Tensor)
        if flat.shape[-1] != self.layout.numel or flat.dim() not in (1, 2) or flat.dim() == 2 and len(flat) != len(x):
            raise ValueError(f"params must be [{len(x)}, {self.numel}] or [{self.numel}], got {list(flat.shape)}")
        arguments.check_examples("x", x, flat)
        flat = flat.expand(len(x), -1)
        engine, _ = self._decide(x, len(x), gradient=True)
        if isinstance(engine, Compiled):
            self._check_compiled(engine, "x", x, "y", y, mask, classes)
            width = engine.traced.program.stats
        else:
            engine, width = self._generic[False], _width(self._norms)
        chosen = self._stats(engine, arguments.make_stats(stats, 0, width, flat))
        y, mask, classes = (None if v is None else v.contiguous() for v in (y, mask, classes))
        assert y is not None
        losses, logits, grads = engine.gradient(
            flat, x, y, mask, classes, chosen, int(seed), int(step), int(first_task)
        )
        return losses, logits, self.layout.unflatten(grads) if mapping else grads

    def explain(self) -> Explanation:
        """Which engine ran last, and why; `print(inner.explain())` shows every layer."""
        return self._explanation

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

    # ---- which engine

    def _decide(self, x: Tensor, tasks: int, gradient: bool = False) -> tuple[Engine, Explanation]:
        """The engine for examples such as x, remembered by their shape and the modules' training flags."""
        key = (x.shape[2:], x.dtype, tuple([m.training for m in self._modules]))
        found = self._engines.get(key)
        if found is None:
            found = self._choose(x, tasks)
            if not gradient or isinstance(found[0], Compiled):
                self._engines[key] = found
        self._explanation = found[1]
        return found

    def _choose(self, x: Tensor, tasks: int) -> tuple[Engine, Explanation]:
        if self.engine in ("loop", "vmap"):
            return self._generic[self.engine == "vmap"], Explanation(self.engine, "asked for")
        try:
            compiled = Compiled(self._trace(x), "reference" if self.engine == "reference" else None)
        except Unsupported as why:
            if self.engine != "auto":
                raise ValueError(f"engine={self.engine!r} cannot run this model: {why}; use engine='auto'") from None
            return self._generic[False], Explanation("loop", f"no compiled form: {why}")
        name = "reference" if self.engine == "reference" else "compiled"
        reason = "asked for" if self.engine != "auto" else "every layer has a compiled form"
        return compiled, Explanation(name, reason, compiled.traced.layers)

    def _trace(self, x: Tensor) -> Any:
        dtypes = {p.dtype for p in self.layout.params()}
        if not dtypes <= {torch.float32, torch.float64} or len(dtypes) > 1:
            raise Unsupported(
                f"parameters are {', '.join(map(str, sorted(dtypes, key=str)))}; float32 or float64 is compiled"
            )
        if self._loss_reason is not None:
            raise Unsupported(self._loss_reason)
        assert self._loss is not None
        return trace(
            self.model, x.shape[2:], dtype=x.dtype, adapted=self.layout.adapted.__contains__, loss=self._loss,
            label_smoothing=self._smoothing, batch_norm=self.batch_norm,
        )  # fmt: skip

    def _run(self, engine: Engine, explanation: Explanation, call: Call) -> tuple[Engine, Result]:
        """Runs a call; where "auto" left the choice between loop and vmap, both run once and the faster one stays."""
        if isinstance(engine, Compiled):
            return engine, engine.run(call)
        why_loop = _why_loop(call)
        if engine.vectorized and why_loop is not None:
            self._explanation = replace(explanation, engine="loop", reason=f"vmap cannot: {why_loop}")
            return self._generic[False], self._generic[False].run(call)
        if engine.vectorized:
            try:
                return engine, engine.run(call)
            except (RuntimeError, ValueError) as error:
                result = self._generic[False].run(call)  # an error of the model itself is raised here
                reason = f"vmap cannot: {str(error).splitlines()[0]}"
                self._remember(call, Explanation("loop", reason))
                return self._generic[False], result
        if (
            self.engine != "auto"
            or explanation.seconds
            or "vmap" in explanation.reason
            or len(call.batch.support_x) < 2
        ):
            return engine, engine.run(call)
        if why_loop is not None:
            return engine, engine.run(call)
        return self._measure(explanation, call)

    def _measure(self, explanation: Explanation, call: Call) -> tuple[Engine, Result]:
        results: dict[str, Result] = {}
        seconds: dict[str, float] = {}
        for name in ("loop", "vmap"):
            try:
                for _ in range(2):  # the first warms up
                    begin = time.perf_counter()
                    results[name] = self._generic[name == "vmap"].run(call)
                    if call.weights.is_cuda:
                        torch.cuda.synchronize()
                    seconds[name] = time.perf_counter() - begin
            except (RuntimeError, ValueError) as error:
                if name == "loop":
                    raise
                reason = f"{explanation.reason}; vmap cannot: {str(error).splitlines()[0]}"
                self._remember(call, Explanation("loop", reason))
                return self._generic[False], results["loop"]
        best = min(seconds, key=seconds.__getitem__)
        self._remember(call, Explanation(best, f"{explanation.reason}; the faster of loop and vmap", (), seconds))
        return self._generic[best == "vmap"], results[best]

    def _remember(self, call: Call, explanation: Explanation) -> None:
        x = call.batch.support_x
        key = (x.shape[2:], x.dtype, tuple([m.training for m in self._modules]))
        self._engines[key] = (self._generic[explanation.engine == "vmap"], explanation)
        self._explanation = explanation

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

    def _stats(self, engine: Engine, stats: Tensor | None) -> Tensor | None:
        """The statistics given, or the model's running ones where a batch norm is fixed."""
        norms = engine.traced.norms if isinstance(engine, Compiled) else ()
        if stats is not None or not any(norm.fixed for norm in norms):
            return stats
        assert isinstance(engine, Compiled)
        buffers = dict(self.model.named_buffers())
        row = self.layout.params()[0].new_zeros(engine.traced.program.stats)
        for norm in norms:
            if not norm.fixed:
                continue
            mean, variance = norm.buffers
            if mean is None or variance is None:
                raise ValueError(f"stats is needed: batch norm {norm.name!r} keeps no running statistics")
            c, o = norm.channels, norm.offset
            row[o : o + c], row[o + c : o + 2 * c] = buffers[mean], buffers[variance]
        return row[None]

    def _check_data(self, engine: Engine, batch: TaskBatch) -> None:
        if isinstance(engine, Compiled):
            for which in ("support", "query"):
                x, y, mask = (getattr(batch, f"{which}_{part}") for part in ("x", "y", "mask"))
                self._check_compiled(engine, f"{which}_x", x, f"{which}_y", y, mask, batch.classes)

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

    # ---- the meta-loss

    def _meta_loss(self, result: Result, share: Tensor | None, batch: TaskBatch) -> tuple[Tensor, list[int]]:
        """The weighted mean of the task losses, and the tasks that were dropped from it."""
        losses = result.task_losses
        loss = losses.mean() if share is None else (torch.where(share != 0, losses, 0) * share.to(losses.dtype)).sum()
        if self.on_nan == "ignore" or math.isfinite(loss.item()):
            return loss, []
        wrong = ~losses.isfinite() if share is None else ~losses.isfinite() & (share != 0)
        dropped = [int(t) for t in wrong.nonzero().flatten()]
        if self.on_nan == "raise":
            task = dropped[0]
            raise ValueError(
                f"task {task}: its query loss is {float(losses[task])}; {arguments.name_nan(batch, task)} "
                f"({len(dropped)} of {len(losses)} tasks; on_nan='drop' leaves them out)"
            )
        if len(dropped) == len(losses):
            raise ValueError(f"all {len(losses)} tasks have losses that are not finite; {arguments.name_nan(batch, 0)}")
        weights = torch.full_like(losses, 1 / len(losses)) if share is None else share.to(losses.dtype)
        kept = torch.where(wrong, 0, weights)
        return (torch.where(wrong, 0, losses) * kept).sum() * (weights.sum() / kept.sum()), dropped

    def _attach(self, loss: Tensor, result: Result, starts: list[Tensor], rates: Tensor, batch: TaskBatch) -> Tensor:
        """The loss with its gradients behind it."""
        assert result.grad_weights is not None
        extra = [
            (rates, result.grad_rates),
            (batch.support_x, result.grad_support_x),
            (batch.query_x, result.grad_query_x),
        ]
        extra = [(source, grad) for source, grad in extra if grad is not None and source.requires_grad]
        inputs = [*starts, *(source for source, _ in extra)]
        kept = [result.grad_weights, *(grad for _, grad in extra)]
        finish = partial(_finish, self.layout.sizes, [s.shape for s in starts], [s.requires_grad for s in starts])
        attached: Tensor = Attach.apply(loss, finish, kept, *inputs)
        return attached

    def _by_hook(self, engine: Engine, call: Call, starts: list[Tensor], batch: TaskBatch) -> Outcome:
        source = self._generic[False] if isinstance(engine, Generic) else engine
        weights = torch.cat([s.reshape(-1) if s.dim() == len(shape) else s.reshape(len(s), -1) for s, shape in
                             zip(_expanded(starts, self.layout, batch.tasks), self.layout.shapes.values(), strict=True)], -1)  # fmt: skip
        outcome = run_hook(source, call, weights, batch, self.layout)
        _, dropped = self._meta_loss(Result(outcome.task_losses, *[outcome.logits] * 3), call.task_weights, batch)
        if not dropped:
            return outcome
        # Autograd went through all tasks at once: those with NaN are taken out of the batch.
        kept = [t for t in range(batch.tasks) if t not in set(dropped)]
        share = torch.full((batch.tasks,), 1 / batch.tasks, dtype=torch.float64, device=weights.device)
        share = share if call.task_weights is None else call.task_weights
        part = replace(call, task_weights=share[kept] * (share.sum() / share[kept].sum()))
        if call.batches is not None and call.batches.dim() == 3:
            part.batches = call.batches[kept]
        rest = run_hook(
            source, part, weights if weights.dim() == 1 else weights[kept], _tasks(batch, kept), self.layout
        )
        return replace(outcome, loss=rest.loss, dropped=dropped)

    def _quiet(self) -> InnerLoop:
        """The same loop that lets losses be what they are: for adaptation alone."""
        quiet = object.__new__(InnerLoop)
        quiet.__dict__ = {**self.__dict__, "on_nan": "ignore"}
        return quiet


def _finish(
    sizes: list[int], shapes: list[torch.Size], wanted: list[bool], grad: Tensor, flat: Tensor, *rest: Tensor
) -> list[Tensor | None]:
    """The gradients of the starts, as views of one tensor, and of the other inputs, times the incoming one."""
    parts = (flat * grad).split(sizes, -1)
    grads: list[Tensor | None] = []
    for part, shape, want in zip(parts, shapes, wanted, strict=True):
        if not want:
            grads.append(None)
        elif part.numel() != shape.numel():  # a start that all tasks share, beside others of their own
            grads.append(part.sum(0).view(shape))
        else:
            grads.append(part.view(shape))
    return [*grads, *(r * grad for r in rest)]


def _expanded(starts: list[Tensor], layout: Layout, tasks: int) -> list[Tensor]:
    """All starts with a task dimension, if one has it."""
    shapes = layout.shapes.values()
    if all(s.dim() == len(shape) for s, shape in zip(starts, shapes, strict=True)):
        return starts
    return [s if s.dim() > len(shape) else s.expand(tasks, *shape) for s, shape in zip(starts, shapes, strict=True)]


def _flat(starts: list[Tensor], layout: Layout, tasks: int) -> Tensor:
    """`[P]` or `[T, P]`, detached."""
    with torch.no_grad():
        full = _expanded(starts, layout, tasks)
        single = full is starts
        return torch.cat([s.reshape(-1) if single else s.reshape(tasks, -1) for s in full], -1)


def _plain(batch: TaskBatch) -> TaskBatch:
    """The batch detached and without gaps, as the ops read it; itself where it is so."""
    from metafast.data import TaskBatch

    values = {f: getattr(batch, f) for f in TaskBatch.__dataclass_fields__}
    if all(v is None or v.is_contiguous() and not v.requires_grad for v in values.values()):
        return batch
    return TaskBatch(**{f: None if v is None else v.detach().contiguous() for f, v in values.items()})


def _tasks(batch: TaskBatch, kept: list[int]) -> TaskBatch:
    from metafast.data import TaskBatch

    values = {f: getattr(batch, f) for f in TaskBatch.__dataclass_fields__}
    return TaskBatch(**{f: None if v is None else v[kept] for f, v in values.items()})


def _width(norms: Sequence[Any]) -> int:
    return sum(2 * norm.channels for norm in norms)


def _why_loop(call: Call) -> str | None:
    """What only the loop over tasks can do."""
    batch = call.batch
    if batch.support_mask is not None or batch.query_mask is not None:
        return "tasks have different numbers of examples"
    if batch.classes is not None:
        return "tasks have different numbers of classes"
    return None


def _loss(loss: Any, smoothing: float) -> tuple[Loss | None, Callable[[Tensor, Tensor], Tensor], str | None]:
    """(what a program ends in, the loss as a function, why it has no compiled form)."""
    if loss == "cross_entropy" or loss is F.cross_entropy:
        return Loss.CROSS_ENTROPY, partial(F.cross_entropy, label_smoothing=smoothing), None
    if loss == "mse" or loss is F.mse_loss:
        return Loss.MSE, F.mse_loss, None
    if isinstance(loss, str):
        raise ValueError(
            f"loss={loss!r} is unknown; choose 'cross_entropy', 'mse', or a function (logits, targets) -> scalar"
        )
    if not callable(loss):
        raise TypeError(f"loss must be a name or a function, got {type(loss).__name__}")
    if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None and loss.reduction == "mean":
        return Loss.CROSS_ENTROPY, loss, None
    if isinstance(loss, nn.MSELoss) and loss.reduction == "mean":
        return Loss.MSE, loss, None
    return None, loss, f"loss: {getattr(loss, '__name__', type(loss).__name__)} is a function of the user"


__all__ = ["SGD", "Adam", "InnerLoop"]
