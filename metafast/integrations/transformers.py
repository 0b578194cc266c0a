"""Callbacks for `transformers.Trainer`: `TunerCallback` (hypergradients), `LRControllerCallback` (a meta-learner)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from metafast.integrations._checkpoints import load_state, save_state
from metafast.integrations._tuning import TunerOptions, logged
from metafast.schedule import LRController, RateRule
from metafast.tune import OnlineTuner


class TunerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Tunes options of the Trainer's optimizer during training.

    The Trainer makes the gradients, so the methods are those of `OnlineTuner.update`: `Forward(hvp=False)`, "one_step"
    and "sama". Its schedule (warm-up, decay) stays in force: the tuner moves the base rate that it multiplies.
    Accumulation, clipping, mixed precision and several processes are the Trainer's own. Values go into its logs as
    "tuned/lr" and so on, the tuner's state into its checkpoints, from which `resume_from_checkpoint` takes it back.

    Args:
        tune: names of options, or `Tune(...)`, as in `OnlineTuner`. Default "lr".
        val_loader: validation batches, dicts that the model takes, with labels; never the test set. For example
            `DataLoader(val, batch_size=32, collate_fn=default_data_collator)`.
        method: default `Forward(hvp=False, decay=0.9)`.
        every: steps of the optimizer between two updates of the hyperparameters. Default 10.
        options: `val_loss`, `hyper_lr`, ... of `OnlineTuner`. The default of `val_loss` is the model's own loss.

    Attributes:
        tuner: the `OnlineTuner`, once training has begun.

    Raises:
        ValueError: an optimizer or schedule that cannot be tuned, fp16 without clipping (the Trainer does not unscale
            gradients before its callback then), or a checkpoint without a tuner; when training begins.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from transformers import default_data_collator
        >>> val = [{"input_ids": [1, 2], "labels": 0}]
        >>> callback = TunerCallback("lr", DataLoader(val, collate_fn=default_data_collator), every=20)
        >>> # Trainer(model, args, train_dataset=train, callbacks=[callback]).train()
    """

    def __init__(
        self, tune: Any = "lr", val_loader: Any = None, method: Any = None, every: int = 10, **options: Any
    ) -> None:
        self._options = TunerOptions(tune, val_loader, method, every, {"val_loss": model_loss, **options})
        self.tuner: OnlineTuner | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Makes the tuner, and takes back its state where training goes on from a checkpoint."""
        if args.fp16 and not args.max_grad_norm:
            raise ValueError("max_grad_norm must be above 0 with fp16, got 0: gradients are not unscaled without it")
        optimizer, scheduler = (_unwrapped(kw[name], name) for name in ("optimizer", "lr_scheduler"))
        self.tuner = self._options.make(kw["model"], optimizer, scheduler)
        self._may_overflow = bool(args.fp16)
        if state.global_step:
            load_state(self.tuner, _checkpoint(args, state), "tuner")

    def on_pre_optimizer_step(self, *_: Any, **kw: Any) -> None:
        """Looks at the gradients."""
        assert self.tuner is not None
        self.tuner.before_step(may_overflow=self._may_overflow)

    def on_optimizer_step(self, *_: Any, **kw: Any) -> None:
        """Moves the hyperparameters when due."""
        assert self.tuner is not None
        self.tuner.after_step()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kw: Any
    ) -> None:
        """Adds the values to the Trainer's log."""
        if self.tuner is None or logs is None:
            return
        _log(logs, state, logged(self.tuner))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Puts the tuner's state into the checkpoint."""
        if self.tuner is not None and state.is_world_process_zero:
            save_state(self.tuner, _checkpoint(args, state), "tuner")


class LRControllerCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Lets a meta-learner set the Trainer's learning rates, on top of its schedule.

    The losses are those that the model returns for batches with labels, averaged over the batches of a step; length of
    the training, accumulation, clipping, mixed precision and several processes are the Trainer's own. Effective rates
    go into its logs as "rate/all" and so on (its own "learning_rate" is the schedule's), the controller's state into
    its checkpoints, from which `resume_from_checkpoint` takes it back.

    Args:
        controller: an `LRController` or another rule of `metafast.schedule`. Default: the shipped one.
        options: `interval`, `per`, `lr_bounds`, `watchdog` of `LRController.attach`.

    Attributes:
        controller: attached once training has begun.

    Raises:
        ValueError: an optimizer that cannot be steered, or a checkpoint without a controller; when training begins.

    Example:
        >>> callback = LRControllerCallback(per="group", interval=20)
        >>> # Trainer(model, args, train_dataset=train, callbacks=[callback]).train()
    """

    def __init__(self, controller: RateRule | None = None, **options: Any) -> None:
        self.controller = LRController.load() if controller is None else controller
        for name in ("total_steps", "model"):
            if name in options:
                raise ValueError(f"{name} is the trainer's here, got {name}={options[name]!r}; leave it out")
        self._options = options
        self._losses: list[Tensor] = []
        self._hook: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Attaches the controller, and takes back its state where training goes on from a checkpoint."""
        model, optimizer = kw["model"], _unwrapped(kw["optimizer"], "optimizer")
        self.controller.detach()
        self.controller.attach(optimizer, total_steps=state.max_steps, model=model, **self._options)
        self._losses = []
        self._hook = model.register_forward_hook(self._listen)
        if state.global_step:
            load_state(self.controller, _checkpoint(args, state), "controller")

    def _listen(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
        if model.training and isinstance(loss, Tensor):
            self._losses.append(loss.detach().mean())

    def on_optimizer_step(self, *_: Any, **kw: Any) -> None:
        """Hands over the loss of the step."""
        if self._losses:
            self.controller.step(sum(self._losses[1:], self._losses[0]) / len(self._losses))
            self._losses = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kw: Any
    ) -> None:
        """Adds the effective rates to the Trainer's log, where there are not too many."""
        rates = self.controller.lr()
        if logs is not None and 0 < len(rates) <= _MOST_LOGGED:
            _log(logs, state, {f"rate/{label}": rate for label, rate in rates.items()})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        """Puts the controller's state into the checkpoint."""
        if self.controller.optimizer is not None and state.is_world_process_zero:
            save_state(self.controller, _checkpoint(args, state), "controller")

    def on_train_end(self, *_: Any, **kw: Any) -> None:
        """Stops listening; rates and history stay readable."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


_MOST_LOGGED = 16


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def _log(logs: dict[str, float], state: TrainerState, values: dict[str, float]) -> None:
    logs.update(values)
    if state.log_history:  # has a copy already
        state.log_history[-1].update(values)


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model of transformers computes from a batch with labels."""
    loss: Tensor = model(**batch).loss
    return loss


def _unwrapped(wrapper: Any, attribute: str) -> Any:
    """The optimizer or scheduler inside accelerate's."""
    return getattr(wrapper, attribute.removeprefix("lr_"), wrapper)
