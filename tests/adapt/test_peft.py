"""Exported adapters give the same outputs in peft itself, and come back from its files."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from metafast.adapt import TaskModel, freeze

from .task_cases import bert_config, pictures, resnet_config, small_cnn, task_model, text

pytest.importorskip("peft", reason="peft is not installed: pip install 'metafast[peft]'")
transformers = pytest.importorskip("transformers")


def in_peft(model, folder):
    """The model with the exported adapters, as a user of peft loads them; a warning is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return PeftModel.from_pretrained(model, folder).eval()


def mean(states, x):
    words = (x != 0).float()[..., None]
    return (states * words).sum(1) / words.sum(1)


def head_of(folder):
    return load_file(folder / "head.safetensors")


def test_bert_through_auto_model(tmp_path):
    bert = transformers.AutoModel.from_config(bert_config()).eval()
    model, _ = task_model(bert, "lora:r=4,alpha=8")
    files = model.export(tmp_path)
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors", "head.safetensors"]
    x = text()
    states = in_peft(bert, tmp_path)(input_ids=x, attention_mask=(x != 0).long()).last_hidden_state
    assert torch.allclose(F.linear(mean(states, x), **head_of(tmp_path)), model(x), atol=1e-5)


@pytest.mark.parametrize("classes", [5, 7])
def test_bert_through_auto_model_for_sequence_classification(tmp_path, classes):
    bert = transformers.AutoModelForSequenceClassification.from_config(bert_config(num_labels=5)).eval()
    model, _ = task_model(bert, {"*.query": "lora:r=4", "*.output.dense": "lora:r=2"}, classes, pool="pooler")
    model.export(tmp_path, bert)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == (["classifier"] if classes == 5 else None)
    x = text()
    loaded = in_peft(bert, tmp_path)
    given = {"input_ids": x, "attention_mask": (x != 0).long()}
    if classes == 5:
        assert torch.allclose(loaded(**given).logits, model(x), atol=1e-5)
    else:
        pooled = loaded.base_model.model.bert(**given).pooler_output
        assert torch.allclose(F.linear(pooled, **head_of(tmp_path)), model(x), atol=1e-5)


def test_a_head_that_takes_other_features_is_not_put_into_the_model(tmp_path):
    bert = transformers.BertForSequenceClassification(bert_config(num_labels=5)).eval()
    model, _ = task_model(bert, "lora", 5, pool="mean")
    model.export(tmp_path, bert)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None


def test_without_the_model_the_names_are_still_those_of_the_frozen_one(tmp_path):
    bert = transformers.BertForSequenceClassification(bert_config(num_labels=5)).eval()
    model, _ = task_model(bert, "lora", 5, pool="pooler")
    model.export(tmp_path)
    x = text()
    pooled = in_peft(bert, tmp_path).base_model.model.bert(input_ids=x, attention_mask=(x != 0).long()).pooler_output
    assert torch.allclose(F.linear(pooled, **head_of(tmp_path)), model(x), atol=1e-5)


@pytest.mark.parametrize("classifies", [False, True])
def test_convolutions_of_a_resnet(tmp_path, classifies):
    kind = transformers.ResNetForImageClassification if classifies else transformers.ResNetModel
    resnet = kind(resnet_config(num_labels=5)).eval()
    model, base = task_model(resnet, {"encoder.*.convolution": "lora:r=3"})
    model.export(tmp_path, resnet)
    x = pictures()
    loaded, head = in_peft(resnet, tmp_path), head_of(tmp_path)
    out = loaded(pixel_values=x)
    logits = out.logits if classifies else F.linear(out.pooler_output.flatten(1), **head)
    assert torch.allclose(logits, model(x), atol=1e-5)
    assert not torch.allclose(F.linear(base(x), **head), model(x), atol=1e-2)


