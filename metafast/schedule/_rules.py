"""Other rules behind the same `attach`: hypergradients, and MLR-SNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer, positive
from metafast.models._small import _seeded
from metafast.schedule import _features
from metafast.schedule._rule import RateRule


class Hypergradient(RateRule):
    """Moves the log rate by the cosine between gradient and last update, at the end of every interval.

    The same rule as `hypergrad="..."` of `metafast.optim`, for any optimizer and with the watchdog, from one step in
    `interval`; with `interval=1` it is that rule, one step late.

    Args:
        hyper_lr: change of the log rate for a cosine of 1. Default 0.5.

    Raises:
        TypeError, ValueError: not a positive number.

    Example:
        >>> import torch
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)
        >>> rule = Hypergradient(0.2).attach(opt, interval=2)
        >>> rule.lr()
        {'all': 0.1}

    Source:
        Baydin et al., Online learning rate adaptation with hypergradient descent, ICLR 2018.
    """

    def __init__(self, hyper_lr: float = 0.5) -> None:
        super().__init__()
        self.hyper_lr = positive("hyper_lr", hyper_lr)

    def _begin(self, device: torch.device) -> None:
        pass

    def _decide(self, table: Tensor, rates: Tensor, mean: Tensor, spread: Tensor, progress: Tensor) -> Tensor:
        gg, gu, uu, _ = self._units.pool(table).unbind(-1)
        return self.hyper_lr * _features.cosine(gg, gu, uu).nan_to_num(0.0)


class MLRSNet(RateRule):
    """MLR-SNet: a rate by an LSTM of the loss alone, which learns during the training, one step ahead on held-out data.

        h, c <- LSTM(loss);   lr = max_lr * sigmoid(w . h + b)

    At the end of every `every`-th interval, the network's own gradient comes from the step that was just made: with the
    validation gradient g' at the new weights, d L_val / d lr = -g' . u, which is carried through one LSTM step. The
    update u is what the weights have moved by, so no second backward pass through the training loss is needed. There is
    one rate for all; the groups' base rates only say what the factors multiply.

    Args:
        val_loss: computes a loss on held-out data with the model as it is now; called under autograd.
        max_lr: highest rate.
        hidden: size of the LSTM. Default 50.
        meta_lr: rate of Adam on the network. Default 1e-3.
        every: intervals between two updates of the network. Default 10.
        seed: of the network. Default 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value.

    Example:
        >>> import torch
        >>> model, x, y = torch.nn.Linear(2, 2), torch.randn(8, 2), torch.randint(2, (8,))
        >>> opt = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> rule = MLRSNet(lambda: torch.nn.functional.cross_entropy(model(x), y), max_lr=0.5)
        >>> rule.attach(opt, interval=1).lr()["all"]
        0.1

    Source:
        Shu, Meng, Xu et al., MLR-SNet: Transferable LR schedules for heterogeneous tasks, TPAMI 2022 (Algorithm 1).
    """

    def __init__(
        self,
        val_loss: Callable[[], Tensor],
        max_lr: float,
        *,
        hidden: int = 50,
        meta_lr: float = 1e-3,
        every: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(val_loss):
            raise TypeError(f"val_loss must be callable, got {type(val_loss).__name__}")
        self.val_loss, self.max_lr = val_loss, positive("max_lr", max_lr)
        self.every = integer("every", every, minimum=1)
        positive("meta_lr", meta_lr)
        with _seeded(seed):
            self.cell = torch.nn.LSTMCell(1, hidden)
            self.head = torch.nn.Linear(hidden, 1)
        self.meta_optimizer = torch.optim.Adam([*self.cell.parameters(), *self.head.parameters()], lr=meta_lr)

    def attach(self, optimizer: torch.optim.Optimizer, **options: Any) -> MLRSNet:
        """As `LRController.attach`, with one rate for all."""
        if options.setdefault("per", "global") != "global":
            raise ValueError(f'per must be "global" for MLR-SNet, got {options["per"]!r}')
        super().attach(optimizer, **options)
        return self

    def _begin(self, device: torch.device) -> None:
        self.cell.to(device)
        self.head.to(device)
        self._memory = torch.zeros(2, 1, self.cell.hidden_size, device=device)
        self._looked = 0

    def _decide(self, table: Tensor, rates: Tensor, mean: Tensor, spread: Tensor, progress: Tensor) -> Tensor:
        moving = self._looked % self.every == 0
        self._looked += 1
        with torch.enable_grad():
            h, c = self.cell(mean.reshape(1, 1), (self._memory[0], self._memory[1]))
            rate = self.max_lr * self.head(h).sigmoid().squeeze()
            if moving and mean.isfinite():
                self._learn(rate)
        self._memory = torch.stack([h, c]).detach()
        now = self._means(rates)
        return (rate.detach().double().clamp(*self.bounds) / now.clamp(min=1e-30)).log().reshape(1)

    def _learn(self, rate: Tensor) -> None:
        """One step of the network: by how much a larger rate of the last step would have changed the held-out loss."""
        assert self.optimizer is not None
        params = [p for p in self._params if p.requires_grad]
        grads = torch.autograd.grad(self.val_loss(), params, allow_unused=True)
        direction = self._last_direction(params)
        if direction is None:
            return
        slope = sum((g.float() * u).sum() for g, u in zip(grads, direction, strict=True) if g is not None)
        if not isinstance(slope, Tensor) or not bool(slope.isfinite()):
            return
        self.meta_optimizer.zero_grad()
        (-slope * rate).backward()
        self.meta_optimizer.step()

    def _last_direction(self, params: list[Tensor]) -> list[Tensor] | None:
        """u of the last step, from the optimizer's states: what its rate multiplied."""
        assert self.optimizer is not None
        found = []
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                state = self.optimizer.state.get(p, {})
                if "exp_avg" in state and "exp_avg_sq" in state:
                    b1, b2 = group["betas"]
                    t = float(state["step"])
                    m, v = state["exp_avg"].float() / (1 - b1**t), state["exp_avg_sq"].float() / (1 - b2**t)
                    found.append(m / (v.sqrt() + group["eps"]))
                elif state.get("momentum_buffer") is not None:
                    found.append(state["momentum_buffer"].float())
                elif p.grad is not None:
                    found.append(p.grad.float())
                else:
                    return None
        return found

    def _rule_state(self) -> dict[str, Any]:
        return {
            "cell": {k: v.clone() for k, v in self.cell.state_dict().items()},
            "head": {k: v.clone() for k, v in self.head.state_dict().items()},
            "meta": self.meta_optimizer.state_dict(),
            "memory": self._memory.clone(),
            "looked": self._looked,
        }

    def _load_rule_state(self, state: dict[str, Any]) -> None:
        self.cell.load_state_dict(state["cell"])
        self.head.load_state_dict(state["head"])
        self.meta_optimizer.load_state_dict(state["meta"])
        self._memory, self._looked = state["memory"].clone(), state["looked"]
