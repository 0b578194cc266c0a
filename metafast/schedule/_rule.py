"""What every rule shares that sets learning rates while a network trains: it watches, decides, steers and guards."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from metafast._checks import integer
from metafast.optim._buckets import sharding
from metafast.optim._fused import FusedOptimizer
from metafast.optim._history import RateHistory
from metafast.schedule._features import Units
from metafast.schedule._statistics import Statistics
from metafast.schedule._steering import Steering, steering
from metafast.schedule._watchdog import Copies, Watchdog

_JUDGED_STEPS = 10  # at least, that the watchdog looks at together
_FAILURES = (RuntimeError, ValueError, TypeError)
PER = ("global", "group", "tensor")


class RateRule(ABC):
    """Base of `LRController`, `Hypergradient` and `MLRSNet`: `attach` once, then `step` after every optimizer step."""

    def __init__(self) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.events: list[dict[str, Any]] = []

    # ---- what a rule says

    @abstractmethod
    def _begin(self, device: torch.device) -> None:
        """Forgets everything; units are known."""

    @abstractmethod
    def _decide(self, table: Tensor, rates: Tensor, mean: Tensor, spread: Tensor, progress: Tensor) -> Tensor:
        """The change of every unit's log rate, float64 `[U]`, on the device."""

    def _rule_state(self) -> dict[str, Any]:
        """What the rule remembers, for a checkpoint."""
        return {}

    def _load_rule_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes it back."""

    # ---- attaching

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        interval: int = 10,
        per: str = "global",
        total_steps: int | None = None,
        lr_bounds: tuple[float, float] = (1e-8, 10.0),
        watchdog: Watchdog | None = Watchdog(),  # noqa: B008
        model: nn.Module | None = None,
        process_group: Any = None,
    ) -> Any:
        """Takes over the learning rates of an optimizer, which go on to follow its scheduler as their base.

        The effective rate of a step is the group's `lr` times a factor that begins at 1. Groups, schedulers and
        checkpoints only see the base. Nothing that happens in here ends a training: where the rule cannot go on, it
        warns, notes it in `events`, and the optimizer goes on with its base rates.

        Args:
            optimizer: of `metafast.optim` (without `hypergrad`) or `torch.optim`, or any other whose updates are
                proportional to its rate.
            interval: steps between two decisions. Default 10.
            per: what has a rate of its own: "global", "group" or "tensor". Default "global".
            total_steps: length of the training, where it is known: the end is then trained with small rates.
            lr_bounds: lowest and highest effective rate. Default (1e-8, 10).
            watchdog: when to fall back to the base schedule; None: never. Default `Watchdog()`.
            model: whose buffers (batch norms' statistics) the watchdog brings back too.
            process_group: of several processes whose losses are averaged; default: all, where there are several.

        Returns:
            The rule itself.

        Raises:
            TypeError: no optimizer, or an argument of the wrong type.
            ValueError: no parameters, a rate that adapts itself already, an interval below 1, bounds that leave the
                base rate out, a rule that is attached already, or sharded parameters (DTensors) with an optimizer that
                is not of `metafast.optim`.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if self.optimizer is not None:
            raise ValueError("it is attached to an optimizer already: call detach(), or take a copy() for another")
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if not params:
            raise ValueError("optimizer has no parameters to train")
        if not isinstance(optimizer, FusedOptimizer) and any(sharding(p) for p in params):
            raise ValueError(
                "optimizer has sharded parameters; these need one of metafast.optim, which sums over shards"
            )
        integer("interval", interval, minimum=1)
        if per not in PER:
            raise ValueError(f"per must be one of {', '.join(PER)}, got {per!r}")
        if total_steps is not None:
            integer("total_steps", total_steps, minimum=1)
        if watchdog is not None and not isinstance(watchdog, Watchdog):
            raise TypeError(f"watchdog must be a Watchdog or None, got {type(watchdog).__name__}")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        bounds = _bounds(lr_bounds)
        for number, group in enumerate(optimizer.param_groups):
            if group.get("hypergrad") is not None:
                raise ValueError(
                    f'group {number} has hypergrad="{group["hypergrad"]}": its rate adapts itself already; make the '
                    "optimizer with hypergrad=None"
                )
            # The scheduler's first factor (a warm-up begins at 0) is not the base rate.
            rate = float(group.get("initial_lr", group["lr"]))
            if not bounds[0] <= rate <= bounds[1]:
                raise ValueError(
                    f"lr_bounds {bounds} leave out the base rate {rate:g} of group {number}; widen them or change lr"
                )
        self.optimizer, self.interval, self.per = optimizer, interval, per
        self.total_steps, self.bounds, self.watchdog, self.model = total_steps, bounds, watchdog, model
        self._group = process_group
        self._params = params
        device = params[0].device
        self.labels, segments = _labels(optimizer, per)
        numels = torch.tensor([float(p.numel()) for p in params], dtype=torch.float64, device=device)
        self._units = Units(torch.tensor(segments, device=device), numels, len(self.labels))
        self._counts = torch.bincount(self._units.segments, minlength=len(self.labels)).double()
        self._steering: Steering = steering(optimizer, per)
        self._statistics = Statistics(optimizer, self._effective, interval)
        self._log_factors = torch.zeros(len(self.labels), dtype=torch.float64, device=device)
        self._ceiling = torch.full_like(self._log_factors, math.inf)  # of the log rates
        self._factors = torch.ones(len(params), dtype=torch.float64, device=device)
        self._losses: list[Tensor] = []
        self._message: tuple[Any, Tensor, int] | None = None
        self._lag = interval // 2  # steps that numbers from a GPU have time to arrive
        self._calls, self._first, self._best = 0, math.nan, math.inf
        self._recent: list[float] = []
        self._rest, self._losts, self._since = 0, 0, 0
        self._copies = Copies(optimizer, model) if watchdog is not None and watchdog.rewind else None
        self._history = RateHistory()
        self.events = []
        self._begin(device)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._note()
        return self

    def detach(self) -> None:
        """Lets go of the optimizer, which goes on with its base rates."""
        if self.optimizer is None:
            return
        for hook in self._hooks:
            hook.remove()
        self._steering.release()
        self.optimizer = None

    # ---- the step

    def _before_step(self, *_: Any) -> None:
        if self.optimizer is None or not self._same_params():
            return
        if self._message is not None and self._calls >= self._message[2]:
            self._receive()
        position = self._calls % self.interval
        try:
            self._statistics.before_step(self.interval - 1 - position)
            self._steering.before_step()
        except _FAILURES as error:
            self._let_go(f"{type(error).__name__}: {error}")

    def _after_step(self, *_: Any) -> None:
        if self.optimizer is not None:
            self._steering.after_step()

    @torch.no_grad()
    def step(self, loss: Tensor | float) -> None:
        """Takes note of a step that the optimizer has made; every `interval` calls it decides on the rates.

        Args:
            loss: of this step's batch, before the step: a tensor with one element, or a number; unscaled where a
                GradScaler is used.

        Raises:
            RuntimeError: not attached.
            TypeError, ValueError: no loss.
        """
        if self.optimizer is None:
            if self.events and self.events[-1]["what"].startswith("let go"):
                return
            raise RuntimeError("step needs an optimizer: call attach(optimizer) first")
        self._losses.append(_loss(loss))
        self._calls += 1
        if self._calls % self.interval == 0 and self._same_params():
            try:
                self._look()
            except _FAILURES as error:  # a training must not end because of what watches it
                self._let_go(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        """The end of an interval."""
        device = self._log_factors.device
        each = torch.stack([x.to(device).double() for x in self._losses])
        self._losses = []
        numbers = torch.stack([each.mean(), each.std(correction=0), each[0]])
        if self._processes() > 1:  # gradients are the same everywhere, losses are not
            dist.all_reduce(numbers, group=self._group)
            numbers /= self._processes()
        mean, spread = numbers[0].float(), numbers[1].float()
        rates = self._effective()
        if self._rest > 0 or self._given_up:
            self._rest -= 1
        else:
            progress = math.nan if self.total_steps is None else min(1.0, self._calls / self.total_steps)
            share = torch.full((), progress, device=device)  # filled there: nothing waits for the host
            change = self._decide(self._statistics.read(), rates, mean, spread, share)
            change = torch.where(change.isfinite(), change, 0.0).double()
            if self._processes() > 1 and device.type != "cpu":  # sums on a GPU have no order
                dist.all_reduce(change, group=self._group)
                change /= self._processes()
            self._move(self._log_factors + change)
        message = torch.cat([numbers, self._log_factors, rates])
        if device.type == "cpu":
            self._message = (None, message, self._calls)
            self._receive()
            return
        host = torch.empty(message.shape, dtype=message.dtype, pin_memory=True)
        host.copy_(message, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(device))
        self._message = (arrived, host, self._calls + self._lag)

    def _move(self, log_factors: Tensor) -> None:
        """New factors, inside the bounds of the rates."""
        base = self._means(self._steering.base())
        low, high = (torch.full_like(base, math.log(bound)) for bound in self.bounds)
        high = torch.minimum(high, self._ceiling)
        usual = base.clamp(min=1e-30).log()
        moved = torch.maximum(torch.minimum(usual + log_factors, high), torch.minimum(low, high)) - usual
        # A base rate of 0 (the first step of a warm-up) says nothing about the bounds.
        self._log_factors = torch.where(base > 0, moved, log_factors)
        self._factors = self._log_factors.exp()[self._units.segments]
        if not self._steering.on_host:
            self._steering.set(self._factors)

    def _receive(self) -> None:
        """What the host does at the end of an interval, once the device's numbers are there."""
        assert self._message is not None
        arrived, message, _ = self._message
        self._message = None
        if arrived is not None:
            arrived.synchronize()
        mean, _, first = message[:3].tolist()
        log_factors = message[3 : 3 + len(self.labels)]
        if self._steering.on_host:
            self._steering.set(log_factors.exp()[self._units.segments.cpu()])
        if math.isnan(self._first):
            self._first = first if math.isfinite(first) else mean
        self._since += 1
        guard = self.watchdog
        # Single batches scatter: short intervals are judged together.
        self._recent = [*self._recent, mean][-math.ceil(_JUDGED_STEPS / self.interval) :]
        usual = sum(self._recent) / len(self._recent)
        if guard is not None and guard.lost(usual, self._first, self._best):
            self._lost(guard, usual, message[3 + len(self.labels) :])
        elif math.isfinite(usual):
            if self._since * self.interval >= _JUDGED_STEPS:
                self._best = min(self._best, usual)
            self._good(guard)
        self._note()

    # ---- the guard

    def _good(self, guard: Watchdog | None) -> None:
        if guard is None or self._copies is None or self._since < guard.early:
            return
        assert self.optimizer is not None
        self._since = 0
        self._copies = Copies(self.optimizer, self.model) if guard.rewind is True else None

    def _lost(self, guard: Watchdog, mean: float, rates: Tensor) -> None:
        assert self.optimizer is not None
        if self._given_up:
            return
        best = "" if math.isinf(self._best) else f", best {self._best:.4g}"
        what = (
            "loss is not finite"
            if not math.isfinite(mean)
            else f"loss {mean:.4g} is lost (first {self._first:.4g}{best})"
        )
        event: dict[str, Any] = {"step": self._calls, "what": what, "rates": _shortened(rates), "rewound": False}
        self._losts += 1
        if self._copies is not None:
            self._copies.restore(self.optimizer, self.model)
            event["rewound"] = True
        if self._losts > guard.limit:
            event["what"] += f"; {guard.limit} times before: the base schedule from here on"
            self._ceiling.fill_(math.inf)
            self._put(torch.zeros_like(self._log_factors))
        else:
            device = self._ceiling.device
            used = self._means(rates.to(device))
            self._ceiling = torch.minimum(self._ceiling, (0.5 * used).clamp(min=self.bounds[0]).log())
            factors = self._log_factors
            self._put(torch.where(factors > 0, 0.0, factors + math.log(guard.cut)))
        self._rest, self._since, self._recent = guard.hold, 0, []
        self._begin(self._log_factors.device)
        self.events.append(event)

    def _put(self, log_factors: Tensor) -> None:
        self._move(log_factors)
        if self._steering.on_host:
            self._steering.set(self._factors.cpu())

    @property
    def _given_up(self) -> bool:
        return self.watchdog is not None and self._losts > self.watchdog.limit

    def _same_params(self) -> bool:
        """Whether the optimizer still has the parameters that it had; lets go of it if not."""
        assert self.optimizer is not None
        now = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(now) == len(self._params) and all(a is b for a, b in zip(now, self._params, strict=True)):
            return True
        self._let_go("the optimizer's parameters have changed")
        return False

    def _let_go(self, why: str) -> None:
        self.events.append({"step": self._calls, "what": f"let go: {why}", "rates": [], "rewound": False})
        self.detach()
        warnings.warn(
            f"{type(self).__name__} lets go of the optimizer, which goes on with its base rates: {why}. "
            "Attach a copy() to go on",
            RuntimeWarning,
            stacklevel=3,
        )

    # ---- what the user sees

    def _effective(self) -> Tensor:
        """The rate of every parameter, float64 `[parameters]`, on the device."""
        return self._steering.base() * self._factors

    def _means(self, values: Tensor) -> Tensor:
        """The mean of `[parameters]` over each unit, `[U]`."""
        return self._units.pool(values[:, None])[:, 0] / self._counts

    def _note(self) -> None:
        self._history.add(self._calls, [self._means(self._effective())])

    def lr(self) -> dict[str, float]:
        """The effective rates now, by label: "all", "group 0", ..., or the names (or numbers) of the parameters."""
        if self.optimizer is None:
            return {}
        return dict(zip(self.labels, self._means(self._effective()).tolist(), strict=True))

    @property
    def history(self) -> list[tuple[int, list[float]]]:
        """Effective rates over time, `[(step, rates), ...]` in the order of `labels`: at most 2,048, evenly thinned."""
        return self._history.read()

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as numbers, strings and tensors."""
        if self.optimizer is None:
            raise RuntimeError("state_dict needs an attached optimizer: call attach(optimizer) first")
        if self._message is not None:
            self._receive()
        return {
            "rule": type(self).__name__,
            "interval": self.interval,
            "per": self.per,
            "labels": list(self.labels),
            "calls": self._calls,
            "losses": [float(x) for x in self._losses],
            "log_factors": self._log_factors.clone(),
            "ceiling": self._ceiling.clone(),
            "recent": list(self._recent),
            "guard": [self._first, self._best, self._rest, self._losts, self._since],
            "copies": {} if self._copies is None else self._copies.state_dict(),
            "history": self.history,
            "events": [dict(event) for event in self.events],
            "own": self._rule_state(),
            "statistics": self._statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken. Attach it to the restored optimizer first.

        Raises:
            RuntimeError: not attached.
            ValueError: the state of another rule, or of other parameters.
        """
        if self.optimizer is None:
            raise RuntimeError("load_state_dict needs an optimizer: call attach(optimizer) first")
        mine = {"rule": type(self).__name__, "interval": self.interval, "per": self.per, "labels": list(self.labels)}
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"the state is of another controller: {name} {state.get(name)!r}, not {value!r}")
        device = self._log_factors.device
        self._calls = state["calls"]
        self._losses = [torch.tensor(x) for x in state["losses"]]
        self._log_factors = state["log_factors"].to(device).clone()
        self._ceiling = state["ceiling"].to(device).clone()
        self._first, self._best, self._rest, self._losts, self._since = state["guard"]
        self._recent = list(state["recent"])
        self._copies = Copies.of(state["copies"]) if state["copies"] else None
        self._history = RateHistory()
        for at, rates in state["history"]:
            self._history.add(at, list(rates))
        self.events = [dict(event) for event in state["events"]]
        self._factors = self._log_factors.exp()[self._units.segments]
        self._steering.set(self._factors.cpu() if self._steering.on_host else self._factors)
        self._message = None
        self._load_rule_state(state["own"])
        self._statistics.load_state_dict(state["statistics"])

    def _processes(self) -> int:
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self._group)


