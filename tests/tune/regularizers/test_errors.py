"""What is refused, by name and with a way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metafast.tune import OnlineTuner
from metafast.tune.regularizers import L2, Augment, ConcreteDropout, LabelSmoothingCrossEntropy, Mixup, replace_dropout

MODEL = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
PICTURES = torch.rand(4, 1, 5, 5)

CALLS = [
    (lambda: L2(MODEL, -1e-4), ValueError, "weight must be finite and above 0, got -0.0001"),
    (lambda: L2(MODEL, 0.0), ValueError, "weight must be finite and above 0"),
    (lambda: L2(MODEL, float("nan")), ValueError, "weight must be finite"),
    (lambda: L2(MODEL, "small"), TypeError, "weight must be a number"),
    (lambda: L2(MODEL, [0.1, 0.1, 0.1]), ValueError, "one for each of the 2 labels 0, 1, got 3"),
    (lambda: L2(MODEL, per="group"), ValueError, "'global', 'layer', 'tensor', got 'group'"),
    (lambda: L2(nn.ReLU()), ValueError, "nothing to penalize"),
    (lambda: L2(MODEL.parameters()), TypeError, "model.named_parameters"),
    (lambda: L2(3), TypeError, "model must be an nn.Module or pairs"),
    (lambda: LabelSmoothingCrossEntropy(0.0), ValueError, "smoothing must be above 0 and below 1"),
    (lambda: LabelSmoothingCrossEntropy(1.2), ValueError, "smoothing must be above 0 and below 1"),
    (lambda: LabelSmoothingCrossEntropy("0.1"), TypeError, "smoothing must be a number"),
    (lambda: LabelSmoothingCrossEntropy(reduction="max"), ValueError, "'mean', 'sum', 'none', got 'max'"),
    (lambda: LabelSmoothingCrossEntropy(ignore_index=1.5), TypeError, "ignore_index must be an integer"),
    (lambda: LabelSmoothingCrossEntropy(weight=[1.0, 2.0]), TypeError, "weight must be a floating-point tensor"),
    (lambda: LabelSmoothingCrossEntropy()(X, torch.tensor([0, 1, 2, 3])), ValueError, "from 0 to 2, got 3"),
    (lambda: LabelSmoothingCrossEntropy()(X, torch.tensor([0, -1, 2, 1])), ValueError, "from 0 to 2, got -1"),
    (lambda: LabelSmoothingCrossEntropy()(X, Y.int()), TypeError, r"targets.long\(\)"),
    (lambda: LabelSmoothingCrossEntropy()(X, Y[:3]), ValueError, r"shape \[4\] for scores \[4, 3\], got \[3\]"),
    (lambda: LabelSmoothingCrossEntropy()(X, X[:, :2]), ValueError, r"shape \[4, 3\] for scores"),
    (lambda: LabelSmoothingCrossEntropy()(X.long(), Y), TypeError, "scores must be a floating-point"),
    (lambda: LabelSmoothingCrossEntropy()(X, [0, 1, 2, 1]), TypeError, "2 dimensions and list"),
    (lambda: Mixup(0.0), ValueError, "strength must be finite and above 0"),
    (lambda: Mixup(-1), ValueError, "strength must be finite and above 0"),
    (lambda: Mixup(per="pixel"), ValueError, "'example', 'batch', got 'pixel'"),
    (lambda: Mixup(num_classes=1), ValueError, "num_classes must be at least 2"),
    (lambda: Mixup()(X, Y), ValueError, r"Mixup\(num_classes=...\)"),
    (lambda: Mixup(num_classes=2)(X, Y), ValueError, "from 0 to 1, got 2"),
    (lambda: Mixup(num_classes=3)(X, Y.int()), TypeError, "int64"),
    (lambda: Mixup(num_classes=3)(X, Y[:3]), ValueError, r"inputs \[4, 3\], got \[3\]"),
    (lambda: Mixup(num_classes=3)(X, [0, 1]), ValueError, "got list"),
    (lambda: Mixup(num_classes=3)((X * 9).long(), Y), TypeError, "tokens as embeddings"),
    (lambda: ConcreteDropout(0.0), ValueError, "p must be above 0 and below 1"),
    (lambda: ConcreteDropout(1.0), ValueError, "p must be above 0 and below 1"),
    (lambda: ConcreteDropout(-0.5), ValueError, "p must be above 0 and below 1"),
    (lambda: ConcreteDropout(torch.tensor(1.5)), ValueError, "p must be above 0 and below 1"),
    (lambda: ConcreteDropout("half"), TypeError, "p must be a number"),
    (lambda: ConcreteDropout(torch.tensor([0.1, 0.2])), TypeError, "p must be a number or a 0-d tensor"),
    (lambda: ConcreteDropout(0.5, temperature=-1), ValueError, "temperature must be finite and above 0"),
    (lambda: ConcreteDropout(0.5, channel_dims=4), ValueError, "channel_dims must be 0, 1, 2 or 3"),
    (lambda: ConcreteDropout()(Y), TypeError, "x must be a floating-point tensor, got a tensor of torch.int64"),
    (lambda: ConcreteDropout(channel_dims=1)(PICTURES), ValueError, r"got shape \[4, 1, 5, 5\]"),
    (lambda: Augment(), ValueError, "shift, rotation, scale, shear, contrast, brightness, noise, cutout"),
    (lambda: Augment(shift=-0.1), ValueError, "shift must be finite and above 0"),
    (lambda: Augment(noise=0), ValueError, "noise must be finite and above 0"),
    (lambda: Augment(rotation="10"), TypeError, "rotation must be a number"),
    (lambda: Augment(shift=0.1)(X), ValueError, r"\[N, C, H, W\], got shape \[4, 3\]"),
    (lambda: Augment(shift=0.1)(PICTURES[0]), ValueError, r"image\[None\]"),
    (lambda: Augment(shift=0.1)((PICTURES * 255).byte()), TypeError, "x / 255"),
    (lambda: Augment(shift=0.1)("picture"), TypeError, "got str"),
    (lambda: ConcreteDropout().tune(space="cubic"), ValueError, "space must be one of"),
    (lambda: ConcreteDropout().tune(rate=-1), ValueError, "rate must be finite and above 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS, ids=range(len(CALLS)))
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def tuner(model, tune):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return OnlineTuner(model, opt, tune, [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1]))])


def test_a_start_outside_the_bounds_says_how_to_widen_them():
    model = nn.Sequential(nn.Linear(4, 2), ConcreteDropout(0.95))
    with pytest.raises(ValueError, match=r"dropout starts at 0.95, outside its bounds"):
        tuner(model, model[1].tune())
    assert list(tuner(model, model[1].tune(bounds=(0.5, 0.99))).state) == ["dropout"]


def test_two_of_a_kind_need_names():
    model = nn.Sequential(nn.Linear(4, 2), ConcreteDropout(0.1), ConcreteDropout(0.2))
    with pytest.raises(ValueError, match="the same hyperparameter twice: dropout"):
        tuner(model, [*model[1].tune(), *model[2].tune()])
    assert list(tuner(model, [*model[1].tune("first"), *model[2].tune("second")]).state) == ["first", "second"]


def test_a_dropout_of_zero_starts_at_the_lowest_probability():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0))
    assert tuner(model, replace_dropout(model)).state["1.p"].values["all"] == pytest.approx(1e-3)


def test_an_optimizer_may_be_made_before_or_after():
    """What is tuned is not among the parameters, whichever comes first."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1))
    tune = replace_dropout(model)
    tuner(model, [*tune, *L2(model).tune()])
    assert not any(p is tune[0].what for p in model.parameters())
