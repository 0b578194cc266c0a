"""Clipping, loss scaling, schedulers, loops with their own backward pass, epochs, and the tuner's own split."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

import metafast
from metafast.data import Batches
from metafast.tune import SAMA, Forward, OnlineTuner, Reverse, Tune
from tests.tune.tune_cases import CASES, STEPS, Problem, difference, hypergradient, optimizer, read, write

STILL = {"hyper_lr": 1e-300}  # hyperparameters that do not move
EXACT = {"forward": lambda: "forward", "reverse": lambda: "reverse", "sqrt": lambda: Reverse(memory_budget="sqrt")}
LIMIT = 1.0  # clips some of the 20 gradients and not others


def validation(problem, case, change, *, clip=None, schedule=None, tensors=None):
    """The validation loss after 20 steps of plain PyTorch."""
    model = problem.model()
    opt = optimizer(case, model)
    change(opt.param_groups[0])
    scheduler = schedule and schedule(opt)
    clipped = 0
    for x, y in problem.batches:
        opt.zero_grad()
        problem.loss(model, tensors or {}, x, y).backward()
        if clip is not None:
            clipped += bool(nn.utils.clip_grad_norm_(model.parameters(), clip) > clip)
        opt.step()
        if scheduler:
            scheduler.step()
    assert clip is None or 0 < clipped < STEPS
    return float(problem.val_loss(model).detach())


def by_log(name, start, **options):
    """The derivative by the logarithm of an option, by differences."""

    def at(shift):
        return validation(
            options["problem"], options["case"], lambda g: write(g, name, start * math.exp(shift)), **rest
        )

    rest = {key: value for key, value in options.items() if key not in ("problem", "case")}
    return difference(at)


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_clipping_is_differentiated(case, method):
    problem = Problem()
    found = hypergradient(problem, case, ["lr", "weight_decay"], EXACT[method](), max_grad_norm=LIMIT)
    for name, values in found.items():
        expected = by_log(name, case.options[name], problem=problem, case=case, clip=LIMIT)
        assert values == [pytest.approx(expected, rel=1e-6)], name


@pytest.mark.parametrize("method", ["forward", "reverse", "implicit", "one_step", SAMA(radius=1e-4)], ids=str)
def test_clipping_with_a_tensor_of_the_loss(method):
    """One step: all methods are exact there, SAMA to its difference's error."""
    problem, case = Problem(), CASES[1]
    problem.batches = problem.batches[:1]
    tensors = {"l2": torch.tensor([0.1, 0.2, 0.1, 0.3], dtype=torch.float64, requires_grad=True)}

    def at(unit, shift):
        moved = tensors["l2"].detach().clone()
        moved[unit] += shift
        model = problem.model()
        opt = optimizer(case, model)
        problem.loss(model, {"l2": moved}, *problem.batches[0]).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.3) > 0.3
        opt.step()
        return float(problem.val_loss(model).detach())

    expected = [difference(lambda h, unit=unit: at(unit, h)) for unit in range(4)]
    model = problem.model()
    method = metafast.tune.Implicit(terms=0) if method == "implicit" else method
    tuner = OnlineTuner(
        model, optimizer(case, model), Tune(tensors["l2"], name="l2"), [problem.val], method, 1,
        val_loss=lambda model, x, y: problem.val_loss(model), max_grad_norm=0.3,
    )  # fmt: skip
    loss = lambda x, y: problem.loss(model, tensors, x, y)  # noqa: E731
    tuner.step(loss, *problem.batches[0])
    assert tuner.state["l2"].hypergradients[-1][1] == pytest.approx(expected, rel=1e-5)


# ---- loss scaling


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def data(count=48):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :3].sum(1) > 0).long()


def tuner_of(method="forward", package=torch.optim, scaler=None, tune=("lr", "weight_decay"), **options):
    model = small()
    opt = package.AdamW(model.parameters(), lr=0.01)
    x, y = data()
    return OnlineTuner(model, opt, list(tune), [(x[32:], y[32:])], method, 3, scaler=scaler, **options)


def trained(tuner, steps=7, spoil=()):
    x, y = data()
    for index in range(steps):
        rows = torch.arange(32).roll(7 * index)[:12]
        factor = torch.inf if index in spoil else 1.0
        tuner.step(lambda x, y, f: F.cross_entropy(tuner.model(x), y) * f, x[rows], y[rows], factor)
    return tuner


def same(one, other, **tolerance):
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    for name, tuned in one.state.items():
        for (_, found), (_, expected) in zip(tuned.hypergradients, other.state[name].hypergradients, strict=True):
            assert found == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("package", [torch.optim, metafast.optim], ids=["torch", "metafast"])
@pytest.mark.parametrize("method", ["forward", "reverse", "implicit", "sama"])
def test_a_scaler_changes_no_result(method, package):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    found = trained(tuner_of(method, package, scaler, max_grad_norm=0.5))
    same(found, trained(tuner_of(method, package, max_grad_norm=0.5)), rtol=1e-5, atol=1e-7)
    assert found.overflows == 0


