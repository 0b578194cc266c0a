"""A task model is an ordinary module: called, saved, copied, trained further, merged."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from metafast.adapt import TaskModel, freeze
from metafast.adapt._sites import LoRALinear

from .task_cases import pictures, small_cnn, task_model, text

KINDS = ["lora:r=2", "lora:r=2,alpha=6", "film", "bias", "norm", "head", "last", "all"]
MIXED = {"0": "lora:r=3", "1": "norm", "3": "film", "7": "all"}


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("adapt", [*KINDS, MIXED], ids=str)
def test_merged_computes_the_same_without_adapters(adapt):
    model, base = task_model(small_cnn(), adapt)
    before, x = weights(base), pictures()
    merged = model.merge()
    assert torch.allclose(merged(x), model(x), atol=1e-5)
    kinds = {type(module) for module in merged.base.modules()}
    assert kinds == {type(module) for module in base.modules()}
    assert list(merged.base.state_dict()) == list(base.state_dict()) or "bias" in str(merged.base.state_dict().keys())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(p.requires_grad for p in merged.parameters())


def test_merged_shares_what_did_not_adapt():
    model, base = task_model(small_cnn(), {"3": "lora"})
    merged = model.merge()
    assert (
        merged.base.model[0].weight.data_ptr()
        == base.model[0].weight.data_ptr()
        == model.base.model[0].weight.data_ptr()
    )
    assert merged.base.model[3].weight.data_ptr() != base.model[3].weight.data_ptr()


@pytest.mark.parametrize("adapt", ["lora", "norm", "bias", "last"])
def test_bert_merges(adapt):
    transformers = pytest.importorskip("transformers")
    from .task_cases import bert_config

    model, _ = task_model(transformers.BertModel(bert_config()), adapt)
    assert torch.allclose(model.merge()(text()), model(text()), atol=1e-5)


def test_starts_are_the_frozen_model_and_its_head():
    base = freeze(small_cnn())
    site = LoRALinear("7", base.model[7], r=2)
    weight, bias = torch.randn(5, 10), torch.randn(5)
    model, x = TaskModel(base, [site], {"7": site.start()}, weight, bias), pictures()
    assert torch.equal(model(x), nn.functional.linear(base(x), weight, bias))


def test_state_goes_through_a_file_and_into_another_copy(tmp_path):
    model, _ = task_model(small_cnn(), MIXED)
    other, _ = task_model(small_cnn(), MIXED, classes=5)
    for parameter in other.parameters():
        if parameter.requires_grad:
            nn.init.zeros_(parameter)
    save_file(model.state_dict(), tmp_path / "task.safetensors")
    other.load_state_dict(load_file(tmp_path / "task.safetensors"))
    assert torch.equal(other(pictures()), model(pictures()))


def test_a_deep_copy_is_apart():
    model, _ = task_model(small_cnn(), MIXED)
    twin, x = copy.deepcopy(model), pictures()
    before = model(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(model(x), before) and not torch.allclose(twin(x), before)


def test_it_can_be_trained_further_and_the_base_stays():
    model, base = task_model(small_cnn(), MIXED)
    before, x, y = weights(base), pictures(), torch.tensor([0, 1, 2, 3])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {
        id(p) for name, p in model.named_parameters() if ".values." in name or name.startswith("head.")
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model.train()(x), y)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] and all(p.grad is not None for p in trained)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_module_in_two_places_adapts_in_both():
    shared = nn.Linear(6, 6)
    model, _ = task_model(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 3)), {"0": "lora"})
    assert model.base.model[0] is model.base.model[2]
    merged = model.merge()
    assert merged.base.model[0] is merged.base.model[2]
    assert torch.allclose(merged(torch.ones(2, 6)), model(torch.ones(2, 6)), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "weight", "bias", "message"),
    [
        ({}, (5, 10), (5,), "values must be given for each of the 1 sites and no other; missing \\['7'\\]"),
        ({"7": {"A": (2, 24), "B": (9, 2)}}, (5, 10), (5,), "values of '7' must have the shapes"),
        ({"7": {"A": (2, 24), "B": (10, 2)}}, (5, 9), (5,), "weight must be \\[classes, 10\\]"),
        ({"7": {"A": (2, 24), "B": (10, 2)}}, (5, 10), (4,), "bias must be \\[5\\] as weight, got \\[4\\]"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values, weight, bias, message):
    base = freeze(small_cnn())
    site = LoRALinear("7", base.model[7], r=2)
    values = {name: {part: torch.zeros(shape) for part, shape in parts.items()} for name, parts in values.items()}
    with pytest.raises(ValueError, match=message):
        TaskModel(base, [site], values, torch.zeros(weight), torch.zeros(bias))
