"""What adapts where no pattern says so, and where one does."""

from __future__ import annotations

import pytest
from torch import nn

from metafast.adapt._choice import parse, sites
from metafast.models import Conv4, ResNet12
from tests.adapt.adapt_cases import bert


def found(model: nn.Module, adapt) -> dict[str, str]:
    return {site.name: type(site).__name__ for site in sites(model, adapt)}


def test_lora_takes_the_projections_of_attention_or_all_layers():
    names = [f"encoder.layer.{layer}.attention.self.{part}" for layer in (0, 1) for part in ("query", "value")]
    assert found(bert(), "lora:r=3") == dict.fromkeys(names, "LoRALinear")
    assert [site.r for site in sites(bert(), "lora:r=3,alpha=6")] == [3] * 4
    conv = found(Conv4(1, 5, 28, channels=4, track_running_stats=True), "lora")
    assert list(conv.values()) == ["LoRAConv2d"] * 4 + ["LoRALinear"]


def test_the_last_block_is_that_of_the_repeated_ones():
    assert all(name.startswith("encoder.layer.1.") for name in found(bert(), "last"))
    model = ResNet12(3, 5, widths=(4, 4, 8, 8), track_running_stats=True)
    model.classifier = nn.Identity()  # as freeze leaves it
    assert all(name.startswith("features.3.") for name in found(model, "last"))
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))
    assert found(plain, "last") == {"2": "FullLinear", "3": "Norm"}


def test_kinds_take_what_they_are_for():
    model = nn.Sequential(
        nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.RMSNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)
    )
    assert found(model, "norm") == {"2": "Norm", "4": "Norm"}
    assert found(model, "film") == {"4": "FiLM"}  # RMSNorm has no place for a shift
    assert found(model, "bias") == {"2": "Norm", "3": "Bias", "4": "Norm"}
    assert found(model, "all") == {"0": "FullEmbedding", "1": "FullLinear", "2": "Norm", "3": "FullLinear", "4": "Norm"}
    assert found(model, "head") == {}


def test_the_first_pattern_that_fits_a_module_counts():
    chosen = {"*.query": "lora:r=2", "*.attention.*": "film", "*LayerNorm": "norm"}
    kinds = found(bert(), chosen)
    assert kinds["encoder.layer.0.attention.self.query"] == "LoRALinear"
    assert kinds["encoder.layer.0.attention.self.key"] == "FiLM"
    assert kinds["encoder.layer.0.attention.output.LayerNorm"] == "FiLM"
    assert kinds["encoder.layer.0.output.LayerNorm"] == "Norm"
    assert list(kinds) == [name for name, _ in bert().named_modules() if name in kinds]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lore", "must be one of lora, film"),
        ("lora:rank=4", "no option 'rank'; lora has r and alpha"),
        ("film:r=4", "film has no option 'r'"),
        ("lora:r=x", "r must be a number, got 'x'"),
        ("lora:r=0", "r must be above 0, got 0"),
    ],
)
def test_what_cannot_be_read_is_said(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_all_names_the_layer_that_it_cannot_take():
    with pytest.raises(ValueError, match="'0' is a GRU, which cannot have weights of its own for every task"):
        sites(nn.Sequential(nn.GRU(4, 4), nn.Linear(4, 4)), "all")
