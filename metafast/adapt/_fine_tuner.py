"""A meta-network that makes the updates which fine-tune a frozen model on a new task."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metafast._checks import integer
from metafast.adapt import _file as file
from metafast.adapt._backbone import Backbone, freeze
from metafast.adapt._choice import Adapt, sites
from metafast.adapt._losses import LOSSES, measures, task_losses
from metafast.adapt._net import Memory, MetaNetwork, parse
from metafast.adapt._report import Report, report_of
from metafast.adapt._sites import Site, Values
from metafast.adapt._task_model import TaskModel
from metafast.adapt._tasks import Examples, check_two_classes, class_count, one_task
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


@dataclass
class Course:
    """What adaptation to a batch of tasks came to.

    Args:
        losses: `[T]` of the query sets after the last step, differentiable.
        support_losses: `[T, K]`, before each step.
        query_losses: `[T, K + 1]`; NaN where not asked for.
        outputs: of the query examples, `[T, Q, C]` or `[T, Q, L, 2]`, at the steps asked for.
        values: of each site after the last step, and of the head.
    """

    losses: Tensor
    support_losses: Tensor
    query_losses: Tensor
    outputs: list[Tensor]
    values: list[Values]


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
                {_key(site, name): value for site in found for name, value in site.start().items()}
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
        size = self.chunk or tasks
        apart = order > 0 and size < tasks
        courses, dropped, kept_share = [], [], 0.0
        total: Any = 0.0
        grads = [torch.zeros_like(parameter) for parameter in learned] if apart else []
        for begin in range(0, tasks, size):
            part, weights = batch[begin : begin + size], share[begin : begin + size]
            course = self._unroll(part, steps, order, classes)
            courses.append(course)
            losses, wrong = course.losses, ~course.losses.detach().isfinite().cpu() & (weights != 0)
            if bool(wrong.any()):
                dropped += [begin + int(t) for t in wrong.nonzero().flatten()]
                self._complain(dropped, tasks, course.losses.detach(), begin)
                rest = [t for t in range(len(part)) if not wrong[t]]
                if not rest:
                    continue
                weights = weights[rest]
                losses = self._unroll(take_tasks(part, rest), steps, order, classes).losses if order else losses[rest]
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
        courses = [self._unroll(part, steps, 0, classes, every=True) for part in parts]
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
            course = self._unroll(batch, steps, 0, classes, query=False)
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

    def _starts(self, tasks: int, classes: int, like: Tensor) -> list[Values]:
        """The numbers of each site and of the head before adaptation, `[T, *shape]`."""
        found = [
            {name: self.starts[_key(site, name)].expand(tasks, *shape) for name, shape in site.shapes.items()}
            for site in self.sites
        ]
        if self.head is not None:
            found.append({name: value.expand(tasks, *value.shape) for name, value in self.head.items()})
        else:
            width = self.base.width
            found.append({"weight": like.new_zeros(tasks, classes, width), "bias": like.new_zeros(tasks, classes)})
        return found

    def _unroll(
        self, batch: TaskBatch, steps: int, order: int, classes: int, *, every: bool = False, query: bool = True
    ) -> Course:
        """Adaptation to a batch of tasks; `order` 0 has no gradients."""
        tasks, like = len(batch), next(self.parameters(), next(self.base.parameters()))
        support, asked = (Examples.of(batch, part) for part in ("support", "query"))
        memory = Memory()
        query_losses, outputs = [], []
        with torch.set_grad_enabled(order > 0):
            values = self._starts(tasks, classes, like)
            if self.net.initial is not None:
                values = self._read_off(values, support, classes)
            for step in range(steps + 1):
                if query and (every or step == steps):
                    found = self._outputs(asked, values)
                    losses = task_losses(self.loss, found, asked.y, asked.mask, batch.classes)
                    query_losses.append(losses)
                    outputs.append(found)
                else:
                    query_losses.append(torch.full((tasks,), math.nan, device=like.device, dtype=like.dtype))
                if step < steps:
                    grads = self._gradients(support, values, batch.classes, order, step, memory)
                    values = self._moved(values, grads, step, memory)
        return Course(
            query_losses[-1],
            torch.stack(memory.losses, 1),
            torch.stack([losses.detach() for losses in query_losses], 1),
            outputs,
            values,
        )

    def _read_off(self, values: list[Values], support: Examples, classes: int) -> list[Values]:
        """Starts read off the support set."""
        assert self.net.initial is not None
        common = [{name: self.starts[_key(site, name)] for name in site.shapes} for site in self.sites]
        with torch.no_grad():  # the features are what they are; what is made of them is learned
            features = self._features(support, values[:-1])
        moved = self.net.initial.sites(features, support.mask, self.sites, common)
        if any(site.modulations for site in self.sites):
            with self._second_order() if torch.is_grad_enabled() and self.order == 2 else nullcontext():
                features = self._features(support, moved)
        if self.order == 1:
            features = features.detach()
        head = self.net.initial.head(features, support.y, support.mask, classes)
        if self.head is not None:
            head = {name: value + self.head[name] for name, value in head.items()}
        return [*moved, head]

    def _features(self, examples: Examples, values: list[Values]) -> Tensor:
        """`[T, N, D]`, or `[T, N, L, D]`."""
        found, _ = self.tree.features(examples.flat, values, kept=examples.kept)
        return found.view(*examples.y.shape, *found.shape[1:])

    def _outputs(self, examples: Examples, values: list[Values]) -> Tensor:
        return _head(self._features(examples, values[:-1]), values[-1])

    def _gradients(
        self, support: Examples, values: list[Values], classes: Tensor | None, order: int, step: int, memory: Memory
    ) -> list[Values]:
        """The gradients of the support losses, with their factors edited."""
        through = order == 2
        inner = values if through else [{n: v.detach() for n, v in own.items()} for own in values]
        with torch.enable_grad(), self._second_order() if through else nullcontext():
            flat, tapes = self.tree.features(support.flat, inner[:-1], tape=True, kept=support.kept)
            features = flat.view(*support.y.shape, *flat.shape[1:])
            outputs = _head(features, inner[-1])
            outputs = outputs if outputs.requires_grad else outputs.requires_grad_()
            losses = task_losses(self.loss, outputs, support.y, support.mask, classes)
            taps = [(number, tap) for number, tape in enumerate(tapes) for tap in tape]
            targets = [*(tap.out for _, tap in taps), outputs]
            deltas = torch.autograd.grad(losses.sum(), targets, create_graph=through, allow_unused=True)
        memory.losses.append(losses.detach())
        signals = self.net.signals(step, memory)
        grads: list[Values] = [{} for _ in values]
        for (number, tap), delta in zip(taps, deltas[:-1], strict=True):
            if delta is None:  # nothing of this call reaches the loss
                continue
            tap = tap if through else tap._replace(left=tap.left.detach())
            site = self.sites[number]
            for name, grad in self.net.gradient(number, site, tap, delta, inner[number], signals).items():
                grads[number][name] = grads[number][name] + grad if name in grads[number] else grad
        delta = deltas[-1].flatten(1, -2)  # [T, N, C]
        rows = (features if through else features.detach()).flatten(1, -2)
        grads[-1] = {"weight": torch.bmm(delta.transpose(1, 2), rows), "bias": delta.sum(1)}
        for own, found in zip(values, grads, strict=True):
            for name, value in own.items():
                if name not in found:
                    found[name] = torch.zeros_like(value)
        return grads

    def _moved(self, values: list[Values], grads: list[Values], step: int, memory: Memory) -> list[Values]:
        flat = [value for own in values for value in own.values()]
        slopes = [grads[i][name] for i, own in enumerate(values) for name in own]
        after = iter(self.net.step(flat, slopes, step, memory))
        return [{name: next(after) for name in own} for own in values]

    @staticmethod
    def _second_order() -> Any:
        """The other kernels of attention have no second derivative."""
        return sdpa_kernel(SDPBackend.MATH)


def _head(features: Tensor, values: Values) -> Tensor:
    """`[T, N, C]` of `[T, N, D]`, or `[T, N, L, C]` of `[T, N, L, D]`."""
    rows = features.flatten(1, -2)
    found = torch.baddbmm(values["bias"][:, None], rows, values["weight"].transpose(1, 2))
    return found.view(*features.shape[:-1], -1)


def _key(site: Site, name: str) -> str:
    return f"{site.name.replace('.', '/')}:{name}"


def _is_fast(name: str) -> bool:
    return name.rpartition(".")[2] in ("log_rate", "decay", "temperature")


def _check_number(name: str, value: Any, expected: str, fits: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
