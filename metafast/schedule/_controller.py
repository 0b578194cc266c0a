"""`LRController`: an LSTM that sets learning rates while a network trains."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metafast._checks import integer
from metafast.schedule import _features, _file, _policy
from metafast.schedule._adapt import adapted_shift
from metafast.schedule._file import Learned
from metafast.schedule._rule import RateRule
from metafast.schedule._tasks import Task


class LRController(RateRule):
    """A meta-learner that adjusts learning rates every few steps, itself trained over many small trainings.

    An LSTM looks at what a training step gives away for nothing: the loss and its trend, the size of the gradient, the
    cosine between gradient and last update, the size of the update against the weights, and how much of the training is
    done. It says what size of update it wants next; the rate is multiplied accordingly, by at most `e^max_change` at a
    time. Every unit (everything, a group or a tensor) is a row of one batch.

    Args:
        learned: the meta-learner, from `load` or `meta_train`.

    Attributes:
        record: how it was made: data and models that it has seen, settings, scores, versions.
        labels: of the units, once attached.
        events: what the watchdog did: dicts with "step", "what", "rates" and "rewound".
        history: rates over time.

    Example:
        >>> import torch, metafast
        >>> model = torch.nn.Linear(4, 2)
        >>> opt = metafast.optim.Adam(model.parameters(), lr=1e-3)
        >>> ctl = LRController.load("default").attach(opt, interval=10, total_steps=30)
        >>> for _ in range(30):
        ...     loss = torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,)))
        ...     opt.zero_grad(); loss.backward(); opt.step(); ctl.step(loss)
        >>> list(ctl.lr())
        ['all']

    Source:
        Learning rates by an LSTM over optimization features: Daniel, Taylor & Nowozin, Learning step size controllers
        for robust neural network training, AAAI 2016; Xu, Dai, Kemp & Metz, Learning an adaptive learning rate
        schedule, 2019. Meta-training: Vicol, Metz & Sohl-Dickstein, ICML 2021.
    """

    def __init__(self, learned: Learned) -> None:
        super().__init__()
        self.learned = learned

    @property
    def record(self) -> dict[str, Any]:
        """How it was made."""
        return self.learned.record

    # ---- files

    @classmethod
    def load(cls, source: str | os.PathLike[str] = "default") -> LRController:
        """A controller from a file.

        Args:
            source: "default", the one that ships with the package, or a path. Default "default".

        Raises:
            FileNotFoundError: no such file.
            ValueError: damaged, of another version, or with missing tensors; nothing has changed then.

        Example:
            >>> LRController.load().learned.interval
            10
        """
        shipped = _file.SHIPPED / f"{source}.safetensors"
        return cls(_file.read(shipped if isinstance(source, str) and shipped.is_file() else source))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights, sizes and record as one safetensors file, whole or not at all.

        Args:
            path: of the file; its folder must exist.

        Example:
            >>> import tempfile
            >>> LRController.load().save(tempfile.mkdtemp() + "/mine.safetensors")
        """
        _file.write(self.learned, path)

    def copy(self) -> LRController:
        """The same controller, not attached: for another optimizer."""
        return LRController(copy.deepcopy(self.learned))

    def digest(self) -> str:
        """Checksum of what it learned."""
        return _file.checksum(self.learned.weights) + f":{self.learned.shift:.6g}"

    # ---- training and adapting it

    @classmethod
    def meta_train(cls, tasks: Sequence[Task] | None = None, **options: Any) -> LRController:
        """Trains a new controller; see `metafast.schedule.meta_train`, which takes the same arguments.

        Example:
            >>> import metafast
            >>> from metafast.schedule import Task
            >>> parts = metafast.data.digits(seed=0)
            >>> mlp = lambda seed: metafast.models.MLP(64, (8,), 10, seed=seed)
            >>> tasks = [Task("digits", mlp, parts.train, parts.val)]
            >>> ctl = LRController.meta_train(tasks, updates=2, pairs=2, validation=[], seed=0)
            >>> ctl.record["meta_training"]["data"]
            ['digits']
        """
        from metafast.schedule._meta_train import meta_train

        return cls(meta_train(tasks, **options))

    def adapt(self, task: Task, steps: int = 5, seed: int = 0, **attach: Any) -> LRController:
        """A controller for one task, after a handful of trainings on it.

        What changes is one number: the size of update that the controller wants is shifted up or down. The first run is
        made with no shift, the next two with one in either direction, all others where a parabola through the three
        best expects the minimum. The result has the shift of the best run, which may be none: it cannot be worse than
        the controller that it came from by what these runs can tell.

        Args:
            task: model, data and length of a training; judged by `task.val`. Make it as long as the training that is
                to be steered: shorter runs favour rates that are too high for it (benchmarks/schedule).
            steps: trainings. Default 5.
            seed: of weights and order of the data, the same in every run.
            attach: arguments of `attach`, such as `per` and `interval`.

        Returns:
            A new controller, not attached; `record["adapted"]` has the runs.

        Raises:
            TypeError, ValueError: an argument of the wrong type or value.

        Example:
            >>> import metafast
            >>> from metafast.schedule import Task
            >>> parts = metafast.data.digits(seed=0)
            >>> mlp = lambda seed: metafast.models.MLP(64, (8,), 10, seed=seed)
            >>> ctl = LRController.load().adapt(Task("digits", mlp, parts.train, parts.val, steps=20), steps=3)
            >>> len(ctl.record["adapted"]["runs"])
            3
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a metafast.schedule.Task, got {type(task).__name__}")
        integer("steps", steps, minimum=1)
        shift, runs = adapted_shift(self, task, steps, seed, attach)
        made = self.copy()
        made.learned.shift = shift
        made.learned.record["adapted"] = {"task": task.name, "steps": task.steps, "seed": seed, "runs": runs}
        return made

    # ---- as a rule

    def _begin(self, device: torch.device) -> None:
        first = getattr(self, "_seen", {}).get("first")
        self._weights = self.learned.weights.to(device)
        self._seen = _features.first_state(self._units.count, (), device)
        if first is not None and self._calls:
            self._seen["first"] = first  # the level of a loss is measured from the start, whatever happened since
        self._memory = _policy.first_memory(self.learned.shape, self._units.count, (), device)

    def _decide(self, table: Tensor, rates: Tensor, mean: Tensor, spread: Tensor, progress: Tensor) -> Tensor:
        learned = self.learned
        features, self._seen = _features.observe(self._seen, self._units, table, rates, mean, spread, progress)
        if learned.shift:
            features[..., _policy.UPDATE] -= learned.shift
        change, self._memory = _policy.decide(learned.shape, self._weights, features, self._memory, learned.max_change)
        self._seen["change"] = change / learned.max_change
        return change

    def _rule_state(self) -> dict[str, Any]:
        return {"learned": self.digest(), "seen": dict(self._seen), "memory": self._memory.clone()}

    def _load_rule_state(self, state: dict[str, Any]) -> None:
        if state["learned"] != self.digest():
            raise ValueError("the state was made with another controller file; load that one first")
        device = self._log_factors.device
        self._seen = {name: value.to(device).clone() for name, value in state["seen"].items()}
        self._memory = state["memory"].to(device).clone()


def shipped() -> list[str]:
    """Names that `LRController.load` knows."""
    return sorted(path.stem for path in Path(_file.SHIPPED).glob("*.safetensors"))