def _bounds(value: Any) -> tuple[float, float]:
    try:
        low, high = (float(x) for x in value)
    except (TypeError, ValueError):
        raise TypeError(f"lr_bounds must be (lowest, highest), got {value!r}") from None
    if not 0 < low < high < math.inf:
        raise ValueError(f"lr_bounds must be positive and ascending, got {value!r}")
    return low, high


def _labels(optimizer: torch.optim.Optimizer, per: str) -> tuple[list[str], list[int]]:
    """Names of the units, and the unit of every parameter."""
    groups = [len(group["params"]) for group in optimizer.param_groups]
    if per == "global":
        return ["all"], [0] * sum(groups)
    if per == "group":
        return [f"group {i}" for i in range(len(groups))], [i for i, size in enumerate(groups) for _ in range(size)]
    names: list[str] = []
    for group in optimizer.param_groups:
        names += group.get("param_names") or [str(len(names) + i) for i in range(len(group["params"]))]
    return names, list(range(len(names)))


def _loss(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"loss must have one element, got shape {tuple(value.shape)}")
        return value.detach().reshape(())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"loss must be a tensor or a number, got {type(value).__name__}")
    return torch.tensor(float(value))


def _shortened(rates: Sequence[float] | Tensor) -> list[float]:
    listed = rates.tolist() if isinstance(rates, Tensor) else list(rates)
    return sorted({float(f"{rate:.3g}") for rate in listed})[:8]
