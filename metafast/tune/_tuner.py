"""The tuner: one training step per call, and a step of the hyperparameters every few calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import integer, positive
from metafast.runs import rng_state
from metafast.tune._dynamics import Dynamics, State
from metafast.tune._feedback import Feedback, Loss, default_loss, parts_of
from metafast.tune._holdout import check_disjoint, split_loader
from metafast.tune._knobs import expand, make_knobs
from metafast.tune._learning import HyperLearning
from metafast.tune._methods import Method, make_method
from metafast.tune._parallel import Parallel
from metafast.tune._problem import Call, Gradient, Problem
from metafast.tune._record import Tuned
from metafast.tune._schedule import Schedule
from metafast.tune._snapshots import Snapshots
from metafast.tune._tune import Tune
from metafast.tune._updates import rule_of

FORMAT = 1


class OnlineTuner:
    r"""Tunes hyperparameters during one training run, by the gradient of a validation loss with respect to them.

    Each `step` is a training step: loss, gradients, and the optimizer's own step. Every `every` calls the method says
    how the validation loss \(V(\theta)\) after this step depends on each hyperparameter h through the steps that led
    to \(\theta\), and a hyper-optimizer moves h, in a space where positive values stay positive, inside bounds.
    Loops that have their own backward pass call `update` instead; see there.

    Args:
        model: any `nn.Module`, also one in `DistributedDataParallel`: gradients, Hessian-vector products and validation
            gradients are then averaged over the processes, and hyperparameters stay equal in all of them.
        optimizer: SGD, Adam or AdamW of `torch.optim` or `metafast.optim` (without `hypergrad`).
        tune: names of the optimizer's options ("lr", "momentum", "weight_decay", "betas", ...), tensors that the loss
            depends on, and `Tune(...)` for either with more to say.
        val_loader: validation batches that can be gone through again and again: a `DataLoader`, or a list; never the
            test set. None: a part of `train_loader` is held out, and `tuner.train_loader` has the rest.
        method: "forward" (default), "reverse", "implicit", "one_step", "sama", or an object with settings, such as
            `Implicit(terms=10)`.
        every: training steps between two updates of the hyperparameters, or "epoch": `len(train_loader)`. Default 10.
        start: training steps at the beginning in which the hyperparameters stay and nothing is observed: a warm-up, or
            a plateau at chance level, where hypergradients are noise. Default 0.
        val_loss: `val_loss(model, *batch)`, a tensor of one element. Default: cross-entropy where the targets are class
            numbers, mean squared error where they are floating-point. The model is in evaluation mode.
        val_batches: batches of one hypergradient, the next ones in the loader's order; or "all".
            Default 1, and "all" with `every="epoch"`.
        hyper_optimizer: called with a list of parameter groups with rates, returns an optimizer.
            Default: `torch.optim.Adam`.
        hyper_lr: its rate, in the space of the hyperparameters: with Adam, an update multiplies a learning rate by at
            most about exp(hyper_lr). Default 0.1.
        normalize: divide each hypergradient by its running root mean square, so that scales of losses do not matter.
            Default True.
        clip: largest root mean square of a hypergradient after that; None: no limit. Default 1.
        train_loader: training data. With a `val_loader`, looked at only to make sure that the two share no examples.
        val_share: of the training examples, where the tuner holds them out itself. Default 0.1.
        max_grad_norm: training gradients are clipped to this global norm, which the exact methods differentiate too.
            Default None: no clipping.
        scaler: a `torch.amp.GradScaler`. A step whose gradient overflows is left out, as the scaler does it, and
            counted in `overflows`. Default None.
        scheduler: of the learning rate, where "lr" is tuned: the tuner then moves the base rate, and the scheduler's
            multiplier is kept. Anything that is a multiple of the base rate (LambdaLR, StepLR, warm-up, cosine to 0).
        snapshots: saves and rolls back at the end of each step. Default None.
        process_group: for loops that average training gradients over its processes without a wrapper around the model,
            as trainers do, and call `update`. Default None.
        seed: of the held-out part and of the validation loader's random numbers, which do not touch those of the
            training. Default 0.

    Attributes:
        train_loader, val_loader: the two parts.
        module: the model without its wrapper.
        calls: training steps so far.
        overflows: steps that were left out.
        validation: `(calls, loss)` of every look at the validation data.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or something that cannot be tuned; the message
            lists what can. Nothing has changed then.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        >>> x = torch.randn(32, 4)
        >>> y = (x[:, 0] > 0).long()
        >>> tuner = OnlineTuner(model, opt, tune=["lr", "momentum"], val_loader=[(x[24:], y[24:])], every=5)
        >>> for _ in range(20):
        ...     loss = tuner.step(lambda: F.cross_entropy(model(x[:24]), y[:24]))
        >>> tuner.state["lr"].values["all"] > 1e-4
        True
        >>> len(tuner.state["lr"].hypergradients)
        4

    Source:
        L. Franceschi et al., ICML 2017 (real-time hyperparameter optimization, section 3.3); A. Baydin et al.,
        ICLR 2018. The methods name theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tune: str | Tensor | Tune | Iterable[str | Tensor | Tune],
        val_loader: Iterable[Any] | None = None,
        method: str | Method = "forward",
        every: int | str = 10,
        *,
        val_loss: Loss | None = None,
        val_batches: int | str | None = None,
        hyper_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        hyper_lr: float = 0.1,
        normalize: bool = True,
        clip: float | None = 1.0,
        train_loader: Any = None,
        val_share: float = 0.1,
        max_grad_norm: float | None = None,
        scaler: Any = None,
        scheduler: Any = None,
        snapshots: Snapshots | None = None,
        process_group: Any = None,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if isinstance(model, nn.DataParallel):
            raise TypeError("model is in DataParallel, which has no second derivatives; use DistributedDataParallel")
        if val_loss is not None and not callable(val_loss):
            raise TypeError(f"val_loss must be a function of the model and a batch, got {type(val_loss).__name__}")
        if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
            raise TypeError(f"scaler must be a torch.amp.GradScaler, got {type(scaler).__name__}")
        if snapshots is not None and not isinstance(snapshots, Snapshots):
            raise TypeError(f"snapshots must be metafast.tune.Snapshots, got {type(snapshots).__name__}")
        max_grad_norm = None if max_grad_norm is None else positive("max_grad_norm", max_grad_norm)
        seed, self.start = integer("seed", seed, minimum=0), integer("start", start, minimum=0)
        rule = rule_of(optimizer)
        specs = expand(tune, rule, method)
        schedule = None if scheduler is None else Schedule(scheduler, optimizer)
        parallel = Parallel(model, process_group)
        if val_loader is None and train_loader is not None:
            if parallel.size > 1:
                raise ValueError("val_loader is missing: with several processes each needs its own part; see holdout")
            train_loader, val_loader = split_loader(train_loader, val_share, seed)
        elif val_loader is not None and train_loader is not None:
            check_disjoint(train_loader, val_loader)
        self.every, by_epoch = _period(every, train_loader)
        self._feedback = Feedback(val_loader, val_batches or ("all" if by_epoch else 1), seed)
        knobs, groups = make_knobs(specs, rule, parallel.model, optimizer, schedule)
        dynamics = Dynamics(optimizer, groups, knobs)
        if not dynamics.params:
            raise ValueError("the optimizer has no parameter that requires a gradient; there is nothing to train")
        self.model, self.optimizer, self.val_loss = model, optimizer, val_loss or default_loss
        self.train_loader, self.val_loader, self.scaler = train_loader, val_loader, scaler
        self.module, self.snapshots = parallel.model, snapshots
        self._problem = Problem(parallel, dynamics, knobs, max_grad_norm)
        self._methods: list[Method] = []
        made: dict[Any, Method] = {}
        for spec in specs:
            key = _key(spec)
            if key not in made:
                made[key] = make_method(spec.method)
                self._methods.append(made[key])
        used = [_key(spec) for spec in specs]
        for key, bound in made.items():
            mine = [knob for knob, own in zip(knobs, used, strict=True) if own == key]
            bound.bind(self._problem, mine, self.every)
        self._learning = HyperLearning(knobs, hyper_optimizer, hyper_lr, normalize, clip)
        self.calls = self.overflows = 0
        self.validation: list[tuple[int, float]] = []
        self._found: tuple[dict[str, Tensor], float | None] | None = None  # between before_step and after_step
        optimizer.param_groups[:] = groups

    # ---- training

    def step(self, loss_fn: Callable[..., Tensor], *batch: Any) -> Tensor:
        """One training step, and every `every` calls one of the hyperparameters.

        Args:
            loss_fn: returns the training loss, a tensor of one element, from the model; called with `batch`. With a
                scaler, the unscaled loss.
            batch: arguments of `loss_fn`. "reverse" needs them, to make a step again; others take a closure too.

        Returns:
            The training loss before the step, detached; of this process.

        Raises:
            TypeError: the loss is no tensor of one element.
            ValueError: it does not depend on the parameters or on a tuned tensor, "reverse" got no batch, or something
                else has changed a tuned value. Weights, optimizer and hyperparameters are then as before.
        """
        self._check_call(loss_fn, batch)
        problem, scale = self._problem, self._scale()
        with self._undone_by_errors():
            rng = rng_state() if any(method.replays for method in self._methods) else {}
            problem.parallel.share_buffers()
            for param in problem.dynamics.params:
                param.grad = None  # its memory is for the new one
            with torch.enable_grad(), problem.parallel.local():
                loss = loss_fn(*batch)
            graph = self._begun and any(method.needs_graph(self._due) for method in self._methods)
            gradient = problem.gradient(loss, graph=graph, scale=scale)
            self._check_tensors(gradient)
            found, made = None, False
            if self.scaler is None or _finite(gradient.params):
                dynamics = problem.dynamics
                call = Call(loss_fn, batch, rng, dynamics.options(), dynamics.state(), gradient, scale)
                found, made = self._observe(call, may_step=self.scaler is None)
                del call
            params = [None if grad is None else grad.detach() for grad in gradient.params]
            del gradient  # its graph holds the activations
            self._move(params, scale, made)
        self._learn(found)
        return loss.detach()

    def update(self) -> None:
        """One step of the optimizer, and of the hyperparameters when due, from the gradients in `.grad`.

        For loops that call `backward()` themselves: once or, to accumulate, several times, clipped by whatever means,
        also through `DistributedDataParallel` and with `scaler.scale(loss).backward()`. It stands in the place of
        `optimizer.step()`, or of `scaler.step(optimizer); scaler.update()` for the scaler that the tuner was given.
        Only methods that compute no training loss again can be used: "one_step" and "sama" for options of the
        optimizer, and `Forward(hvp=False)`.

        Raises:
            ValueError: the method needs `step`, or there is no gradient.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(4, 1)
            >>> opt = torch.optim.SGD(model.parameters(), lr=1e-3)
            >>> val = [(torch.randn(8, 4), torch.randn(8, 1))]
            >>> tuner = OnlineTuner(model, opt, "lr", val, method="one_step", every=2)
            >>> for _ in range(4):
            ...     opt.zero_grad()
            ...     for x in torch.randn(3, 8, 4):  # accumulates three batches
            ...         (model(x).square().mean() / 3).backward()
            ...     tuner.update()
            >>> len(tuner.state["lr"].hypergradients)
            2
        """
        if self.scaler is not None:
            with contextlib.suppress(RuntimeError):  # the loop has done so already, to clip
                self.scaler.unscale_(self.optimizer)
        grads, made = self._look(may_overflow=self.scaler is not None, may_step=self.scaler is None)
        self._move(grads, 1.0, made)
        self.after_step()

    def before_step(self, *, may_overflow: bool = False) -> None:
        """The part of `update` before the optimizer's step, for trainers that make this step themselves.

        Args:
            may_overflow: whether gradients may be infinite, in which case the trainer leaves the step out.
                Default False.
        """
        self._look(may_overflow=may_overflow, may_step=False)

    def after_step(self) -> None:
        """The part of `update` after the optimizer's step."""
        found, self._found = self._found, None
        self._learn(found)

    @property
    def _begun(self) -> bool:
        return self.calls >= self.start

    @property
    def _due(self) -> bool:
        return self._begun and (self.calls + 1 - self.start) % self.every == 0

    def _scale(self) -> float:
        if self.scaler is None:
            return 1.0
        return float(self.scaler.scale(torch.ones((), device=self._problem.dynamics.params[0].device)))

    @contextlib.contextmanager
    def _undone_by_errors(self) -> Iterator[None]:
        marks = [method.mark() for method in self._methods]
        try:
            yield
        except BaseException:
            for method, mark in zip(self._methods, marks, strict=True):
                method.restore(mark)
            raise

    def _look(self, *, may_overflow: bool, may_step: bool) -> tuple[list[Tensor | None], bool]:
        """Observes the gradients in `.grad`; returns them, clipped, and whether the step has been made."""
        for method in self._methods:
            if method.replays or method.needs_graph(True):
                raise ValueError(
                    f"{type(method).__name__} has to compute the training loss itself, as tuner.step(loss_fn, *batch) "
                    'lets it; with a backward pass of your own use method=Forward(hvp=False, decay=0.9) or "one_step", '
                    "and tune options of the optimizer"
                )
        self._check_values()
        gradient = self._problem.given()
        self._found, made = None, False
        if not may_overflow or _finite(gradient.params):
            dynamics = self._problem.dynamics
            with self._undone_by_errors():
                call = Call(None, (), {}, dynamics.options(), dynamics.state(), gradient, self._scale())
                self._found, made = self._observe(call, may_step=may_step)
        return gradient.params, made

    def _move(self, grads: list[Tensor | None], scale: float, made: bool) -> None:
        """The optimizer's own step, unless it is made; the scaler will divide gradients by the scale."""
        for param, grad in zip(self._problem.dynamics.params, grads, strict=True):
            param.grad = grad if grad is None or scale == 1 else grad * scale
        if made:
            return
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _learn(self, found: tuple[dict[str, Tensor], float | None] | None) -> None:
        """Counts the step and, where it was due, moves the hyperparameters; None: it was left out."""
        if found is None:
            self.overflows += 1
            return
        self.calls += 1
        hypergradients, value = found
        if value is not None:
            self._move_hyperparameters(hypergradients, value)
        if self.snapshots is not None:
            self.snapshots.after_step(self)

    def _move_hyperparameters(self, hypergradients: dict[str, Tensor], value: float) -> None:
        self.validation.append((self.calls, value))
        skipped = self._learning.step(self.calls, hypergradients, self.optimizer.param_groups)
        for method in self._methods:
            if skipped & {knob.name for knob in method.knobs}:
                method.reset()  # what has become NaN once stays it

    def _observe(self, call: Call, *, may_step: bool) -> tuple[tuple[dict[str, Tensor], float | None], bool]:
        """The hypergradients and the validation loss where a call is due; and whether a method has made the step."""
        if not self._begun:
            return ({}, None), False
        due, found = self._due, dict[str, Tensor]()
        values: list[float] = []
        batches = self._feedback.take() if due else []

        def validate(state: State) -> Gradient:
            gradient = self._validate(state, batches, call.scale)
            values.append(float(gradient.loss))
            return gradient

        stepping = next((method for method in self._methods if may_step and method.takes_step(call)), None)
        for method in sorted(self._methods, key=lambda method: method is stepping):  # the others see the state before
            if method is stepping:
                result = method.step(call, validate if due else None)
            else:
                method.observe(call)
                result = method.hypergradient(call, validate) if due else {}
            found.update({knob.name: result[knob.name] for knob in method.knobs if due})
        return (found, values[0] if values else None), stepping is not None

    def _validate(self, state: State, batches: list[Any], scale: float) -> Gradient:
        """The mean validation loss of some batches at other weights, and its gradient."""
        problem = self._problem
        device = problem.dynamics.params[0].device
        with problem.untouched(), problem.at(state), torch.enable_grad():
            problem.model.eval()
            losses = (self.val_loss(problem.model, *parts_of(batch, device)) for batch in batches)
            return problem.validation(losses, scale)

    def scale_rates(self, factor: float) -> None:
        """Multiplies all learning rates; a tuned one stays inside its bounds, and its history shows it.

        Args:
            factor: above 0.
        """
        factor = positive("factor", factor)
        groups = self.optimizer.param_groups
        for knob in self._problem.knobs:
            if knob.name == "lr" and knob.tensor is None:
                self._learning.scale(knob, factor, self.calls, groups)
                return
        for group in groups:
            group["lr"] *= factor

    # ---- looking

    @property
    def state(self) -> dict[str, Tuned]:
        """Each hyperparameter by name: values now, their history, and the hypergradients."""
        return self._learning.state()

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={next(iter(tuned.values.values())):.4g}"
            if len(tuned.values) == 1
            else f"{name}: {len(tuned.values)}"
            for name, tuned in self.state.items()
        )
        return f"OnlineTuner({values}; {self.calls} calls)"

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next calls depend on besides model, optimizer and the global random states.

        `metafast.runs.Run.save(step, model, optimizer, tuner=tuner)` stores it; with "reverse", batches are in it.
        """
        return {
            "format": FORMAT,
            "calls": self.calls,
            "overflows": self.overflows,
            "every": self.every,
            "start": self.start,
            "shapes": [list(p.shape) for p in self._problem.dynamics.params],
            "validation": list(self.validation),
            "methods": [{"name": type(m).__name__, "state": m.state_dict()} for m in self._methods],
            "feedback": self._feedback.state_dict(),
            "learning": self._learning.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit for bit once model, optimizer and random states are restored too.

        Args:
            state: from a tuner of the same model, optimizer and arguments.

        Raises:
            ValueError: the state belongs to another model or to other arguments; nothing has changed then.
        """
        shapes = [list(p.shape) for p in self._problem.dynamics.params]
        methods = [type(method).__name__ for method in self._methods]
        mine = {"every": self.every, "start": self.start, "shapes": shapes, "methods": methods}
        came = {
            "every": state["every"],
            "start": state["start"],
            "shapes": [list(s) for s in state["shapes"]],
            "methods": [m["name"] for m in state["methods"]],
        }
        for key, value in mine.items():
            if came[key] != value:
                raise ValueError(
                    f"the state of a tuner does not fit: it has {key}={came[key]}, this tuner {value}; "
                    "make model, optimizer and tuner with the arguments of the run that it comes from"
                )
        self._learning.check(state["learning"])
        self._learning.load_state_dict(state["learning"], self.optimizer.param_groups)
        for method, kept in zip(self._methods, state["methods"], strict=True):
            method.load_state_dict(kept["state"])
        self._feedback.load_state_dict(state["feedback"])
        self.calls, self.overflows = state["calls"], state["overflows"]
        self.validation = [tuple(row) for row in state["validation"]]

    # ---- checks

    def _check_call(self, loss_fn: Any, batch: tuple[Any, ...]) -> None:
        if not callable(loss_fn):
            raise TypeError(
                f"loss_fn must be a function that returns the loss, got {type(loss_fn).__name__}; "
                "write tuner.step(lambda: F.cross_entropy(model(x), y))"
            )
        if not batch and any(method.keeps for method in self._methods):
            raise ValueError(
                'method="reverse" makes past steps again, which a closure without arguments cannot: its variables have '
                "moved on; write tuner.step(lambda x, y: F.cross_entropy(model(x), y), x, y)"
            )
        self._check_values()

    def _check_values(self) -> None:
        for knob in self._problem.knobs:
            knob.check_untouched(self.optimizer.param_groups)

    def _check_tensors(self, gradient: Gradient) -> None:
        if self.calls:
            return  # a loss may use a tensor in some steps only
        for knob, grad in zip(self._problem.tensor_knobs, gradient.tensors, strict=True):
            if grad is None:
                raise ValueError(
                    f"the training loss does not depend on the tuned tensor {knob.name!r}; "
                    "compute from this very tensor inside loss_fn, or leave it out of tune"
                )


def _period(every: int | str, train_loader: Any) -> tuple[int, bool]:
    """Steps between two updates, and whether that is an epoch."""
    if every != "epoch":
        if isinstance(every, str):
            raise ValueError(f'every must be a number of steps or "epoch", got {every!r}')
        return integer("every", every, minimum=1), False
    if not isinstance(train_loader, Sized) or len(train_loader) == 0:
        raise ValueError('every="epoch" needs train_loader, whose length is an epoch')
    return len(train_loader), True


def _finite(grads: Sequence[Tensor | None]) -> bool:
    return bool(torch.nn.utils.get_total_norm([g for g in grads if g is not None]).isfinite())


def _key(spec: Tune) -> Any:
    """Hyperparameters with equal keys share one method object."""
    return spec.method if isinstance(spec.method, str) else id(spec.method)
