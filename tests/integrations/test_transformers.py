"""`TunerCallback` in a real `transformers.Trainer`: the same as the tuner's own loop, schedules, logs, resuming."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, default_data_collator

from metafast.integrations.transformers import LRControllerCallback, TunerCallback
from metafast.schedule import LRController
from metafast.tune import Forward, OnlineTuner


def examples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 20, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] > 9)} for row in ids]


def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def trainer(folder, steps=12, callback=None, **options):
    arguments = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "report_to": [], "use_cpu": True, "seed": 1, "logging_steps": 4, "save_steps": 6, "disable_tqdm": True,
        "gradient_accumulation_steps": 2, "warmup_steps": 3, "lr_scheduler_type": "linear", **options,
    }  # fmt: skip
    if callback is None:
        callback = TunerCallback("lr", val_loader(), every=3)
    training = InOrder(model(), TrainingArguments(**arguments), train_dataset=examples(96, 1), callbacks=[callback])
    return training, callback


def trainers_own(net):
    """The optimizer and schedule that the Trainer makes: two groups, a warm-up of 3 steps and a linear end after 12."""
    plain = [p for module in net.modules() for n, p in module.named_parameters(recurse=False)
             if n != "bias" and not isinstance(module, torch.nn.LayerNorm)]  # fmt: skip
    ids = {id(p) for p in plain}
    opt = torch.optim.AdamW(
        [{"params": plain}, {"params": [p for p in net.parameters() if id(p) not in ids]}], lr=1e-3, weight_decay=0.0
    )
    return opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda t: t / 3 if t < 3 else max(0.0, (12 - t) / 9))


def val_loader():
    return DataLoader(examples(16, 2), batch_size=8, collate_fn=default_data_collator)


def test_finds_what_a_loop_of_ones_own_finds(tmp_path):
    """Accumulation, clipping and warm-up by the Trainer; then all of it by hand, over the same batches."""
    training, callback = trainer(tmp_path)
    training.train()
    found = callback.tuner

    again = model()
    opt, schedule = trainers_own(again)
    tuner = OnlineTuner(
        again, opt, "lr", val_loader(), Forward(hvp=False, decay=0.9), 3, max_grad_norm=1.0, scheduler=schedule,
        val_loss=lambda m, batch: m(**batch).loss,
    )  # fmt: skip
    loader = iter(DataLoader(examples(96, 1), batch_size=4, collate_fn=default_data_collator))
    for _ in range(12):
        opt.zero_grad()
        for _ in range(2):
            again(**next(loader)).loss.backward()  # the Trainer adds up too: this model's loss takes keywords
        tuner.update()
        schedule.step()
    assert len(found.state["lr"].hypergradients) == 4
    for (_, a), (_, b) in zip(found.state["lr"].hypergradients, tuner.state["lr"].hypergradients, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    for group, other in zip(found.optimizer.param_groups, opt.param_groups, strict=True):
        assert group["initial_lr"] == pytest.approx(other["initial_lr"], rel=1e-5)
        assert group["lr"] == other["lr"] == 0.0  # the end of the linear schedule
    for a, b in zip(training.model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rates_follow_the_schedule_and_logs_have_the_values(tmp_path):
    rates = []

    class Looks(TunerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kw):
            group = kw["optimizer"].param_groups[0]
            factor = min(1.0, state.global_step / 3) if state.global_step < 3 else (12 - state.global_step) / 9
            rates.append((group["lr"], self.tuner.state["lr"].values["all"] * factor))
            super().on_pre_optimizer_step(args, state, control, **kw)

    training, callback = trainer(tmp_path, callback=Looks("lr", val_loader(), every=2))
    training.train()
    assert len(rates) == 12
    for present, expected in rates:
        assert present == pytest.approx(expected, rel=1e-6)
    logged = [row["tuned/lr"] for row in training.state.log_history if "tuned/lr" in row]
    assert logged[-1] == callback.tuner.state["lr"].values["all"] != 1e-3


def test_resumes_from_the_trainers_checkpoint(tmp_path):
    training, callback = trainer(tmp_path)
    training.train()
    again, other = trainer(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert other.tuner.calls == callback.tuner.calls == 12
    assert other.tuner.state == callback.tuner.state
    for a, b in zip(training.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_without_a_tuner(tmp_path):
    training, _ = trainer(tmp_path)
    training.train()
    (tmp_path / "checkpoint-6" / "tuner.json").unlink()
    again, _ = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"tuner\.json"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_what_cannot_be_tuned_is_said_when_training_begins(tmp_path):
    training, _ = trainer(tmp_path, optim="adafactor")
    with pytest.raises(TypeError, match="Adafactor"):
        training.train()
    with pytest.raises(ValueError, match="scheduler"):
        TunerCallback("lr", val_loader(), scheduler=3)
    training, _ = trainer(tmp_path, callback=TunerCallback("lr", val_loader(), method="reverse"))
    with pytest.raises(ValueError, match=r"tuner\.step"):
        training.train()


# ---- LRControllerCallback


def controlled(folder, steps=12, **options):
    callback = LRControllerCallback(interval=3, **options)
    training, _ = trainer(folder, steps, callback)
    return training, callback.controller


def test_the_controller_steers_as_in_a_loop_of_ones_own(tmp_path):
    training, found = controlled(tmp_path)
    training.train()
    assert [at for at, _ in found.history] == [0, 3, 6, 9, 12]
    assert found.events == []

    again = model()
    opt, schedule = trainers_own(again)
    ctl = LRController.load().attach(opt, interval=3, total_steps=12)
    loader = iter(DataLoader(examples(96, 1), batch_size=4, collate_fn=default_data_collator))
    for _ in range(12):
        opt.zero_grad()
        losses = []
        for _ in range(2):
            losses.append(again(**next(loader)).loss)
            losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(again.parameters(), 1.0)
        opt.step()
        ctl.step(sum(losses) / 2)
        schedule.step()
    for (_, a), (_, b) in zip(found.history, ctl.history, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    for a, b in zip(training.model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_controllers_rates_are_in_the_log_and_its_state_in_the_checkpoints(tmp_path):
    training, ctl = controlled(tmp_path, per="group")
    training.train()
    rows = [row for row in training.state.log_history if "rate/group 0" in row]
    assert rows and rows[-1]["rate/group 1"] == ctl.lr()["group 1"]
    again, other = controlled(tmp_path, per="group")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert other.history == ctl.history
    for a, b in zip(training.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    (tmp_path / "checkpoint-6" / "controller.json").unlink()
    third, _ = controlled(tmp_path, per="group")
    with pytest.raises(ValueError, match=r"controller\.json"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    with pytest.raises(ValueError, match="total_steps"):
        LRControllerCallback(total_steps=3)
