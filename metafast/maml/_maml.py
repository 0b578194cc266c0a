"""MAML, and the variants that change only its order, what adapts, and the rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metafast.maml._learner import MetaLearner
from metafast.maml._modules import head_of


class MAML(MetaLearner):
    r"""Model-agnostic meta-learning: an initialization from which a few gradient steps solve a task.

    Each task t adapts by \(\theta_{k+1} = \theta_k - \alpha \nabla L^{support}_t(\theta_k)\) from the shared
    \(\theta_0 = \theta\), and the meta-loss is the mean over tasks of \(L^{query}_t(\theta_K)\).

    Args:
        model: any `nn.Module`; supported layers run on the compiled engine, see `explain()`.
        inner_lr: the rate \(\alpha\): a number, or a tensor that is 0-d, `[steps]`, `[tensors]`, `[elements]`,
            `[steps, tensors]` or `[steps, elements]`, where "tensors" counts the model's parameters and "elements"
            their elements. An `nn.Parameter` is learned. Default 0.01.
        steps: inner steps K, at least 1. Default 5.
        order: 2 for the exact meta-gradient, 1 for the first-order one. Default 2.
        learn_lr: learn the rates too. Default False.
        loss: "cross_entropy" (labels `[S]`), "mse" (targets `[S, D]`), or a function of outputs and targets.
        label_smoothing: of the cross-entropy. Default 0.
        rule: the inner optimizer: "sgd", or `metafast.innerloop.SGD(momentum=...)`, `metafast.innerloop.Adam(...)`.
        adapted: names of the parameters that the inner loop changes, as patterns or a predicate. Default: all that
            require a gradient. Parameters that do not adapt are meta-learned all the same.
        batch_norm: "batch" (default) normalizes by the statistics of each task's batch; "running" by the model's.
        inner_batch: examples per inner step, drawn from the support set; default: all of it.
        on_nan: a task whose loss is not finite is an error ("raise", default), is left out and counted ("drop"), or
            passes unseen ("ignore", which never waits for the device).
        seed: of dropout masks and inner mini-batches. Default 0.
        engine: "auto", "compiled", "loop" or "vmap".
        memory_budget: bytes that the engine may use; more stores what less recomputes. Default: the engine chooses.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; the message names it.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> maml = metafast.maml.MAML(model, inner_lr=0.1, steps=3)
        >>> opt = torch.optim.Adam(maml.parameters(), lr=1e-3)
        >>> x, y = torch.randn(6, 10, 4), torch.randint(0, 2, (6, 10))  # 6 tasks of 10 examples
        >>> batch = metafast.data.TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
        >>> loss, metrics = maml(batch)
        >>> loss.backward(); opt.step(); opt.zero_grad()
        >>> metrics["accuracy"].shape
        torch.Size([6])
        >>> adapted = maml.adapt(x[0], y[0], steps=10)
        >>> adapted(x[0]).shape
        torch.Size([10, 2])

    Source:
        C. Finn, P. Abbeel, S. Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017.
    """


class FOMAML(MAML):
    """First-order MAML: the inner gradients count as constants, which saves the second derivatives.

    Args:
        model: as in `MAML`.
        inner_lr: as in `MAML`.
        steps: as in `MAML`.
        options: as in `MAML`, but for `order`.

    Example:
        >>> import torch, metafast
        >>> metafast.maml.FOMAML(torch.nn.Linear(4, 2), inner_lr=0.1).order
        1

    Source:
        Finn et al., ICML 2017, section 5.2.
    """

    def __init__(self, model: nn.Module, inner_lr: float | Tensor = 0.01, steps: int = 5, **options: Any) -> None:
        _no_order("FOMAML", options)
        super().__init__(model, inner_lr, steps, order=1, **options)


class ANIL(MAML):
    """Almost no inner loop: only the last layer adapts; the layers before it are meta-learned and shared.

    Args:
        model: as in `MAML`.
        inner_lr: as in `MAML`.
        steps: as in `MAML`.
        order: as in `MAML`.
        head: name of the layer that adapts. Default: the last registered one that has parameters.
        options: as in `MAML`, but for `adapted`.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> metafast.maml.ANIL(model).adapted_names
        ['2.weight', '2.bias']

    Source:
        A. Raghu et al., Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML, ICLR 2020.
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
        prefix = head_of(model, head) + "."
        super().__init__(model, inner_lr, steps, order, adapted=lambda name: name.startswith(prefix), **options)


class BOIL(MAML):
    """Body only inner loop: all but the last layer adapt, so that the representation changes, not the classifier.

    Args:
        model: as in `MAML`.
        inner_lr: as in `MAML`.
        steps: as in `MAML`.
        order: as in `MAML`.
        head: name of the layer that stays. Default: the last registered one that has parameters.
        options: as in `MAML`, but for `adapted`.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> metafast.maml.BOIL(model).adapted_names
        ['0.weight', '0.bias']

    Source:
        J. Oh et al., BOIL: Towards Representation Change for Few-shot Learning, ICLR 2021.
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
        prefix = head_of(model, head) + "."
        super().__init__(model, inner_lr, steps, order, adapted=lambda name: not name.startswith(prefix), **options)


class MetaSGD(MAML):
    r"""MAML with a learned rate per element: \(\theta_{k+1} = \theta_k - \alpha \odot \nabla L(\theta_k)\).

    Args:
        model: as in `MAML`.
        inner_lr: where the rates start.
        steps: as in `MAML`. The paper uses one.
        order: as in `MAML`.
        options: as in `MAML`, but for `learn_lr`.

    Example:
        >>> import torch, metafast
        >>> maml = metafast.maml.MetaSGD(torch.nn.Linear(4, 2), inner_lr=0.1, steps=1)
        >>> maml.inner_lr.shape  # 8 weights, 2 biases
        torch.Size([1, 10])

    Source:
        Z. Li et al., Meta-SGD: Learning to Learn Quickly for Few-Shot Learning, arXiv:1707.09835, 2017.
    """

    def __init__(
        self, model: nn.Module, inner_lr: float = 0.01, steps: int = 5, order: int = 2, **options: Any
    ) -> None:
        elements = sum(parameter.numel() for parameter in model.parameters())
        like = next(iter(model.parameters()))
        super().__init__(
            model,
            torch.full((1, elements), inner_lr, dtype=like.dtype, device=like.device),
            steps,
            order,
            learn_lr=True,
            **options,
        )


def _no_order(name: str, options: dict[str, Any]) -> None:
    if "order" in options:
        raise TypeError(f"{name} is first-order by definition and takes no order; use MAML(order=...)")
