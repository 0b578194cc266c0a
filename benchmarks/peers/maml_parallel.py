"""MAML by parallel-metalearn: `loss.backward()` over a `vmap` of tasks.

With batch normalization its second-order gradient lacks a term on torch 2.13 (see docs/innerloop.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .maml_problem import MetaGradient, Problem


class _Plain(nn.Module):
    """Takes the flags that its wrapper passes on, and drops them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        result: Tensor = self.module(x)
        return result


def build(problem: Problem) -> MetaGradient:
    """A function that returns the meta-gradient."""
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss.base import BaseLoss
    from metalearn.model_wrappers import MAML_Model

    class Loss(BaseLoss):  # type: ignore[misc]
        def forward(
            self, out_dict: dict[str, Tensor], targets: Tensor, model_states: Any = None, **_: Any
        ) -> tuple[Tensor, Tensor]:
            loss = problem.loss_fn(out_dict["logits"], targets)
            return loss, loss.detach()

    layers = list(problem.model)
    model = MAML_Model(_Plain(nn.Sequential(*layers[:-1])), _Plain(layers[-1]))
    inner = InnerSGD(
        model.get_fast_weights(), first_order=problem.order == 1, inner_lr=problem.lr, max_inner_steps=problem.steps,
        learn_lr=False,
    )  # fmt: skip
    algorithm = MAML(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), inner_optimizer=inner,
        support_loss_fn=Loss(), inner_steps=problem.steps, chunk_size=problem.chunk, device=torch.device("cpu"),
    )  # fmt: skip
    batch = (problem.support_x, problem.support_y, problem.query_x, problem.query_y)

    def meta_gradient() -> list[Tensor]:
        algorithm.step(iter([batch]), training=True)
        return [p.grad for p in model.parameters() if p.grad is not None]

    return meta_gradient
