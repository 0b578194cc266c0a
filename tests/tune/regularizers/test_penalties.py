"""L2 and label smoothing against PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metafast.tune.regularizers import L2, LabelSmoothingCrossEntropy
from tests.helpers import assert_close


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)).double()


@pytest.mark.parametrize(
    ("per", "labels"),
    [
        ("global", ["all"]),
        ("layer", ["0", "1", "2"]),
        ("tensor", ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]),
    ],
)
def test_l2_has_the_gradient_of_a_weight_decay(per, labels):
    model = network()
    penalty = L2(model, [0.1 * (i + 1) for i in range(len(labels))], per)
    assert penalty.labels == labels and penalty.weight.dtype == torch.float64
    penalty().backward()
    for name, param in model.named_parameters():
        label = {"global": "all", "layer": name.split(".")[0], "tensor": name}[per]
        assert_close(param.grad, 0.1 * (labels.index(label) + 1) * param.detach(), name)
    assert torch.autograd.gradcheck(lambda *_: penalty(), (penalty.weight, *model.parameters()))
    assert torch.autograd.gradgradcheck(lambda *_: penalty(), (penalty.weight, *model.parameters()))


def test_l2_of_some_parameters_and_of_half_precision():
    model = network().to(torch.float16)
    with torch.no_grad():
        model[0].weight.fill_(200.0)  # whose squares are no float16
    model[2].weight.requires_grad_(False)
    penalty = L2(((name, p) for name, p in model.named_parameters() if p.ndim > 1), 1e-3, "tensor")
    assert penalty.labels == ["0.weight"] and penalty.weight.dtype == torch.float32
    assert penalty().item() == pytest.approx(0.5e-3 * 12 * 200**2)
    assert not list(penalty.parameters()) and list(penalty.state_dict()) == ["weight"]


def test_l2_follows_parameters_that_move():
    model = network()
    penalty = L2(model, 0.5, "global")
    model.float()
    assert penalty().dtype == torch.float64
    expected = sum(0.25 * p.square().sum().item() for p in model.parameters())
    assert penalty().item() == pytest.approx(expected, rel=1e-6)


SHAPES = {"batch": ((6, 5), (6,)), "pictures": ((2, 5, 3, 4), (2, 3, 4)), "one": ((5,), ())}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_label_smoothing_equals_torch(shape, reduction):
    scores = torch.randn(SHAPES[shape][0], dtype=torch.float64, requires_grad=True)
    numbers = torch.randint(5, SHAPES[shape][1])
    ignored = torch.where(torch.arange(numbers.numel()).view(numbers.shape) == 1, 2, numbers)
    weight = torch.rand(5, dtype=torch.float64)
    soft = torch.softmax(torch.randn_like(scores), min(1, scores.ndim - 1)).detach()
    for smoothing, weights in itertools.product((0.01, 0.37), (None, weight)):
        for targets, options in ((numbers, {}), (ignored, {"ignore_index": 2}), (soft, {})):
            options = {"weight": weights, "reduction": reduction, **options}
            criterion = LabelSmoothingCrossEntropy(smoothing, **options).double()
            with torch.no_grad():
                criterion.smoothing.fill_(smoothing)  # .double() has kept the rounding of float32
            expected = F.cross_entropy(scores, targets, label_smoothing=smoothing, **options)
            found = criterion(scores, targets)
            assert_close(found, expected, "loss")
            assert_close(*(torch.autograd.grad(x.sum(), scores)[0] for x in (found, expected)), "gradient")


def test_label_smoothing_can_be_differentiated_twice():
    scores = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, -100, 4])
    criterion = LabelSmoothingCrossEntropy(0.2).double()
    assert torch.autograd.gradcheck(lambda s, e: criterion(s, targets), (scores, criterion.smoothing))
    assert torch.autograd.gradgradcheck(lambda s, e: criterion(s, targets), (scores, criterion.smoothing))


def test_label_smoothing_where_all_is_ignored_is_as_in_torch():
    scores, targets = torch.randn(3, 5), torch.full((3,), -100)
    assert LabelSmoothingCrossEntropy()(scores, targets).isnan()
    assert LabelSmoothingCrossEntropy(reduction="sum")(scores, targets) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_label_smoothing_of_half_precision_is_computed_in_float32(dtype):
    scores, targets = torch.randn(6, 5).to(dtype), torch.randint(5, (6,))
    criterion = LabelSmoothingCrossEntropy(0.1, weight=torch.ones(5)).to(dtype)
    found = criterion(scores, targets)
    assert found.dtype == torch.float32 and criterion.smoothing.dtype == torch.float32
    assert_close(found, F.cross_entropy(scores.float(), targets, label_smoothing=0.1), "loss")