@pytest.mark.parametrize("package", [torch.optim, metafast.optim], ids=["torch", "metafast"])
@pytest.mark.parametrize("method", ["forward", "reverse"])
def test_steps_that_overflow_are_left_out(method, package):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    tuner = trained(tuner_of(method, package, scaler), spoil=(1, 5))
    assert (tuner.calls, tuner.overflows, scaler.get_scale()) == (5, 2, 2.0**14)
    assert all(math.isfinite(v) for _, row in tuner.state["lr"].hypergradients for v in row)
    assert all(p.isfinite().all() for p in tuner.model.parameters())
    again = tuner_of(method, package, torch.amp.GradScaler("cpu"))
    again.load_state_dict(tuner.state_dict())
    assert again.overflows == 2


def test_a_scaled_backward_pass_in_half_precision():
    """Products of half-precision gradients that would underflow without the scale."""
    found = {}
    for dtype in (torch.float32, torch.float16):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype == torch.float16)
        tuner = tuner_of("forward", scaler=scaler, **STILL)
        x, y = data()
        for _ in range(3):

            def loss(x, y, dtype=dtype, model=tuner.model):
                with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
                    return 1e-5 * F.cross_entropy(model(x), y)

            tuner.step(loss, x[:32], y[:32])
        found[dtype] = tuner.state["lr"].hypergradients[0][1][0]
    assert found[torch.float16] == pytest.approx(found[torch.float32], rel=0.02)


# ---- schedulers

SCHEDULES = {
    "warm-up": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: min(1.0, step / 5)),
    "step": lambda opt: lr_scheduler.StepLR(opt, 4, 0.5),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, STEPS),
    "sequence": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(opt, STEPS - 5)],
        milestones=[5],
    ),
}


def scheduled(schedule, method, every=STEPS, **options):
    problem, case = Problem(), CASES[1]
    model = problem.model()
    opt = optimizer(case, model)
    scheduler = SCHEDULES[schedule](opt)
    tuner = OnlineTuner(
        model, opt, ["lr", "momentum"], [problem.val], method, every, scheduler=scheduler,
        val_loss=lambda model, x, y: problem.val_loss(model), **options,
    )  # fmt: skip
    return problem, case, model, opt, scheduler, tuner


@pytest.mark.parametrize("method", ["forward", "reverse"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_base_rate_of_a_scheduler_is_tuned(schedule, method):
    problem, case, model, _, scheduler, tuner = scheduled(schedule, method, **STILL)
    for x, y in problem.batches:
        tuner.step(lambda x, y: problem.loss(model, {}, x, y), x, y)
        scheduler.step()
    expected = by_log("lr", case.options["lr"], problem=problem, case=case, schedule=SCHEDULES[schedule])
    assert tuner.state["lr"].hypergradients[-1][1] == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_moved_base_rate_keeps_the_schedule(schedule):
    problem, _, model, opt, scheduler, tuner = scheduled(schedule, "one_step", 2)
    plain = optimizer(CASES[1], problem.model())
    shape = SCHEDULES[schedule](plain)
    for x, y in problem.batches:
        before = read(opt.param_groups[0], "lr")
        tuner.step(lambda x, y: problem.loss(model, {}, x, y), x, y)
        factor = plain.param_groups[0]["lr"] / CASES[1].options["lr"]
        assert read(opt.param_groups[0], "lr") == pytest.approx(tuner.state["lr"].values["all"] * factor, rel=1e-9)
        plain.step()
        scheduler.step()
        shape.step()
    assert len({value for _, (value,) in tuner.state["lr"].history}) > 5
    assert before != CASES[1].options["lr"]


def test_a_scheduled_tuner_resumes():
    problem, _, model, opt, scheduler, tuner = scheduled("warm-up", "forward", 3)

    def go(tuner, model, scheduler, batches):
        for x, y in batches:
            tuner.step(lambda x, y: problem.loss(model, {}, x, y), x, y)
            scheduler.step()

    go(tuner, model, scheduler, problem.batches[:4])
    kept = copy.deepcopy([part.state_dict() for part in (model, opt, scheduler, tuner)])
    _, _, model2, opt2, scheduler2, tuner2 = scheduled("warm-up", "forward", 3)
    for part, state in zip((model2, opt2, scheduler2, tuner2), kept, strict=True):
        part.load_state_dict(state)
    go(tuner, model, scheduler, problem.batches[4:])
    go(tuner2, model2, scheduler2, problem.batches[4:])
    assert tuner.state == tuner2.state
    for a, b in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedulers_that_do_not_fit():
    model = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    val = [data()]
    bad = [
        (lr_scheduler.OneCycleLR(opt, 1.0, total_steps=10), "OneCycleLR"),
        (lr_scheduler.CosineAnnealingLR(opt, 10, eta_min=0.01), "eta_min"),
        (lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.1), 3), "another optimizer"),
    ]
    for scheduler, message in bad:
        with pytest.raises(ValueError, match=message):
            OnlineTuner(model, opt, "lr", val, scheduler=scheduler)
    with pytest.raises(TypeError, match="scheduler"):
        OnlineTuner(model, opt, "lr", val, scheduler="cosine")
    with pytest.raises(ValueError, match="scheduler"):
        OnlineTuner(model, opt, Tune("lr", per="layer"), val, scheduler=lr_scheduler.StepLR(opt, 3))
    tuner = OnlineTuner(model, opt, "lr", val, method="one_step")
    opt.param_groups[0]["lr"] *= 0.5
    with pytest.raises(ValueError, match="scheduler="):
        tuner.step(lambda: F.cross_entropy(model(val[0][0]), val[0][1]))


