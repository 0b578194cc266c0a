"""Small problems in float64, and hypergradients by finite differences that use nothing but `torch.optim`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 20
SPACES = {
    "log": (torch.log, torch.exp),
    "log1m": (lambda x: torch.log(1 - x), lambda u: 1 - torch.exp(u)),
    "logit": (torch.logit, torch.sigmoid),
    "linear": (torch.clone, torch.clone),
}
SPACE_OF = {"lr": "log", "weight_decay": "log", "eps": "log"}  # others: log1m


@dataclass
class Case:
    """An optimizer by name, its options, and what is tuned."""

    optimizer: str
    options: dict[str, Any]
    tuned: tuple[str, ...]
    flags: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.optimizer, *self.flags, *([] if self.options.get("momentum") else ["plain"])])


SGD = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02}
ADAM = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.05}
ADAM_TUNED = ("lr", "beta1", "beta2", "eps", "weight_decay")
CASES = [
    Case("SGD", {"lr": 0.1, "weight_decay": 0.02}, ("lr", "weight_decay")),
    Case("SGD", {**SGD, "dampening": 0.3}, ("lr", "momentum", "dampening", "weight_decay")),
    Case("SGD", SGD, ("lr", "momentum", "weight_decay"), {"nesterov": True}),
    Case("Adam", ADAM, ADAM_TUNED),
    Case("Adam", ADAM, ADAM_TUNED, {"amsgrad": True}),
    Case("AdamW", ADAM, ADAM_TUNED),
    Case("AdamW", ADAM, ADAM_TUNED, {"amsgrad": True, "maximize": True}),
]


class Problem:
    """A perceptron with 23 weights, 20 batches, a validation batch, and a loss with tensors to tune."""

    def __init__(self, sign: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.batches = [(normal(6, 3), normal(6, 2)) for _ in range(STEPS)]
        self.val = (normal(8, 3), normal(8, 2))
        self.weights = [normal(3, 3) * 0.6, normal(3) * 0.1, normal(2, 3) * 0.6, normal(2) * 0.1]
        self.sign = sign

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        with torch.no_grad():
            for param, value in zip(model.parameters(), self.weights, strict=True):
                param.copy_(value)
        return model

    def loss(self, model: nn.Module, tensors: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss = F.mse_loss(model(x), y)
        if "l2" in tensors:  # a weight of the penalty for each parameter
            loss = loss + sum(w * p.square().sum() for w, p in zip(tensors["l2"], model.parameters(), strict=True))
        if "shift" in tensors:
            loss = loss + tensors["shift"] * F.smooth_l1_loss(model(x * (1 + tensors["shift"])), y)
        return self.sign * loss

    def val_loss(self, model: nn.Module) -> Tensor:
        x, y = self.val
        return F.mse_loss(model(x), y) + 0.1 * model(x).square().mean()


def optimizer(case: Case, model: nn.Module, package: Any = torch.optim, per_tensor: bool = False) -> Any:
    params = [{"params": [p]} for p in model.parameters()] if per_tensor else model.parameters()
    return getattr(package, case.optimizer)(params, **case.options, **case.flags)


def train(problem: Problem, case: Case, tensors: dict[str, Tensor], change: Callable[[Any], None] | None) -> float:
    """The validation loss after training by plain PyTorch; `change` edits the optimizer's groups first."""
    model = problem.model()
    opt = optimizer(case, model, per_tensor=True)
    if change is not None:
        change(opt)
    for x, y in problem.batches:
        opt.zero_grad()
        problem.loss(model, tensors, x, y).backward()
        opt.step()
    with torch.no_grad():
        return float(problem.val_loss(model))


def read(group: dict[str, Any], name: str) -> float:
    return group["betas"][int(name[-1]) - 1] if name.startswith("beta") else group[name]


def write(group: dict[str, Any], name: str, value: float) -> None:
    if name.startswith("beta"):
        betas = list(group["betas"])
        betas[int(name[-1]) - 1] = value
        group["betas"] = tuple(betas)
    else:
        group[name] = value


def difference(f: Callable[[float], float], h: float = 2e-3) -> float:
    """f'(0) to sixth order."""
    return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (60 * h)


def option_difference(problem: Problem, case: Case, name: str, unit: int | None, h: float = 2e-3) -> float:
    """dV / d option in its space; `unit`: of one parameter's group alone."""
    raw, value = SPACES[SPACE_OF.get(name, "log1m")]

    def at(shift: float) -> float:
        def change(opt: Any) -> None:
            for index, group in enumerate(opt.param_groups):
                if unit is None or index == unit:
                    start = torch.tensor(read(group, name), dtype=torch.float64)
                    write(group, name, float(value(raw(start) + shift)))

        return train(problem, case, {}, change)

    return difference(at, h)


def tensor_difference(
    problem: Problem, case: Case, tensors: dict[str, Tensor], name: str, unit: int, space: str
) -> float:
    """dV / d one element of a tensor, in its space."""
    raw, value = SPACES[space]

    def at(shift: float) -> float:
        moved = raw(tensors[name].detach()).clone()
        moved.view(-1)[unit] += shift
        return train(problem, case, {**{k: v.detach() for k, v in tensors.items()}, name: value(moved)}, None)

    return difference(at)


def hypergradient(
    problem: Problem,
    case: Case,
    tune: list[Any],
    method: Any,
    *,
    tensors: dict[str, Tensor] | None = None,
    package: Any = torch.optim,
    **options: Any,
) -> dict[str, list[float]]:
    """What the tuner finds after the 20 steps."""
    from metafast.tune import OnlineTuner

    model = problem.model()
    opt = optimizer(case, model, package)
    tuner = OnlineTuner(
        model,
        opt,
        tune=tune,
        val_loader=[problem.val],
        method=method,
        every=STEPS,
        val_loss=lambda model, x, y: problem.val_loss(model),
        **options,
    )
    for x, y in problem.batches:
        tuner.step(lambda x, y: problem.loss(model, tensors or {}, x, y), x, y)
    return {name: tuned.hypergradients[-1][1] for name, tuned in tuner.state.items()}
