"""Bad input is named before anything changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

import metafast
from metafast.data import Batches
from metafast.tune import SAMA, Forward, Implicit, OnlineTuner, Reverse, Tune, holdout
from metafast.tune._reverse import choose_stride

X, Y = torch.randn(8, 3), torch.randint(2, (8,))


def setup(make=torch.optim.SGD, **options):
    model = nn.Linear(3, 2)
    options.setdefault("lr", 0.1)
    if make is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    return model, make(model.parameters(), **options)


def tuner_of(tune=("lr",), method="forward", *, make=torch.optim.SGD, options=None, val=None, **more):
    model, opt = setup(make, **(options or {}))
    return OnlineTuner(model, opt, list(tune), [(X, Y)] if val is None else val, method, **more)


LEAF = torch.tensor(0.5, requires_grad=True)
VALUES = [
    (lambda: tuner_of(["beta1"]), ValueError, "it has lr, momentum, dampening, weight_decay"),
    (lambda: tuner_of(["dropout"]), ValueError, "tensor that the loss depends on"),
    (lambda: tuner_of(["momentum"], make=torch.optim.AdamW), ValueError, "weight_decay, betas"),
    (lambda: tuner_of(["betas"]), ValueError, "cannot be tuned"),
    (lambda: tuner_of([3]), TypeError, "list of names, tensors and Tune"),
    (lambda: tuner_of([]), ValueError, "at least one"),
    (lambda: tuner_of(["lr", "lr"]), ValueError, "twice: lr"),
    (lambda: tuner_of([LEAF, LEAF]), ValueError, "twice: one tensor"),
    (lambda: tuner_of(["weight_decay"]), ValueError, "weight_decay starts at 0.*above 0"),
    (lambda: tuner_of(["momentum"], options={"momentum": 0}), ValueError, "momentum is 0 in parameter group 0"),
    (lambda: tuner_of(["dampening"], options={"nesterov": True}), ValueError, "leave it out"),
    (lambda: tuner_of([Tune("lr", bounds=(0.2, 1))]), ValueError, "outside its bounds"),
    (lambda: tuner_of([Tune("lr", bounds=(-1, 1))]), ValueError, "must be above 0 in its space"),
    (lambda: tuner_of([torch.ones(2)]), ValueError, "leaf that requires a gradient"),
    (lambda: tuner_of([LEAF * 2]), ValueError, "leaf"),
    (lambda: tuner_of([torch.ones(2, dtype=torch.int64)]), TypeError, "floating-point"),
    (lambda: tuner_of([torch.zeros(0, requires_grad=True)]), ValueError, "empty"),
    (lambda: tuner_of(method="newton"), ValueError, "'forward', 'reverse', 'implicit', 'one_step', 'sama'"),
    (lambda: tuner_of(method=Implicit(solver="cg")), ValueError, "tune has lr"),
    (lambda: tuner_of(method=Reverse(window=11)), ValueError, "at most every=10"),
    (lambda: tuner_of(val=[]), ValueError, "val_loader is empty"),
    (lambda: tuner_of(val=iter([(X, Y)])), TypeError, "gone through again"),
    (lambda: tuner_of(val=3), TypeError, "val_loader must be an iterable"),
    (lambda: tuner_of(every=0), ValueError, "every must be at least 1"),
    (lambda: tuner_of(val_batches="some"), ValueError, "val_batches"),
    (lambda: tuner_of(hyper_lr=0), ValueError, "hyper_lr"),
    (lambda: tuner_of(clip=-1), ValueError, "clip"),
    (lambda: tuner_of(normalize=1), TypeError, "normalize"),
    (lambda: tuner_of(val_loss=3), TypeError, "val_loss"),
    (lambda: tuner_of(hyper_optimizer=lambda groups: None), TypeError, "must return an optimizer"),
    (lambda: tuner_of(make=torch.optim.NAdam), TypeError, "torch.optim.SGD, got NAdam"),
    (lambda: tuner_of(make=metafast.optim.SGD, options={"hypergrad": "global"}), ValueError, "hypergrad='global'"),
    (lambda: tuner_of(make=metafast.optim.SGD, options={"max_grad_norm": 1.0}), ValueError, "max_grad_norm"),
    (lambda: Tune("lr", per="element"), ValueError, "'global', 'group', 'layer', 'tensor'"),
    (lambda: Tune(LEAF, per="tensor"), ValueError, "a tensor has its own shape"),
    (lambda: Tune(5), TypeError, "option's name or a tensor"),
    (lambda: Tune("lr", name="rate"), ValueError, "name is for tensors"),
    (lambda: Tune("lr", space="sqrt"), ValueError, "space must be one of"),
    (lambda: Tune("lr", bounds=(1, 0)), ValueError, "lowest < highest"),
    (lambda: Tune("lr", bounds=3), TypeError, "bounds must be a pair"),
    (lambda: Tune("lr", rate=-1), ValueError, "rate must be finite and above 0"),
    (lambda: Forward(decay=1.5), ValueError, "decay"),
    (lambda: Forward(hvp=1), TypeError, "hvp"),
    (lambda: Implicit(solver="lu"), ValueError, "'neumann', 'cg'"),
    (lambda: Implicit(damping=1.0), ValueError, 'for solver="cg"'),
    (lambda: Implicit(terms=-1), ValueError, "terms"),
    (lambda: Reverse(memory_budget="log"), ValueError, '"sqrt"'),
    (lambda: SAMA(radius=0), ValueError, "radius"),
    (lambda: tuner_of(start=-1), ValueError, "start must be at least 0"),
    (lambda: Implicit(hvp="finite"), ValueError, "'exact', 'difference'"),
    (lambda: Implicit(hvp="difference", radius=-1), ValueError, "radius"),
    (lambda: holdout(range(1)), ValueError, "at least 2"),
    (lambda: holdout(range(9), 1.0), ValueError, "share"),
    (lambda: holdout(iter([1])), TypeError, "length"),
    (lambda: choose_stride(100, 10, 150), ValueError, "at least 190 bytes"),
]


@pytest.mark.parametrize(("call", "error", "message"), VALUES, ids=range(len(VALUES)))
def test_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_none_for_the_loader_says_how_to_make_one():
    model, opt = setup()
    with pytest.raises(ValueError, match="holdout"):
        OnlineTuner(model, opt, "lr", None)


def test_groups_of_different_values_need_units():
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}]
    opt = torch.optim.SGD(groups)
    with pytest.raises(ValueError, match='Tune."lr", per="group"'):
        OnlineTuner(model, opt, "lr", [(X, Y)])
    assert len(opt.param_groups) == 2


def test_an_optimizer_keeps_its_groups_when_the_tuner_is_refused():
    model, opt = setup()
    with pytest.raises(ValueError, match="outside its bounds"):
        OnlineTuner(model, opt, [Tune("lr", per="tensor"), Tune("momentum", bounds=(0.1, 0.2))], [(X, Y)])
    assert len(opt.param_groups) == 1 and opt.param_groups[0]["lr"] == 0.1
    model, opt = setup(metafast.optim.SGD)
    model(X).sum().backward()
    opt.step()
    with pytest.raises(ValueError, match="before its first step"):
        OnlineTuner(model, opt, Tune("lr", per="tensor"), [(X, Y)])


def test_a_wrapped_model_and_one_that_is_none():
    model, opt = setup()
    with pytest.raises(TypeError, match="DistributedDataParallel"):
        OnlineTuner(nn.DataParallel(model), opt, "lr", [(X, Y)])
    with pytest.raises(TypeError, match="nn.Module"):
        OnlineTuner(lambda x: x, opt, "lr", [(X, Y)])


def test_a_parameter_cannot_be_trained_and_tuned():
    model, opt = setup()
    with pytest.raises(ValueError, match="'bias' to tune is one of the optimizer's parameters"):
        OnlineTuner(model, opt, [model.bias], [(X, Y)])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda model: torch.tensor(1.0), ValueError, "does not depend on any parameter"),
        (lambda model: model(X).sum().detach(), ValueError, "does not depend on any parameter"),
        (lambda model: model(X), TypeError, r"one element, got shape \(8, 2\)"),
        (lambda model: 1.0, TypeError, "one element, got float"),
        (lambda model: model(X).sum(), ValueError, "does not depend on the tuned tensor 'penalty'"),
    ],
)
@pytest.mark.parametrize("method", ["forward", "implicit", "sama"])
def test_losses(loss, error, message, method):
    model, opt = setup()
    before = model.weight.clone()
    penalty = torch.tensor(0.1, requires_grad=True)
    tuner = OnlineTuner(model, opt, ["lr", Tune(penalty, name="penalty")], [(X, Y)], method, every=1)
    with pytest.raises(error, match=message):
        tuner.step(lambda: loss(model))
    assert torch.equal(model.weight, before) and tuner.calls == 0 and not opt.state
    tuner.step(lambda: F.cross_entropy(model(X), Y) + penalty * model.weight.square().sum())
    assert tuner.calls == 1


def test_validation_batches_and_losses():
    for val, message in (
        ([X], r"validation batch has 8 parts|must be \(inputs, targets\)"),
        ([(X, torch.randn(8))], "validation targets"),
    ):
        tuner = tuner_of(val=val, every=1)
        with pytest.raises(ValueError, match=message):
            tuner.step(lambda x: tuner.model(x).sum(), X)  # noqa: B023
    tuner = tuner_of(val_loss=lambda model, x, y: torch.tensor(1.0), every=1)
    with pytest.raises(ValueError, match="the validation loss does not depend"):
        tuner.step(lambda: tuner.model(X).sum())


def test_reverse_needs_the_batch():
    tuner = tuner_of(method="reverse")
    with pytest.raises(ValueError, match="lambda x, y"):
        tuner.step(lambda: tuner.model(X).sum())
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        tuner.step(torch.tensor(1.0))


def test_a_tuned_value_has_one_master():
    tuner = tuner_of()
    tuner.optimizer.param_groups[0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"from 0.1 to 0.5; give a scheduler"):
        tuner.step(lambda: tuner.model(X).sum())


def test_overlapping_splits():
    dataset = TensorDataset(X, Y)
    train, val = holdout(dataset, 0.25, seed=1)
    assert sorted([*train.indices, *val.indices]) == list(range(8)) and len(val) == 2
    assert val.indices == holdout(dataset, 0.25, seed=1)[1].indices
    loader = DataLoader(val, batch_size=2)
    tuner_of(val=loader, train_loader=DataLoader(train, batch_size=2))
    for data in (dataset, DataLoader(dataset), Subset(dataset, val.indices), Batches(X, Y, batch_size=4)):
        with pytest.raises(ValueError, match="share 2 of the validation examples"):
            tuner_of(val=loader, train_loader=data)
    inner = Subset(Subset(dataset, [7, 6, 5]), [0])
    with pytest.raises(ValueError, match="share 1"):
        tuner_of(val=DataLoader(inner), train_loader=Subset(dataset, [7]))
    tuner_of(val=DataLoader(inner), train_loader=Subset(dataset, [0, 1, 2]))


def test_a_state_of_another_model_or_tuner():
    tuner = tuner_of(["lr"])
    tuner.step(lambda: tuner.model(X).sum())
    state = tuner.state_dict()
    for other, message in (
        (tuner_of(["lr", "momentum"]), "it tunes"),
        (tuner_of(["lr"], every=3), "every=10"),
        (tuner_of(["lr"], "implicit"), "methods="),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.calls == 0
    model = nn.Linear(4, 2)
    other = OnlineTuner(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "lr", [(X, Y)])
    with pytest.raises(ValueError, match="shapes="):
        other.load_state_dict(state)


def test_one_method_object_for_each_tuner():
    method = Implicit(terms=1)
    tuner_of(method=method)
    with pytest.raises(ValueError, match="belongs to another tuner"):
        tuner_of(method=method)


def test_sparse_gradients():
    model = nn.Embedding(5, 2, sparse=True)
    tuner = OnlineTuner(model, torch.optim.SGD(model.parameters(), lr=0.1), "lr", [(X, Y)], "one_step")
    with pytest.raises(TypeError, match="sparse=False"):
        tuner.step(lambda: model(torch.tensor([1])).sum())
