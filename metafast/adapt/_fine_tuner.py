"""A meta-network that makes the updates which fine-tune a frozen model on a new task."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.adapt import _file as file
from metafast.adapt._backbone import Backbone, freeze
from metafast.adapt._choice import Adapt, sites
from metafast.adapt._loop import Course, Loop, key
from metafast.adapt._losses import LOSSES, measures
from metafast.adapt._net import MetaNetwork, parse
from metafast.adapt._report import Report, report_of
from metafast.adapt._sites import Site
from metafast.adapt._task_model import TaskModel
from metafast.adapt._tasks import check_two_classes, class_count, one_task
from metafast.adapt._tree import Tree
from metafast.innerloop._attach import Attach
from metafast.innerloop._call import take_tasks
from metafast.maml._modules import check_batch, check_examples
from metafast.maml._task_learner import TaskLearner
from metafast.maml.trainer import Trainer, Training

if TYPE_CHECKING:
    from metafast.data import TaskBatch

ON_NAN = ("raise", "drop")
# Rates live in log space and starts are few numbers: they learn this much faster than the networks.
FAST = 10.0


class MetaFineTuner(TaskLearner):
    r"""Learns to fine-tune a frozen model on few examples in a few steps.

    Every task has numbers of its own at chosen modules of the model (adapters) and a new head. From starts that are
    learned, or read off the support set, K steps follow the gradients of the support loss as a small network
    transforms and scales them. That network and the starts are all that `parameters()` has, and all that meta-training
    changes: the query loss after the K steps is differentiated to them. All tasks go through the frozen model in one
    batch; what comes before the first adapted module is computed once for all steps.

    Args:
        base: what `freeze` returns, or a model for it.
        adapt: what adapts beside the head: `"lora:r=4"`, `"film"`, `"bias"` (and normalizations), `"norm"`, `"head"`
            (nothing else), `"last"` (the last block), `"all"`, or name patterns of modules and their kinds such as
            `{"*.query": "lora:r=8", "*LayerNorm": "norm"}`.
        net: the parts of the network, joined by `+`: `"alfa"` (rates and decays), `"mend"`, `"conv"`, `"transformer"`,
            `"rnn"` (edit the factors of gradients), `"init"` (prototypes as the head, adapters read off the support
            set), `"coordinate"` (a rule for every number). None: plain gradient descent.
        ways: classes of the head, where they mean the same in all tasks: then its start is learned too. Default: as
            many as a task has, from a head of zeros.
        steps: K. Default 5.
        inner_lr: rate of the gradient steps; with `"alfa"` where it starts. Default 0.01.
        order: of the meta-gradient: 2 differentiates the inner gradients, 1 takes them as constants.
        loss: `"cross_entropy"`, or `"span"` for question answering: the base gives `[N, L, D]` and labels are
            `start * L + end`.
        meta_lr: rate of meta-training's Adam, ten times as high for rates and starts. Default 1e-4.
        weight_decay: its L2. Default 1e-4, on the network's matrices.
        dropout: in the network, while it learns. Default 0.5.
        hidden: width of the network's layers between features, or factors of gradients, and what is made of them: how
            compact it is. Default 8.
        chunk: tasks at once; more are taken one chunk after another, with the memory of one. Default: all.
        on_nan: "raise" where the loss of a task is not finite, or "drop" such tasks.
        seed: of the network's weights and LoRA's starts.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: one out of range, an unknown kind or part, or patterns that match nothing.

    Example:
        >>> import torch, metafast
        >>> from metafast.adapt import MetaFineTuner, freeze
        >>> base = freeze(torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)))
        >>> meta = MetaFineTuner(base, adapt="lora:r=2", net="alfa+mend", steps=2)
        >>> x, y = torch.randn(6, 10, 4), torch.arange(10).remainder(2).expand(6, 10)
        >>> loss, metrics = meta(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()
        >>> meta.adapt(x[0], y[0])(x[0]).shape
        torch.Size([10, 2])

    Source:
        S. Baik et al., ALFA, NeurIPS 2020; E. Mitchell et al., MEND, ICLR 2022; E. Hu et al., LoRA, ICLR 2022.
    """

    def __init__(
        self,
        base: Backbone | nn.Module,
        adapt: Adapt = "lora:r=4",
        net: str | None = "alfa+mend",
        *,
        ways: int | None = None,
        steps: int = 5,
        inner_lr: float = 0.01,
        order: int = 2,
        loss: str = "cross_entropy",
        meta_lr: float = 1e-4,
        weight_decay: float = 1e-4,
        dropout: float = 0.5,
        hidden: int = 8,
        chunk: int | None = None,
        on_nan: str = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        base = base if isinstance(base, Backbone) else freeze(base)
        choices: tuple[tuple[str, Any, tuple[Any, ...]], ...]
        choices = (("order", order, (1, 2)), ("loss", loss, LOSSES), ("on_nan", on_nan, ON_NAN))
        for name, value, allowed in choices:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        _check_number("inner_lr", inner_lr, "above 0", lambda value: value > 0)
        _check_number("meta_lr", meta_lr, "above 0", lambda value: value > 0)
        _check_number("dropout", dropout, "in [0, 1)", lambda value: 0 <= value < 1)
        _check_number("weight_decay", weight_decay, "at least 0", lambda value: value >= 0)
        if base.sequence != (loss == "span"):
            needed = (
                "features of every token: freeze(model, pool=None)" if loss == "span" else "one feature per example"
            )
            raise ValueError(f"loss={loss!r} needs a base with {needed}")
        self.steps = integer("steps", steps, minimum=1)
        self.chunk = None if chunk is None else integer("chunk", chunk, minimum=1)
        self.seed = integer("seed", seed, minimum=0)
        self.hidden = integer("hidden", hidden, minimum=1)
        self.ways = 2 if loss == "span" else None if ways is None else integer("ways", ways, minimum=2)
        self.inner_lr, self.order, self.loss, self.on_nan = float(inner_lr), order, loss, on_nan
        self.meta_lr, self.weight_decay, self.dropout = float(meta_lr), float(weight_decay), float(dropout)
        self.adapt_spec, self.parts = adapt, parse(net)
        if "init" in self.parts and loss == "span":
            raise ValueError('net: "init" makes prototypes of classes, which spans have not; leave it out')
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            found = sites(base.model, adapt)
            self.starts = nn.ParameterDict(
                {key(site, name): value for site in found for name, value in site.start().items()}
            )
            self.net = MetaNetwork(self.parts, found, base.width, self.steps, self.inner_lr, self.dropout, self.hidden)
        self.base = base
        like = next(base.parameters())
        self.head = None
        if self.ways is not None:
            self.head = nn.ParameterDict({"weight": torch.zeros(self.ways, base.width), "bias": torch.zeros(self.ways)})
        self._tree = (Tree(base, found),)  # not a module of this one: the frozen model is nobody's state
        self.net.to(like)
        self.starts.to(like)
        if self.head is not None:
            self.head.to(like)

    # ---- the frozen model is used, not owned

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "base":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, function: Any, recurse: bool = True) -> MetaFineTuner:
        super()._apply(function, recurse)
        for tree in self._tree:
            tree.apply(function)
        return self

    @property
    def tree(self) -> Tree:
        """The frozen model with its sites."""
        return self._tree[0]

    @property
    def sites(self) -> list[Site]:
        """Where the model adapts."""
        return self.tree.sites

    # ---- use

    def forward(
        self, batch: TaskBatch, *, steps: int | None = None, task_weights: Tensor | None = None, first_task: int = 0
    ) -> tuple[Tensor, dict[str, Any]]:
        """The query loss after adaptation, mean over tasks, and what each task reached.

        Args:
            batch: support and query sets of T tasks.
            steps: of adaptation; default those of the learner. Learned rates go on with those of the last step.
            task_weights: `[T]`; default 1 / T each.
            first_task: does not matter here.

        Returns:
            `(loss, metrics)`; `loss.backward()` gives the meta-gradient, once. `metrics` has, without gradients: "loss"
            and "accuracy" `[T]` (of spans: both ends right), "support_losses" `[T, K]`, "query_losses" `[T, K + 1]`,
            NaN but for the last, "logits" `[T, Q, C]`, "dropped".

        Raises:
            ValueError: arguments that do not fit, labels beyond the head, a task with one class, or a loss that is not
                finite with `on_nan="raise"`.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        classes = self._check(batch)
        tasks = len(batch)
        share = torch.full((tasks,), 1 / tasks, dtype=torch.float64) if task_weights is None else task_weights.double()
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        order = self.order if torch.is_grad_enabled() and learned else 0
        loop, size = self._loop(), self.chunk or tasks
        apart = order > 0 and size < tasks
        courses, dropped, kept_share = [], [], 0.0
        total: Any = 0.0
        grads = [torch.zeros_like(parameter) for parameter in learned] if apart else []
        for begin in range(0, tasks, size):
            part, weights = batch[begin : begin + size], share[begin : begin + size]
            course = loop.run(part, steps, order, classes)
            courses.append(course)
            losses, wrong = course.losses, ~course.losses.detach().isfinite().cpu() & (weights != 0)
            if bool(wrong.any()):
                dropped += [begin + int(t) for t in wrong.nonzero().flatten()]
                self._complain(dropped, tasks, course.losses.detach(), begin)
                rest = [t for t in range(len(part)) if not wrong[t]]
                if not rest:
                    continue
                weights = weights[rest]
                losses = (
                    self._loop().run(take_tasks(part, rest), steps, order, classes).losses if order else losses[rest]
                )
            value = (losses * weights.to(losses)).sum()
            kept_share += float(weights.sum())
            if apart:
                found = torch.autograd.grad(value, learned, allow_unused=True)
                for grad, more in zip(grads, found, strict=True):
                    if more is not None:
                        grad += more
                value = value.detach()
            total = total + value
        scale = float(share.sum()) / kept_share if dropped else 1.0
        total = total * scale
        if apart:
            total = Attach.apply(
                total, lambda grad, *all_: [each * grad for each in all_], [g * scale for g in grads], *learned
            )
        return total, {**self._metrics(batch, courses), "dropped": dropped}

    @torch.no_grad()
    def before(self, batch: TaskBatch) -> dict[str, Any]:
        """The metrics of `forward` at the start, before any step.

        Args:
            batch: as in `forward`.
        """
        return next(iter(self.trajectory(batch, 1)))

    @torch.no_grad()
    def trajectory(self, batch: TaskBatch, steps: int | None = None) -> Iterator[dict[str, Any]]:
        """The metrics of `forward` before adaptation and after each step, in one adaptation.

        Args:
            batch: as in `forward`.
            steps: of adaptation; default those of the learner.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        classes, size = self._check(batch), self.chunk or len(batch)
        parts = [batch[begin : begin + size] for begin in range(0, len(batch), size)]
        courses = [self._loop().run(part, steps, 0, classes, every=True) for part in parts]
        for step in range(steps + 1):
            yield self._metrics(batch, courses, step)

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> TaskModel:
        """The model adapted to one task.

        Args:
            x: support examples `[S, ...]`.
            y: their labels `[S]`.
            steps: default those of the learner.

        Returns:
            An ordinary module from examples to logits; its `merge()` folds the adapters into the weights.

        Raises:
            ValueError: arguments that do not fit, labels beyond the head, one class only, or an adaptation that
                diverged.
        """
        steps = self.steps if steps is None else integer("steps", steps, minimum=1)
        check_examples(x, y)
        batch = one_task(x, y)
        classes = self._check(batch)
        with torch.no_grad():
            course = self._loop().run(batch, steps, 0, classes, query=False)
        values = [{name: value[0] for name, value in own.items()} for own in course.values]
        for site, own in zip([*self.sites, None], values, strict=True):
            for name, value in own.items():
                if not bool(value.isfinite().all()):
                    where = "the head" if site is None else repr(site.name)
                    raise ValueError(
                        f"adaptation to x and y diverged: {name} of {where} is not finite after {steps} steps; lower "
                        "inner_lr, or look for NaN in x"
                    )
        adapters = {site.name: own for site, own in zip(self.sites, values[:-1], strict=True)}
        return TaskModel(self.base, self.sites, adapters, **values[-1])

    def meta_train(
        self, episodes: Iterable[TaskBatch], steps: int = 10_000, *, schedule: Any = "cosine", clip: float = 10.0,
        **options: Any,
    ) -> Training:  # fmt: skip
        """Learn to adapt, with a record that goes on where it was interrupted.

        Args:
            episodes: batches of training tasks, as `metafast.data.episodes` gives them (32 tasks each by default).
            steps: meta-steps.
            schedule: of the meta rate; "cosine", or None for a constant one.
            clip: largest norm of the meta-gradient.
            options: of `metafast.maml.Trainer`: `val`, `output`, `name`, `resume`, `val_every`, `max_minutes`, ...

        Returns:
            How it ended, and where the record is.

        Raises:
            TypeError, ValueError: as `Trainer` raises them.
        """
        config = {**file.settings_of(self), **options.pop("config", {})}
        tags = ["adapt", *options.pop("tags", ())]
        return Trainer(
            self, episodes, steps, optimizer=options.pop("optimizer", self.optimizer()), schedule=schedule, clip=clip,
            seed=options.pop("seed", self.seed), config=config, tags=tags, **options,
        ).fit()  # fmt: skip

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam as `meta_train` uses it."""
        layers = [module for module in self.net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        matrices = [layer.weight for layer in layers]
        chosen = {id(p) for p in matrices}
        fast = [p for name, p in self.named_parameters() if not name.startswith("net.") or _is_fast(name)]
        chosen |= {id(p) for p in fast}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": fast, "lr": FAST * self.meta_lr},
            {"params": rest},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.meta_lr)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the meta-network, whole or not at all; the frozen model is not in it.

        Args:
            path: of a safetensors file.
        """
        return file.save(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], base: Backbone | nn.Module) -> MetaFineTuner:
        """Read what `save` wrote.

        Args:
            path: of the file.
            base: a backbone of the same shapes as the one that it was made for.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a damaged file or one of something else, or a base whose shapes differ.
        """
        about, tensors = file.read(path)
        meta = cls(base, **file.arguments_of(about))
        file.fill(meta, about, tensors, path)
        return meta

    def report(self) -> Report:
        """What adapts, and how large the meta-network is; `print` it."""
        return report_of(self)

    # ---- inside

    def _loop(self) -> Loop:
        like = next(self.parameters(), next(self.base.parameters()))
        return Loop(self.tree, self.net, self.starts, self.head, self.loss, self.order, like)

    def _check(self, batch: TaskBatch) -> int:
        """How many classes the heads have."""
        check_batch(batch)
        if self.loss == "span":
            length = batch.support_x.shape[2]
            batch.validate(length * length)
            return 2
        classes = class_count(batch, self.ways)
        check_two_classes(batch, classes)
        return classes

    def _complain(self, dropped: list[int], tasks: int, losses: Tensor, begin: int) -> None:
        if self.on_nan == "raise" or len(dropped) == tasks:
            task = dropped[0]
            value = float(losses[task - begin]) if task >= begin else math.nan
            raise ValueError(
                f"task {task}: its query loss is {value}; lower inner_lr or meta_lr, or look for NaN in its examples "
                f"({len(dropped)} of {tasks} tasks; on_nan='drop' leaves some out)"
            )

    def _metrics(self, batch: TaskBatch, courses: list[Course], step: int | None = None) -> dict[str, Any]:
        outputs = torch.cat([course.outputs[-1 if step is None else step] for course in courses]).detach()
        query = torch.cat([course.query_losses for course in courses])
        found = measures(self.loss, outputs, batch.query_y, batch.query_mask, batch.classes)
        return {
            "loss": query[:, -1 if step is None else step],
            **found,
            "support_losses": torch.cat([course.support_losses for course in courses]),
            "query_losses": query,
            "logits": outputs,
        }


def _is_fast(name: str) -> bool:
    return name.rpartition(".")[2] in ("log_rate", "decay", "temperature")


def _check_number(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
