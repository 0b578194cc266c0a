"""`TunerCallback` in a real Lightning trainer: the same numbers as the tuner's own loop, and resuming."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("pytorch_lightning")
import pytorch_lightning as lightning

from metafast.integrations.lightning import TunerCallback
from metafast.tune import Forward, OnlineTuner

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of Lightning: few workers, no validation loop
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 5, generator=generator)
    return x, (x[:, :2].sum(1) > 0).long()


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(1.0, (t + 1) / 4))
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loaders():
    x, y = data()
    return DataLoader(TensorDataset(x[:48], y[:48]), batch_size=4), [(x[48:], y[48:])]


def fit(folder, epochs=2, checkpoint=None, module=None, **options):
    train, val = loaders()
    callback = TunerCallback("lr", val, every=3)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=str(folder), callbacks=[callback],
        **{"accumulate_grad_batches": 2, "gradient_clip_val": 0.4, **options},
    )  # fmt: skip
    module = module or Module()
    trainer.fit(module, train, ckpt_path=checkpoint)
    return trainer, module, callback.tuner


def test_finds_what_a_loop_of_ones_own_finds(tmp_path):
    trainer, module, found = fit(tmp_path)
    train, val = loaders()
    again = Module()
    opt = torch.optim.AdamW(again.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(1.0, (t + 1) / 4))
    tuner = OnlineTuner(
        again, opt, "lr", val, Forward(hvp=False, decay=0.9), 3, max_grad_norm=0.4, scheduler=schedule
    )  # fmt: skip
    for _ in range(2):
        for index, (x, y) in enumerate(train):
            (F.cross_entropy(again(x), y) / 2).backward()
            if index % 2:
                tuner.update()
                opt.zero_grad()
                schedule.step()
    assert found.calls == tuner.calls == 12
    for (_, a), (_, b) in zip(found.state["lr"].hypergradients, tuner.state["lr"].hypergradients, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert float(trainer.callback_metrics["tuned/lr"]) == pytest.approx(found.state["lr"].values["all"], rel=1e-6)


def test_resumes_from_the_trainers_checkpoint(tmp_path):
    whole = fit(tmp_path)
    half, _, _ = fit(tmp_path, epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = fit(tmp_path, checkpoint=tmp_path / "half.ckpt")
    assert again[2].state == whole[2].state
    for a, b in zip(again[1].parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="norm"):
        fit(tmp_path, gradient_clip_algorithm="value")

    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match="automatic"):
        fit(tmp_path, module=Manual(), accumulate_grad_batches=1, gradient_clip_val=None)
    with pytest.raises(ValueError, match="scaler"):
        TunerCallback("lr", [1], scaler=2)