# ---- loops with their own backward pass


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("method", ["one_step", "sama", "free"])
def test_update_equals_step(method, scaled):
    def make():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
        return tuner_of(Forward(hvp=False, decay=0.9) if method == "free" else method, scaler=scaler, max_grad_norm=0.5)

    expected, tuner = trained(make()), make()
    x, y = data()
    for index in range(7):
        rows = torch.arange(32).roll(7 * index)[:12]
        tuner.optimizer.zero_grad()
        for part in (rows[:4], rows[4:8], rows[8:]):  # accumulated
            loss = F.cross_entropy(tuner.model(x[part]), y[part]) / 3
            (loss if tuner.scaler is None else tuner.scaler.scale(loss)).backward()
        if scaled and index % 2:
            tuner.scaler.unscale_(tuner.optimizer)  # as loops do that clip themselves
        tuner.update()
    same(tuner, expected, rtol=1e-5, atol=1e-6)
    assert tuner.validation == [(c, pytest.approx(v, rel=1e-5)) for c, v in expected.validation]


def test_update_leaves_out_what_overflows():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    tuner = tuner_of("one_step", scaler=scaler)
    before = [p.clone() for p in tuner.model.parameters()]
    scaler.scale(tuner.model(data()[0]).sum() * torch.inf).backward()
    tuner.update()
    assert (tuner.calls, tuner.overflows) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, tuner.model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["forward", "reverse", "implicit"])
def test_update_says_which_methods_need_step(method):
    tuner = tuner_of(method)
    tuner.model(data()[0]).sum().backward()
    with pytest.raises(ValueError, match=r"tuner\.step"):
        tuner.update()


def test_update_needs_gradients():
    with pytest.raises(ValueError, match="backward"):
        tuner_of("one_step").update()


# ---- epochs, and the split


def test_feedback_by_epoch_sees_all_of_a_split_that_the_tuner_makes():
    x, y = data()
    model = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    tuner = OnlineTuner(
        model, opt, "lr", method="one_step", every="epoch", train_loader=loader, val_share=0.25, hyper_lr=1e-9
    )
    train, val = tuner.train_loader.dataset, tuner.val_loader.dataset
    assert (len(train), len(val)) == (36, 12)
    assert not set(train.indices) & set(val.indices)
    assert tuner.every == len(tuner.train_loader) == 5
    for _ in range(2):
        for a, b in tuner.train_loader:
            tuner.step(lambda a, b: F.cross_entropy(model(a), b), a, b)
    assert [calls for calls, _ in tuner.validation] == [5, 10]
    rows = torch.tensor(val.indices)
    sizes = torch.tensor([8.0, 4.0])  # the mean of the means of batches
    with torch.no_grad():
        whole = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
    assert len(sizes) == len(tuner.val_loader)
    assert tuner.validation[-1][1] == pytest.approx(float(whole.mean()), rel=0.3)
    again = OnlineTuner(
        small(), torch.optim.SGD(small().parameters(), lr=0.01), "lr", train_loader=loader, val_share=0.25
    )
    assert again.val_loader.dataset.indices == val.indices


def test_batches_are_split_too():
    x, y = data()
    model = small()
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    tuner = OnlineTuner(model, opt, "lr", train_loader=Batches(x, y, batch_size=8, drop_last=True), seed=3)
    train, val = tuner.train_loader, tuner.val_loader
    assert (len(train.tensors[0]), len(val.tensors[0]), train.drop_last, val.drop_last) == (43, 5, True, False)
    rows = torch.cat([train.tensors[0], val.tensors[0]])
    assert torch.equal(rows[rows[:, 0].argsort()], x[x[:, 0].argsort()])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_loader": [(1, 2)]}, TypeError, "holdout"),
        ({"train_loader": DataLoader(range(9), sampler=WeightedRandomSampler([1.0] * 9, 9))}, ValueError, "Weighted"),
        ({"train_loader": DataLoader(range(9), batch_sampler=BatchSampler(RandomSampler(range(9)), 2, False))},
         TypeError, "holdout"),
        ({"every": "epoch", "val_loader": [1]}, ValueError, "train_loader"),
        ({"every": "batch", "val_loader": [1]}, ValueError, "epoch"),
        ({"max_grad_norm": 0, "val_loader": [1]}, ValueError, "max_grad_norm"),
        ({"scaler": 2.0, "val_loader": [1]}, TypeError, "GradScaler"),
        ({"val_share": 1.0, "train_loader": DataLoader(range(9))}, ValueError, "share"),
    ],
)  # fmt: skip
def test_arguments(options, error, message):
    model = small()
    with pytest.raises(error, match=message):
        OnlineTuner(model, torch.optim.SGD(model.parameters(), lr=0.1), "lr", **options)
