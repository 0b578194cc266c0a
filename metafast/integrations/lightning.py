"""`TunerCallback` for Lightning: hyperparameters tuned by hypergradients while it trains."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

from metafast.integrations._tuning import TunerOptions, logged
from metafast.runs._state import pack, unpack
from metafast.tune import OnlineTuner


class TunerCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Tunes options of the module's optimizer during `Trainer.fit`, with automatic optimization.

    Lightning makes the gradients, so the methods are those of `OnlineTuner.update`: `Forward(hvp=False)`, "one_step"
    and "sama". Accumulation, clipping by norm and several processes are Lightning's own, and a scheduler of the
    learning rate stays in force: the tuner moves the base rate that it multiplies. Values are logged as "tuned/lr" and
    so on; the tuner's state is in the checkpoints.

    Args:
        tune: names of options, or `Tune(...)`, as in `OnlineTuner`. Default "lr".
        val_loader: validation batches; never the test set.
        method: default `Forward(hvp=False, decay=0.9)`.
        every: steps of the optimizer between two updates of the hyperparameters. Default 10.
        options: `val_loss(module, *batch)`, `hyper_lr`, ... of `OnlineTuner`.

    Attributes:
        tuner: the `OnlineTuner`, once training has begun.

    Raises:
        ValueError: several optimizers, manual optimization, clipping by value, or an optimizer or scheduler that cannot
            be tuned; when training begins.

    Example:
        >>> import torch
        >>> val = [(torch.randn(8, 4), torch.randint(2, (8,)))]
        >>> callback = TunerCallback("lr", val, every=20)
        >>> # Trainer(callbacks=[callback]).fit(module, train_loader)
    """

    def __init__(
        self, tune: Any = "lr", val_loader: Any = None, method: Any = None, every: int = 10, **options: Any
    ) -> None:
        self._options = TunerOptions(tune, val_loader, method, every, options)
        self.tuner: OnlineTuner | None = None
        self._kept: Any = None  # a checkpoint's state, until there is a tuner
        self._looked = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the tuner, and takes back its state where training goes on from a checkpoint."""
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ValueError("TunerCallback needs automatic optimization with one optimizer; see OnlineTuner.update")
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise ValueError('TunerCallback needs gradient_clip_algorithm="norm", got "value"')
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        clip = {"max_grad_norm": trainer.gradient_clip_val} if trainer.gradient_clip_val else {}
        self.tuner = self._options.make(pl_module, trainer.optimizers[0], schedulers[0] if schedulers else None, **clip)
        self._may_overflow = str(trainer.precision) == "16-mixed"
        if self._kept is not None:
            self.tuner.load_state_dict(self._kept)
            self._kept = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Looks at the gradients, which Lightning clips after this."""
        assert self.tuner is not None
        self.tuner.before_step(may_overflow=self._may_overflow)
        self._looked = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Moves the hyperparameters when due, after a batch that ended with a step of the optimizer."""
        if not self._looked:
            return
        assert self.tuner is not None
        self._looked = False
        self.tuner.after_step()
        pl_module.log_dict(logged(self.tuner))

    def state_dict(self) -> dict[str, Any]:
        """The tuner's state, as numbers, strings and tensors."""
        if self.tuner is None:
            return {}
        tree, tensors = pack(self.tuner.state_dict())
        return {"tree": tree, "tensors": tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back, when training begins."""
        self._kept = unpack(state_dict["tree"], state_dict["tensors"]) if state_dict else None
