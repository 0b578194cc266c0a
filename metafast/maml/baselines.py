"""What a meta-learner must beat: fine-tuning from random and from pre-trained weights, ProtoNet, a linear probe.

Each baseline is an algorithm of this package, so `evaluate` and `Trainer` take it as they take MAML.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast._checks import integer
from metafast.innerloop._meta import meta_loss, without
from metafast.maml._evaluate import Evaluation, evaluate, first_tasks, to_model
from metafast.maml._learner import MetaLearner
from metafast.maml._maml import ANIL, FOMAML
from metafast.maml._metrics import per_task
from metafast.maml._modules import check_batch, check_examples, head_of
from metafast.maml._parallel import meta_gradient
from metafast.maml._protomaml import ProtoMAML

if TYPE_CHECKING:
    from metafast.data import TaskBatch

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
BASELINES = {
    "random": "random initialization, fine-tuned",
    "pretrained": "supervised pre-training, fine-tuned",
    "probe": "supervised pre-training, linear probe",
    "protonet": "ProtoNet",
}


class ProtoNet(ProtoMAML):
    r"""Prototypical network: the class whose mean feature is nearest, without adaptation.

    \(p(y=j|x) \propto \exp(-|f(x) - c_j|^2)\) with the mean feature \(c_j\) of class j's support examples.

    Args:
        model: a classifier whose last layer, an `nn.Linear` with bias, gives way to the prototypes.
        head: name of the last layer. Default: the last registered one that has parameters.
        options: as in `MAML`, but for what concerns the inner loop.

    Example:
        >>> import torch, metafast
        >>> net = ProtoNet(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
        >>> x, y = torch.randn(6, 10, 4), torch.arange(10).remainder(2).expand(6, 10)
        >>> loss, metrics = net(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()

    Source:
        J. Snell, K. Swersky, R. Zemel, Prototypical Networks for Few-shot Learning, NeurIPS 2017.
    """

    def __init__(self, model: nn.Module, *, head: str | None = None, **options: Any) -> None:
        super().__init__(model, 0.0, 1, head=head, **options)

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """As `MAML`'s; `steps` changes nothing."""
        check_batch(batch)
        batch.validate(self.model.get_submodule(self.head).out_features)  # type: ignore[arg-type]
        losses, logits = self._losses(batch)
        _, dropped = meta_loss(losses.detach(), task_weights, self.on_nan, batch)
        weights = torch.full_like(losses, 1 / len(losses)) if task_weights is None else task_weights.to(losses)
        each = losses
        if dropped:  # once more, with constants in their place: 0 times NaN would reach the others
            weights = without(task_weights, dropped, len(losses), losses.device).to(losses)
            each = torch.where(weights != 0, self._losses(batch, dropped)[0], 0)
        metrics = per_task(logits, batch.query_y, batch.query_mask, batch.classes)
        found = {"loss": losses.detach(), **metrics, "logits": logits.detach(), "dropped": dropped}
        return (each * weights).sum(), found

    def _losses(self, batch: TaskBatch, constant: Collection[int] = ()) -> tuple[Tensor, Tensor]:
        """Query losses `[T]` and logits `[T, Q, C]`; those of the tasks in `constant` have no gradient."""
        heads = self._start(batch.support_x, batch.support_y, batch.support_mask, batch.classes, constant)
        parts = []
        for task in range(len(batch)):
            x, head = batch.query_x[task], (heads[f"{self.head}.weight"][task], heads[f"{self.head}.bias"][task])
            with torch.set_grad_enabled(torch.is_grad_enabled() and task not in constant):
                if batch.query_mask is None:
                    parts.append(F.linear(self._features(x, f"query_x of task {task}"), *head))
                else:
                    parts.append(self._masked(x, batch.query_mask[task], *head, f"query_x of task {task}"))
        logits = masked = torch.stack(parts)
        if batch.classes is not None:
            outside = torch.arange(logits.shape[-1], device=logits.device) >= batch.classes[:, None, None]
            masked = logits.masked_fill(outside, -torch.inf)
        each = F.cross_entropy(masked.flatten(0, 1), batch.query_y.flatten(), reduction="none").view(logits.shape[:2])
        if batch.query_mask is None:
            return each.mean(1), logits
        valid = batch.query_mask
        return torch.where(valid, each, 0).sum(1) / valid.sum(1).clamp(min=1), logits

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """The model with the prototypes of `x` and `y` as its last layer."""
        check_examples(x, y)
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            start = self._start(x.unsqueeze(0), y.unsqueeze(0), None, None)
            layer: Any = model.get_submodule(self.head)
            layer.weight.copy_(start[f"{self.head}.weight"][0])
            layer.bias.copy_(start[f"{self.head}.bias"][0])
        self._finish_copy(model, 1)
        return model

    def trajectory(self, batch: TaskBatch, steps: int | None = None) -> Iterator[dict[str, Any]]:
        """Its metrics again and again: steps change nothing."""
        metrics = self(batch)[1]
        for _ in range((self.steps if steps is None else steps) + 1):
            yield metrics

    def _masked(self, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, name: str) -> Tensor:
        logits = F.linear(self._features(x[mask], name), weight, bias)
        return logits.new_zeros(len(x), logits.shape[1]).masked_scatter(mask[:, None], logits)


def pretrain(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
    head: str | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Supervised training on all classes at once; the head is replaced for it and starts from zero afterwards.

    Args:
        model: a classifier whose last layer is an `nn.Linear`; it is not changed.
        x: examples `[N, ...]` of the training classes.
        y: class numbers `[N]`, or targets for a regression, whose head is trained too and kept.
        steps: of Adam. Default 2000.
        batch_size: examples per step. Default 128.
        lr: Adam's rate, which goes down to 0 as a half cosine. Default 1e-3.
        head: name of the last layer. Default: the last registered one that has parameters.
        seed: of the batches and the wide head.
        progress: called with the step and its loss.

    Returns:
        A copy with the trained body.

    Example:
        >>> body = pretrain(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)),
        ...                 torch.randn(64, 4), torch.randint(0, 5, (64,)), steps=3)
        >>> body[2].weight.shape, bool(body[2].weight.any())
        (torch.Size([2, 8]), False)
    """
    steps, batch_size = integer("steps", steps, minimum=1), integer("batch_size", batch_size, minimum=1)
    trained = copy.deepcopy(model)
    name = head_of(trained, head)
    layer = trained.get_submodule(name)
    classes = not y.is_floating_point()
    if classes:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"head {name!r} must be an nn.Linear, got {type(layer).__name__}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wide = nn.Linear(layer.in_features, int(y.max()) + 1).to(layer.weight)
        _replace(trained, name, wide)
    optimizer = torch.optim.Adam(trained.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    device = next(trained.parameters()).device
    trained.train()
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (min(batch_size, len(x)),), generator=generator).to(x.device)
        outputs, targets = trained(x[rows].to(device)), y[rows].to(device)
        loss = F.cross_entropy(outputs, targets) if classes else F.mse_loss(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()))
    if classes:
        fresh = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.zero_()
        _replace(trained, name, fresh)
    return trained


def choose_rate(
    make: Callable[[float], MetaLearner], val: Iterable[TaskBatch], *, rates: Sequence[float] = RATES, n: int = 100
) -> tuple[MetaLearner, float]:
    """The learner whose rate does best on n validation episodes.

    Args:
        make: a learner from an inner rate; it should drop tasks that diverge (`on_nan="drop"`).
        val: validation episodes.
        rates: to choose from.
        n: episodes. Default 100.

    Returns:
        The learner and its rate.
    """
    best: tuple[float, MetaLearner, float] | None = None
    problem = ""
    for rate in rates:
        learner = make(rate)
        try:
            result = evaluate(learner, val, n)
        except ValueError as error:  # every task diverged: no rate to choose
            problem = str(error)
            continue
        score = result.score.mean if result.metric == "accuracy" else -result.score.mean
        if score == score and (best is None or score > best[0]):
            best = score, learner, rate
    if best is None:
        raise ValueError(f"no rate of {tuple(rates)} gave a finite loss; {problem}")
    return best[1], best[2]


@dataclass(frozen=True)
class Baseline:
    """One baseline's result: its name in words, the test evaluation, and the settings chosen on validation episodes."""

    title: str
    result: Evaluation
    settings: dict[str, Any]


def run_baselines(
    model: nn.Module,
    train: Any,
    val: Iterable[TaskBatch],
    test: Iterable[TaskBatch],
    *,
    steps: int = 10,
    training_steps: int = 2000,
    episodes: int = 600,
    val_episodes: int = 100,
    which: Sequence[str] = tuple(BASELINES),
    seed: int = 0,
    per_step: bool = False,
    done: Callable[[Baseline], None] | None = None,
    **options: Any,
) -> dict[str, Baseline]:
    """Train and test the baselines on the same episodes as a meta-learner; rates are chosen on validation episodes.

    Args:
        model: freshly initialized; it is not changed. A regression model has no ProtoNet.
        train: training episodes, with `examples()` for the supervised ones.
        val: validation episodes.
        test: test episodes.
        steps: of fine-tuning. Default 10; the linear probe takes ten times as many.
        training_steps: of the supervised training, and of ProtoNet's. Default 2000.
        episodes: test episodes. Default 600.
        val_episodes: for each rate that is tried. Default 100.
        which: names out of `BASELINES`.
        seed: of the trainings.
        per_step: also measure after each step of fine-tuning.
        done: called with each result as it comes.
        options: of the learners, such as `loss="mse"` or `engine`.

    Returns:
        The results by name.

    Raises:
        ValueError: an unknown name.
    """
    unknown = set(which) - set(BASELINES)
    if unknown:
        raise ValueError(f"which must be names out of {list(BASELINES)}, got {sorted(unknown)}")
    options = {"on_nan": "drop", **options}
    regression = options.get("loss") == "mse"
    results: dict[str, Baseline] = {}

    def finish(name: str, learner: MetaLearner, **settings: Any) -> None:
        result = evaluate(learner, test, episodes, per_step=per_step and 1 < learner.steps <= 20)
        results[name] = Baseline(BASELINES[name], result, settings)
        if done is not None:
            done(results[name])

    def tune(name: str, start: nn.Module, kind: type[MetaLearner], count: int) -> None:
        def make(rate: float) -> MetaLearner:
            return kind(copy.deepcopy(start), rate, count, **options)

        learner, rate = choose_rate(make, val, n=val_episodes)
        finish(name, learner, steps=count, inner_lr=rate)

    if "random" in which:
        tune("random", model, FOMAML, steps)
    if "pretrained" in which or "probe" in which:
        body = pretrain(model, *_examples(train, regression, seed), steps=training_steps, seed=seed)
        if "pretrained" in which:
            tune("pretrained", body, FOMAML, steps)
        if "probe" in which:
            tune("probe", body, ANIL, 10 * steps)
    if "protonet" in which and not regression:
        kept = {key: value for key, value in options.items() if key in ("batch_norm", "seed", "on_nan")}
        finish("protonet", train_protonet(model, train, training_steps, **kept), training_steps=training_steps)
    return results


def train_protonet(
    model: nn.Module, train: Iterable[TaskBatch], steps: int, lr: float = 1e-3, **options: Any
) -> ProtoNet:
    """A ProtoNet trained on episodes by Adam with a cosine schedule.

    Args:
        model: freshly initialized; it is not changed.
        train: training episodes.
        steps: meta-steps.
        lr: Adam's rate. Default 1e-3.
        options: of `ProtoNet`.

    Returns:
        The network.
    """
    net = ProtoNet(copy.deepcopy(model), **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    taken = 0
    while taken < steps:
        before = taken
        for batch in train:
            meta_gradient(net, to_model(net, batch))
            optimizer.step()
            schedule.step()
            taken += 1
            if taken == steps:
                break
        if taken == before:
            raise ValueError("train must give at least one batch of tasks, it gave none")
    return net


def _examples(train: Any, regression: bool, seed: int) -> tuple[Tensor, Tensor]:
    """All training examples: those behind the episodes, or those of many regression tasks together."""
    if not regression:
        x, y = train.examples()
        return x, y
    batches = list(first_tasks(train, 2000))
    x = torch.cat([part for b in batches for part in (b.support_x.flatten(0, 1), b.query_x.flatten(0, 1))])
    y = torch.cat([part for b in batches for part in (b.support_y.flatten(0, 1), b.query_y.flatten(0, 1))])
    return x, y


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, layer)


__all__ = [
    "BASELINES", "Baseline", "ProtoNet", "choose_rate", "pretrain", "run_baselines",
    "train_protonet",
]  # fmt: skip