def test_a_module_of_ones_own(tmp_path):
    cnn = small_cnn().eval()
    model, _ = task_model(cnn, {"3": "lora:r=2", "7": "lora:r=5,alpha=1"}, 4)
    model.export(tmp_path, cnn)
    assert torch.allclose(in_peft(cnn, tmp_path)(pictures()), model(pictures()), atol=1e-5)


def test_a_name_that_ends_another_is_told_apart(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)).eval()
    model, _ = task_model(net, {"0": "lora:r=2"}, 3)
    model.export(tmp_path, net)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == "0"  # a pattern of the whole name: a list would reach 1.0 too
    x = torch.randn(5, 4)
    assert torch.allclose(in_peft(net, tmp_path)(x), model(x), atol=1e-5)


def test_there_and_back(tmp_path):
    bert = transformers.BertModel(bert_config()).eval()
    model, base = task_model(bert, {"*.query": "lora:r=4,alpha=8", "*.value": "lora:r=2"})
    model.export(tmp_path)
    again = TaskModel.from_peft(base, tmp_path)
    assert torch.equal(again(text()), model(text()))


def test_from_a_file_that_peft_has_written(tmp_path):
    from peft import LoraConfig, get_peft_model

    cnn = small_cnn().eval()
    base, x = freeze(cnn), pictures()
    ours = LoraConfig(r=4, lora_alpha=8, target_modules=["3", "7"], modules_to_save=["9"], init_lora_weights=False)
    peft = get_peft_model(cnn, ours).eval()
    peft.save_pretrained(tmp_path)
    assert torch.allclose(TaskModel.from_peft(base, tmp_path)(x), peft(x), atol=1e-5)


@pytest.mark.parametrize("adapt", [{"3": "film"}, {"1": "norm"}, {"7": "bias"}, {"7": "all"}, "head"], ids=str)
def test_what_is_not_lora_is_refused_with_the_way_out(tmp_path, adapt):
    model, _ = task_model(small_cnn(), adapt)
    with pytest.raises(ValueError, match=r"adapters must be LoRA to be exported, .*merge\(\) folds any adapter"):
        model.export(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_dilated_convolution_is_refused(tmp_path):
    model, _ = task_model(nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.Flatten(), nn.Linear(8, 2)), {"0": "lora"})
    with pytest.raises(ValueError, match="'0' must be a convolution without dilation"):
        model.export(tmp_path)


def test_another_model_is_refused(tmp_path):
    model, _ = task_model(small_cnn(), {"7": "lora"})
    with pytest.raises(ValueError, match=r"model must have a module '7' with a weight \[10, 24\], .* got none"):
        model.export(tmp_path, nn.Linear(2, 2))


def damage_config(folder):
    (folder / "adapter_config.json").write_text("{")


def other_type(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def truncate(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def edit(change):
    def apply(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return apply


A = "base_model.model.7.lora_A.weight"
DAMAGE = {
    "is damaged": damage_config,
    "must be of peft_type 'LORA', got 'IA3'": other_type,
    "is damaged, or no safetensors file": truncate,
    "numbers that are not finite": edit(lambda tensors: tensors[A].fill_(float("nan"))),
    "has LoRA for '7', where the base has Linear": edit(lambda tensors: tensors.pop(A)),
    "has LoRA for '8', where the base has ReLU": edit(
        lambda tensors: tensors.update({A.replace("7", "8"): torch.ones(2, 24)})
    ),
    "LoRA of '7' must have the shapes": edit(lambda tensors: tensors.update({A: torch.ones(2, 23)})),
    "holds no LoRA weights": edit(lambda tensors: tensors.clear()),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_files_are_refused(tmp_path, message):
    model, base = task_model(small_cnn(), {"7": "lora:r=2"})
    model.export(tmp_path)
    DAMAGE[message](tmp_path)
    with pytest.raises(ValueError, match=message):
        TaskModel.from_peft(base, tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in"):
        TaskModel.from_peft(freeze(small_cnn()), tmp_path)
