"""Adaptation as one does it with peft: a LoRA model, one task after another, autograd and SGD."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metafast.data import TaskBatch


class PeftLoop:
    """A LoRA model of peft and a linear head on the mean of the last states, fine-tuned to each task anew.

    Args:
        model: of transformers, for text.
        targets: names of the modules that adapt.
        rank: of LoRA.
        start: numbers of every A, `[rank, in]` by module name; B starts at zero.
        lr: of SGD.
        steps: of each task.
        trim: cut the padding that all texts of a task have.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: list[str],
        rank: int,
        start: Mapping[str, Tensor],
        lr: float,
        steps: int,
        trim: bool = True,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
            config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets)
            self.model: Any = get_peft_model(model, config).eval()  # type: ignore[arg-type]
        self.start, self.lr, self.steps, self.trim = start, lr, steps, trim
        modules = dict(self.model.base_model.model.named_modules())
        self.a = {name: modules[name].lora_A["default"].weight for name in targets}
        self.b = [modules[name].lora_B["default"].weight for name in targets]

    def __call__(self, batch: TaskBatch) -> Tensor:
        """The logits of the query examples after adaptation, `[T, Q, C]`."""
        classes = int(batch.support_y.max()) + 1
        return torch.stack([self._task(batch, task, classes) for task in range(len(batch))])

    def _task(self, batch: TaskBatch, number: int, classes: int) -> Tensor:
        task = batch.task(number)
        self._reset()
        head = nn.Linear(self.model.config.hidden_size, classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD([*self.a.values(), *self.b, *head.parameters()], lr=self.lr)
        for _ in range(self.steps):
            loss = F.cross_entropy(head(self._features(task.support_x)), task.support_y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits: Tensor = head(self._features(task.query_x))
        return logits

    @torch.no_grad()
    def _reset(self) -> None:
        for name, a in self.a.items():
            a.copy_(self.start[name])
        for b in self.b:
            b.zero_()

    def _features(self, x: Tensor) -> Tensor:
        words = x != 0
        if self.trim:
            longest = int(words.sum(1).max())
            x, words = x[:, :longest], words[:, :longest]
        states = self.model(input_ids=x, attention_mask=words.long()).last_hidden_state
        weight = words.to(states.dtype)[..., None]
        features: Tensor = (states * weight).sum(1) / weight.sum(1)
        return features
