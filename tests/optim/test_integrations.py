"""transformers.Trainer and accelerate drive the optimizers as they drive PyTorch's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import metafast

transformers_missing = (
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None
)
accelerate_missing = importlib.util.find_spec("accelerate") is None
# Their own imports warn; ours must not.
pytestmark = pytest.mark.filterwarnings("ignore")


class Words(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(8).add(index).remainder(50)
        return {"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.int64), "labels": torch.tensor(index % 2)}


@pytest.mark.skipif(transformers_missing, reason="needs transformers and accelerate (pip install metafast[hf])")
def test_trainer_trains_saves_and_resumes(tmp_path: Path) -> None:
    import transformers

    def trainer(folder: str, steps: int, **more: Any) -> Any:
        transformers.set_seed(0)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        opt = metafast.optim.AdamW(model.parameters(), lr=1e-3, hypergrad="tensor", hyper_exact=True)
        schedule = transformers.get_linear_schedule_with_warmup(opt, 2, 8)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
            save_steps=4, logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="steps", **more,
        )  # fmt: skip
        made = transformers.Trainer(model=model, args=arguments, train_dataset=Words(), optimizers=(opt, schedule))
        made.mine = opt
        return made

    whole = trainer("whole", 8)
    result = whole.train()
    assert torch.isfinite(torch.tensor(result.training_loss))
    assert len(whole.mine.lr_history) == 8
    assert len(set(whole.mine.learned_lr())) > 1  # rates were learned
    resumed = trainer("resumed", 8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.mine.learned_lr() == whole.mine.learned_lr()
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(accelerate_missing, reason="needs accelerate (pip install metafast[hf])")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(tmp_path: Path, accumulate: int) -> None:
    from accelerate import Accelerator

    def train(accelerated: bool) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(0)
        model: Any = torch.nn.Linear(3, 1)
        opt: Any = metafast.optim.AdamW(model.parameters(), lr=0.01, hypergrad="global")
        schedule: Any = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, step / 2))
        plain = opt
        batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]
        if not accelerated:
            for start in range(0, 8, accumulate):
                opt.zero_grad()
                for x in batches[start : start + accumulate]:
                    (model(x).square().mean() / accumulate).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                schedule.step()
        else:
            accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
            model, opt, schedule = accelerator.prepare(model, opt, schedule)
            for x in batches:
                with accelerator.accumulate(model):
                    accelerator.backward(model(x).square().mean())
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    opt.step()
                    schedule.step()
                    opt.zero_grad()
            accelerator.save_state(str(tmp_path / str(accumulate)))
            rates = plain.learned_lr()
            accelerator.load_state(str(tmp_path / str(accumulate)))
            assert plain.learned_lr() == rates
        return [p.detach() for p in model.parameters()], plain.learned_lr()

    params, rates = train(True)
    expected, expected_rates = train(False)
    torch.testing.assert_close(params, expected)
    assert rates == pytest.approx(expected_rates, rel=1e-6)
