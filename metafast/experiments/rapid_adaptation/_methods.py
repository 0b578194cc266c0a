"""The methods that are compared: each a learner that adapts a batch of tasks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from metafast.adapt import Backbone, MetaFineTuner
from metafast.maml import ANIL, FOMAML, MAML
from metafast.maml.baselines import ProtoNet

if TYPE_CHECKING:
    from metafast.experiments.rapid_adaptation._recipes import Setup

METHODS = {
    "none": "no adaptation",
    "probe": "linear probe",
    "finetune": "fine-tuning",
    "lora": "fine-tuning with LoRA",
    "protonet": "ProtoNet head",
    "maml": "MAML",
    "anil": "ANIL",
    "ours": "meta-network",
}
EXPLAINED = {
    "none": "a new head of zeros on the frozen backbone, before any step: chance, by construction",
    "probe": "the head alone on the frozen backbone, by gradient descent, many more steps than the others",
    "finetune": "head and all weights of the backbone by gradient descent, as many steps as the meta-network",
    "lora": "the same with adapters of rank 4 in place of the backbone's weights",
    "protonet": "the nearest mean feature of the frozen backbone, which is not trained further; no steps",
    "maml": "meta-trained on as many tasks as the meta-network, from the backbone's weights; all weights adapt",
    "anil": "likewise; the head alone adapts",
    "ours": "metafast.adapt.MetaFineTuner, meta-trained; the backbone stays frozen",
}
RATED = ("probe", "finetune", "lora")  # their rate is chosen on validation tasks
META = ("maml", "anil", "ours")  # meta-trained


class Classifier(nn.Module):
    """A backbone with weights of its own, and a head of zeros on its features, as `MetaFineTuner` starts from.

    Args:
        base: the frozen backbone; it is copied.
        ways: classes of the head.
    """

    def __init__(self, base: Backbone, ways: int) -> None:
        super().__init__()
        # a backbone of pictures is its model, which the inner loop's engine compiles; one of texts also pools words
        self.body: nn.Module = copy.deepcopy(base.model if _plain(base) else base).requires_grad_(True)
        self.head = nn.Linear(base.width, ways)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.body(x))
        return logits


def learner(
    method: str, setup: Setup, base: Backbone, ways: int, steps: int, *, rate: float | None = None, seed: int = 0
) -> Any:
    """A method that is not meta-trained yet, if it is one that will be.

    Args:
        method: name in `METHODS`, but for "none".
        setup: the data set.
        base: its backbone.
        ways: classes of the tasks.
        steps: of adaptation.
        rate: of the methods in `RATED`.
        seed: of initial weights.
    """
    if method == "finetune" and _plain(base):
        # what MetaFineTuner(base, "all", None) computes, on the inner loop's engine, which is faster for pictures
        return FOMAML(Classifier(base, ways), rate or 0.01, steps, batch_norm="running", on_nan="ignore")
    if method in RATED:
        adapt = {"probe": "head", "finetune": "all", "lora": "lora:r=4"}[method]
        return MetaFineTuner(base, adapt, None, steps=steps, inner_lr=rate or 0.01, on_nan="drop", seed=seed)
    if method == "protonet":
        return ProtoNet(Classifier(base, ways), head="head", batch_norm="running", on_nan="drop")
    if method == "ours":
        ours = setup.ours
        options = {"on_nan": "drop", "seed": seed, **ours.options}
        return MetaFineTuner(
            base, dict(ours.adapt) if isinstance(ours.adapt, Mapping) else ours.adapt, ours.net, steps=steps, **options
        )
    kind, rate = (MAML, setup.initial.inner_lr) if method == "maml" else (ANIL, setup.initial.head_lr)
    order = setup.initial.order
    # statistics of the backbone, as for the others: those of a batch would tell how its query examples are spread
    return kind(Classifier(base, ways), rate, steps, order, batch_norm="running", on_nan="drop", seed=seed)


def _plain(base: Backbone) -> bool:
    """Whether the backbone's model alone gives its features."""
    return base.vocabulary is None and not hasattr(base.model, "config")
