"""The tuner: one training step per call, and a step of the hyperparameters every few calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.runs import rng_state
from metafast.tune._dynamics import Dynamics, State
from metafast.tune._feedback import Feedback, Loss, default_loss, parts_of
from metafast.tune._holdout import check_disjoint
from metafast.tune._knobs import expand, make_knobs
from metafast.tune._learning import HyperLearning
from metafast.tune._methods import Method, make_method
from metafast.tune._problem import Call, Gradient, Problem, mean
from metafast.tune._record import Tuned
from metafast.tune._tune import Tune
from metafast.tune._updates import rule_of

FORMAT = 1


class OnlineTuner:
    r"""Tunes hyperparameters during one training run, by the gradient of a validation loss with respect to them.

    Each `step` is a training step: loss, gradients, and the optimizer's own step. Every `every` calls the method says
    how the validation loss \(V(\theta)\) after this step depends on each hyperparameter h through the steps that led
    to \(\theta\), and a hyper-optimizer moves h, in a space where positive values stay positive, inside bounds.

    Args:
        model: any `nn.Module`, not wrapped for data parallelism.
        optimizer: SGD, Adam or AdamW of `torch.optim` or `metafast.optim` (without `hypergrad`).
        tune: names of the optimizer's options ("lr", "momentum", "weight_decay", "betas", ...), tensors that the loss
            depends on, and `Tune(...)` for either with more to say.
        val_loader: validation batches that can be gone through again and again: a `DataLoader`, or a list.
            See `holdout` for a split; never the test set.
        method: "forward" (default), "reverse", "implicit", "one_step", "sama", or an object with settings, such as
            `Implicit(terms=10)`.
        every: training steps between two updates of the hyperparameters. Default 10.
        val_loss: `val_loss(model, *batch)`, a tensor of one element. Default: cross-entropy where the targets are class
            numbers, mean squared error where they are floating-point. The model is in evaluation mode.
        val_batches: batches of one hypergradient, the next ones in the loader's order; or "all". Default 1.
        hyper_optimizer: called with a list of parameter groups with rates, returns an optimizer.
            Default: `torch.optim.Adam`.
        hyper_lr: its rate, in the space of the hyperparameters: with Adam, an update multiplies a learning rate by at
            most about exp(hyper_lr). Default 0.1.
        normalize: divide each hypergradient by its running root mean square, so that scales of losses do not matter.
            Default True.
        clip: largest root mean square of a hypergradient after that; None: no limit. Default 1.
        train_loader: training data, looked at only to make sure that validation examples are not among them.
        seed: of the validation loader's random numbers, which do not touch those of the training. Default 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value, or something that cannot be tuned; the message
            lists what can. Nothing has changed then.

    Example:
        >>> import torch
        >>> from torch.nn import functional as F
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
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
        val_loader: Iterable[Any],
        method: str | Method = "forward",
        every: int = 10,
        *,
        val_loss: Loss | None = None,
        val_batches: int | str = 1,
        hyper_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        hyper_lr: float = 0.1,
        normalize: bool = True,
        clip: float | None = 1.0,
        train_loader: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise TypeError(
                f"model must be the bare module, got {type(model).__name__}: its gradient hooks do not see second "
                "derivatives; give model.module, in one process"
            )
        if val_loss is not None and not callable(val_loss):
            raise TypeError(f"val_loss must be a function of the model and a batch, got {type(val_loss).__name__}")
        rule = rule_of(optimizer)
        specs = expand(tune, rule, method)
        self.every = integer("every", every, minimum=1)
        self._feedback = Feedback(val_loader, val_batches, integer("seed", seed, minimum=0))
        if train_loader is not None:
            check_disjoint(train_loader, val_loader)
        knobs, groups = make_knobs(specs, rule, model, optimizer)
        dynamics = Dynamics(optimizer, groups, knobs)
        if not dynamics.params:
            raise ValueError("the optimizer has no parameter that requires a gradient; there is nothing to train")
        self.model, self.optimizer, self.val_loss = model, optimizer, val_loss or default_loss
        self._problem = Problem(model, dynamics, knobs)
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
        self.calls = 0
        self.validation: list[tuple[int, float]] = []
        optimizer.param_groups[:] = groups

    # ---- training

    def step(self, loss_fn: Callable[..., Tensor], *batch: Any) -> Tensor:
        """One training step, and every `every` calls one of the hyperparameters.

        Args:
            loss_fn: returns the training loss, a tensor of one element, from the model; called with `batch`.
            batch: arguments of `loss_fn`. "reverse" needs them, to make a step again; others take a closure too.

        Returns:
            The training loss before the step, detached.

        Raises:
            TypeError: the loss is no tensor of one element.
            ValueError: it does not depend on the parameters or on a tuned tensor, "reverse" got no batch, or something
                else has changed a tuned value. Weights, optimizer and hyperparameters are then as before.
        """
        self._check_call(loss_fn, batch)
        due = (self.calls + 1) % self.every == 0
        marks = [method.mark() for method in self._methods]
        rng = rng_state() if any(method.replays for method in self._methods) else {}
        try:
            with torch.enable_grad():
                loss = loss_fn(*batch)
            graph = any(method.needs_graph(due) for method in self._methods)
            gradient = self._problem.gradient(loss, graph=graph)
            self._check_tensors(gradient)
            dynamics = self._problem.dynamics
            call = Call(loss_fn, batch, rng, dynamics.options(), dynamics.state(), gradient)
            found, value = self._observe(call, due)
            for param, grad in zip(dynamics.params, gradient.params, strict=True):
                param.grad = None if grad is None else grad.detach()
            del call, gradient  # the graph holds the activations
            self.optimizer.step()
        except BaseException:
            for method, mark in zip(self._methods, marks, strict=True):
                method.restore(mark)
            raise
        self.calls += 1
        if due:
            assert value is not None
            self.validation.append((self.calls, value))
            skipped = self._learning.step(self.calls, found, self.optimizer.param_groups)
            for method in self._methods:
                if skipped & {knob.name for knob in method.knobs}:
                    method.reset()  # what has become NaN once stays it
        return loss.detach()

    def _observe(self, call: Call, due: bool) -> tuple[dict[str, Tensor], float | None]:
        found: dict[str, Tensor] = {}
        values: list[float] = []
        batches = self._feedback.take() if due else []

        def validate(state: State) -> Gradient:
            gradient = self._validate(state, batches)
            values.append(float(gradient.loss))
            return gradient

        for method in self._methods:
            method.observe(call)
            if due:
                result = method.hypergradient(call, validate)
                found.update({knob.name: result[knob.name] for knob in method.knobs})
        return found, values[0] if values else None

    def _validate(self, state: State, batches: list[Any]) -> Gradient:
        """The mean validation loss of some batches at other weights, and its gradient."""
        problem = self._problem
        found: list[Gradient] = []
        with problem.untouched(), problem.at(state), torch.enable_grad():
            self.model.eval()
            for batch in batches:
                parts = parts_of(batch, problem.dynamics.params[0].device)
                loss = self.val_loss(self.model, *parts)
                found.append(problem.gradient(loss, graph=False, what="the validation loss"))
        return mean(found)

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
            "every": self.every,
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
        mine = {"every": self.every, "shapes": shapes, "methods": [type(m).__name__ for m in self._methods]}
        came = {
            "every": state["every"],
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
        self.calls = state["calls"]
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


def _key(spec: Tune) -> Any:
    """Hyperparameters with equal keys share one method object."""
    return spec.method if isinstance(spec.method, str) else id(spec.method)
