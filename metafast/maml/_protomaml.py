"""ProtoMAML: a head that starts from the prototypes of the task's classes."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metafast.maml._clone import Learner
from metafast.maml._learner import MetaLearner
from metafast.maml._modules import batch_statistics, features, head_of

if TYPE_CHECKING:
    from metafast.data import TaskBatch
    from metafast.innerloop import Outcome


class ProtoMAML(MetaLearner):
    r"""MAML whose last layer starts at the classes' prototypes, which makes any number of classes possible.

    With the mean feature \(c_j\) of class j's support examples, the head starts at \(w_j = 2 c_j\),
    \(b_j = -|c_j|^2\), so that before the first step the model is a prototypical network; the meta-gradient flows
    through the prototypes. The head's own parameters are never used.

    Args:
        model: a classifier whose last layer is an `nn.Linear` with bias, at least as wide as a task has classes.
        inner_lr: as in `MAML`.
        steps: as in `MAML`.
        order: as in `MAML`; with 1 the prototypes are differentiated all the same.
        head: name of the last layer. Default: the last registered one that has parameters.
        options: as in `MAML`.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> maml = metafast.maml.ProtoMAML(model, inner_lr=0.1, steps=3)
        >>> x, y = torch.randn(6, 10, 4), torch.arange(10).remainder(2).expand(6, 10)
        >>> loss, metrics = maml(metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:]))
        >>> loss.backward()

    Source:
        E. Triantafillou et al., Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples, ICLR 2020.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float | Tensor = 0.01,
        steps: int = 5,
        order: int = 2,
        *,
        head: str | None = None,
        **options: Any,
    ) -> None:
        self_head = head_of(model, head)
        layer = model.get_submodule(self_head)
        if not isinstance(layer, nn.Linear) or layer.bias is None:
            raise TypeError(f"head {self_head!r} must be an nn.Linear with bias, got {layer}")
        if options.get("loss", "cross_entropy") == "mse":
            raise ValueError('ProtoMAML classifies; loss="mse" has no prototypes, use MAML')
        super().__init__(model, inner_lr, steps, order, **options)
        self.head = self_head

    def clone(self, x: Tensor | None = None, y: Tensor | None = None) -> Learner:
        """As `MAML.clone`, from the prototypes of a support set.

        Args:
            x: support examples `[S, ...]`.
            y: their labels `[S]`.

        Raises:
            ValueError: without a support set, or one that has no prototypes.
        """
        if x is None or y is None:
            raise ValueError("x and y must be given: ProtoMAML starts from a support set; write maml.clone(x, y)")
        start = self._start(x.unsqueeze(0), y.unsqueeze(0), None, None)
        head = (f"{self.head}.weight", f"{self.head}.bias")
        return Learner(self, {name: start[name][0] for name in head})

    def _run(
        self, batch: TaskBatch, steps: int, task_weights: Tensor | None, first_task: int, **options: Any
    ) -> Outcome:
        """As the base's; the prototypes of a task that was dropped are constants: 0 times NaN would reach the rest."""
        outcome = super()._run(batch, steps, task_weights, first_task, **options)
        if not outcome.dropped or not torch.is_grad_enabled():
            return outcome
        start = self._start(batch.support_x, batch.support_y, batch.support_mask, batch.classes, outcome.dropped)
        return super()._run(batch, steps, task_weights, first_task, **{**options, "params": start})

    def _start(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        classes: Tensor | None,
        constant: Collection[int] = (),
    ) -> dict[str, Tensor]:
        layer: Any = self.model.get_submodule(self.head)
        weights, biases = [], []
        for task in range(len(x)):
            inputs, labels = (x[task], y[task]) if mask is None else (x[task][mask[task]], y[task][mask[task]])
            if labels.numel() == 0 or int(labels.min()) < 0 or int(labels.max()) >= layer.out_features:
                raise ValueError(
                    f"support_y of task {task} must be from 0 to {layer.out_features - 1}, got {labels.tolist()}"
                )
            with torch.set_grad_enabled(torch.is_grad_enabled() and task not in constant):
                found = self._features(inputs, f"support_x of task {task}")  # [S, F]
            one_hot = torch.nn.functional.one_hot(labels, layer.out_features).to(found)  # [S, C]
            counts = one_hot.sum(0)
            used = layer.out_features if classes is None else int(classes[task])
            if classes is None and bool((counts == 0).any()):
                used = int(labels.max()) + 1
            if bool((counts[:used] == 0).any()):
                missing = (counts[:used] == 0).nonzero().flatten().tolist()
                raise ValueError(f"support_y of task {task} has no example of class {missing[0]}; it has no prototype")
            centres = one_hot.t() @ found / counts.clamp(min=1)[:, None]  # [C, F]
            weights.append(2 * centres)
            biases.append(-centres.square().sum(1))
        return {
            **dict(self.model.named_parameters()),
            f"{self.head}.weight": torch.stack(weights),
            f"{self.head}.bias": torch.stack(biases),
        }

    def _features(self, inputs: Tensor, name: str) -> Tensor:
        """One task at a time: batch norms see one task's batch."""
        norms = batch_statistics(self.model) if self.batch_norm == "batch" else contextlib.nullcontext()
        try:
            with norms:
                return features(self.model, self.head, lambda: self.model(inputs))
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"{name} must be examples that the model runs on, got {list(inputs.shape)} of {inputs.dtype}: {error}"
            ) from error
