"""Adaptation and meta-gradients against one task at a time by plain autograd, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metafast.adapt import MetaFineTuner, _factors, _net, freeze
from metafast.adapt._factors import MIXERS
from metafast.adapt._loop import Loop
from metafast.data import TaskBatch
from metafast.maml import evaluate
from tests.adapt.adapt_cases import (
    bert,
    conv_net,
    jiggled,
    pictures,
    plain_course,
    sentences,
    starts_of,
    tuner,
)

CASES = [
    ("conv", "lora:r=2"),
    ("conv", "film"),
    ("conv", "bias"),
    ("conv", "norm"),
    ("conv", "last"),
    ("conv", "all"),
    ("conv", "head"),
    ("conv", {"3": "lora:r=2,alpha=1", "4": "norm", "8": "all"}),
    ("bert", "lora:r=2"),
    ("bert", "film"),
    ("bert", "bias"),
    ("bert", "last"),
    ("bert", "all"),
]


@pytest.mark.parametrize(("model", "adapt"), CASES, ids=[f"{m}-{a}" for m, a in CASES])
def test_gradient_descent_and_its_meta_gradient_are_those_of_plain_autograd(model, adapt):
    meta, batch = tuner(model, adapt)
    jiggled(meta, only="starts")
    loss, metrics = meta(batch)
    starts = starts_of(meta)
    plain = [plain_course(meta, meta.base, batch, task, starts, 0.3) for task in range(len(batch))]
    expected = torch.stack([query for query, _ in plain])
    torch.testing.assert_close(metrics["loss"], expected.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(metrics["support_losses"], torch.stack([torch.stack(s) for _, s in plain]))
    parameters = list(meta.starts.values())
    if not parameters:
        return
    loss.backward()
    grads = torch.autograd.grad(expected.mean(), parameters, allow_unused=True)
    for name, parameter, grad in zip(meta.starts, parameters, grads, strict=True):
        grad = torch.zeros_like(parameter) if grad is None else grad
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(own, grad, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


PARTS = ["alfa", *(f"alfa+{mixer}" for mixer in MIXERS), "init+alfa+mend", "init", "coordinate"]


FACTORS = [("conv", "film", part) for part in PARTS] + [("bert", "lora:r=2", part) for part in PARTS]
FACTORS += [("conv", adapt, "alfa+conv") for adapt in ("lora:r=2", "bias", "all")]  # those of convolutions


@pytest.mark.parametrize(("model", "adapt", "net"), FACTORS)
def test_meta_gradients_of_every_part_are_those_of_finite_differences(model, adapt, net, monkeypatch):
    # What the networks read is a constant of the gradient by design; it is made one, so that differences see the same.
    state = torch.randn(8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    monkeypatch.setattr(_net, "state_of", lambda values, grads, *_: state.expand(len(values[0]), len(values), 8))
    monkeypatch.setattr(_net, "feedback", lambda losses, _: state[:3].expand(len(losses[0]), 3))
    monkeypatch.setattr(_factors, "_size", lambda squares, *_: squares.new_ones(()))
    meta, batch = tuner(model, adapt, net, steps=1 if net == "coordinate" else 2)
    jiggled(meta)
    meta(batch)[0].backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in meta.net.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        direction /= direction.norm()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
                losses.append(float(meta(batch)[0]))
                parameter -= sign * 1e-5 * direction
        assert parameter.grad is not None, name
        found = float((parameter.grad * direction).sum())
        assert found == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("net", [None, "alfa+mend", "init+alfa+mend", "coordinate"])
@pytest.mark.parametrize(("model", "adapt"), [("conv", "film"), ("conv", "all"), ("bert", "lora:r=2")])
def test_first_order_takes_the_inner_gradients_as_constants(model, adapt, net, monkeypatch):
    first, batch = tuner(model, adapt, net, order=1)
    second, _ = tuner(model, adapt, net, order=2)
    second.load_state_dict(jiggled(first).state_dict())
    original = Loop._gradients

    def constant(self, *arguments):
        return [{name: grad.detach() for name, grad in own.items()} for own in original(self, *arguments)]

    if net in (None, "coordinate"):  # no network works on the factors, whose gradients first order keeps
        monkeypatch.setattr(Loop, "_gradients", constant)
    losses = [meta(batch)[0] for meta in (first, second)]
    torch.testing.assert_close(*[loss.detach() for loss in losses])
    for loss in losses:
        loss.backward()
    if net in (None, "coordinate"):
        for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=lambda text, n=name: f"{n}: {text}")
    else:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in first.parameters())


@pytest.mark.parametrize(("model", "adapt"), [("conv", "film"), ("bert", "lora:r=2")])
@pytest.mark.parametrize("order", [1, 2])
def test_chunks_change_nothing(model, adapt, order):
    build = lambda **options: jiggled(tuner(model, adapt, "init+alfa+mend", order=order, **options)[0])  # noqa: E731
    batch = (pictures if model == "conv" else sentences)(tasks=3)
    weights = torch.tensor([0.5, 0.2, 0.3])
    whole, apart = build(), build(chunk=2)
    results = [meta(batch, task_weights=weights) for meta in (whole, apart)]
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1]["logits"], results[1][1]["logits"])
    for loss, _ in results:
        (2 * loss).backward()
    for a, b in zip(whole.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(("model", "adapt"), [("conv", "last"), ("conv", "head"), ("bert", {"*.1.*query": "lora:r=2"})])
def test_what_comes_before_the_first_site_runs_once(model, adapt):
    meta, batch = tuner(model, adapt, steps=3)
    calls = []
    first = meta.tree.backbone.model[0] if model == "conv" else meta.tree.backbone.model.encoder.layer[0]
    original = first.forward.forward
    first.forward.forward = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    with_reuse = meta(batch)[1]["loss"]
    assert len(calls) == 2  # support and query
    list(meta.trajectory(batch))
    assert len(calls) == 4
    meta.tree.reuse.of = lambda kept: type(meta.tree.reuse)().of(None)
    torch.testing.assert_close(meta(batch)[1]["loss"], with_reuse)
    assert len(calls) == 8


class Overwrites(nn.Module):
    """Writes over what the frozen layers before the first site gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.first(x)
        hidden += 1
        out = self.second(hidden)
        out *= 2
        return self.head(torch.tanh(out))


def test_a_model_that_writes_over_its_activations_is_adapted_rightly():
    torch.manual_seed(0)
    model = Overwrites().double()
    meta = jiggled(MetaFineTuner(freeze(model), {"second": "all"}, None, steps=3, inner_lr=0.5), only="starts")
    x, y = torch.randn(2, 6, 4, dtype=torch.float64), torch.arange(6).remainder(2).expand(2, 6)
    batch = TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
    plain = [plain_course(meta, meta.base, batch, t, starts_of(meta), 0.5)[0].item() for t in range(2)]
    assert meta(batch)[1]["loss"].tolist() == pytest.approx(plain, rel=1e-9)
    assert meta(batch)[1]["loss"].tolist() == pytest.approx(plain, rel=1e-9)


def test_padding_and_numbers_of_classes_change_nothing_for_a_task():
    meta, batch = tuner("conv", "film", "init+alfa+mend")
    jiggled(meta)
    alone = meta(batch)[1]
    grown = []
    for part in ("support", "query"):
        x, y = getattr(batch, f"{part}_x"), getattr(batch, f"{part}_y")
        more = torch.full((len(x), 2, *x.shape[2:]), torch.nan, dtype=x.dtype)
        mask = torch.ones(len(x), x.shape[1] + 2, dtype=torch.bool)
        mask[:, -2:] = False
        grown.append((torch.cat([x, more], 1), torch.cat([y, torch.full((len(x), 2), 9)], 1), mask))
    (sx, sy, sm), (qx, qy, qm) = grown
    padded = TaskBatch(sx, sy, qx, qy, sm, qm, torch.full((len(batch),), 3))
    found = meta(padded)[1]
    torch.testing.assert_close(found["loss"], alone["loss"])
    torch.testing.assert_close(found["accuracy"], alone["accuracy"])
    torch.testing.assert_close(found["logits"][:, :-2], alone["logits"])


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = nn.Sequential(nn.Tanh(), self.first)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.again(self.first(x)))


def test_a_module_in_two_places_adapts_in_both():
    torch.manual_seed(0)
    meta = MetaFineTuner(freeze(Twice().double()), {"first": "all"}, None, steps=2, inner_lr=0.5)
    jiggled(meta)
    x, y = torch.randn(2, 6, 4, dtype=torch.float64), torch.arange(6).remainder(2).expand(2, 6)
    batch = TaskBatch(x[:, :4], y[:, :4], x[:, 4:], y[:, 4:])
    plain = [plain_course(meta, meta.base, batch, t, starts_of(meta), 0.5)[0].item() for t in range(2)]
    assert meta(batch)[1]["loss"].tolist() == pytest.approx(plain, rel=1e-9)


def test_tasks_do_not_see_each_other():
    meta, batch = tuner("bert", "bias", "init+alfa+transformer")
    jiggled(meta)
    together = meta(batch)[1]["logits"]
    torch.testing.assert_close(torch.cat([meta(batch[t])[1]["logits"] for t in range(len(batch))]), together)


def test_adapt_gives_the_model_that_the_loop_has():
    for model, adapt in (("conv", "all"), ("conv", "film"), ("bert", "lora:r=2"), ("bert", "bias")):
        meta, batch = tuner(model, adapt, "init+alfa+mend")
        jiggled(meta)
        logits = meta(batch)[1]["logits"]
        one = batch.task(1)
        adapted = meta.adapt(one.support_x, one.support_y)
        torch.testing.assert_close(adapted(one.query_x).detach(), logits[1])
        torch.testing.assert_close(adapted.merge()(one.query_x).detach(), logits[1])


def test_the_trajectory_is_that_of_runs_of_every_length():
    meta, batch = tuner("conv", "film", "init+alfa+mend", steps=3)
    jiggled(meta)
    course = list(meta.trajectory(batch))
    assert len(course) == 4
    torch.testing.assert_close(meta.before(batch)["loss"], course[0]["loss"])
    for steps in (1, 2, 3):
        torch.testing.assert_close(meta(batch, steps=steps)[1]["loss"], course[steps]["loss"])
    result = evaluate(meta, [batch], 3, per_step=True)
    assert result.per_step[-1].mean == pytest.approx(float(course[3]["accuracy"].mean()))


def test_drop_leaves_a_task_with_nan_out_of_the_meta_gradient():
    for chunk in (None, 1):
        meta, batch = tuner("conv", "film", "alfa+mend", on_nan="drop", chunk=chunk)
        jiggled(meta)
        x = batch.support_x.clone()
        x[1, 0, 0, 0, 0] = torch.nan
        loss, metrics = meta(TaskBatch(x, batch.support_y, batch.query_x, batch.query_y))
        assert metrics["dropped"] == [1]
        loss.backward()
        grads = [p.grad.clone() for p in meta.parameters()]
        meta.zero_grad()
        rest = TaskBatch.cat([batch[0], batch[2]])
        expected = meta(rest)[0]
        torch.testing.assert_close(loss.detach(), expected.detach())
        expected.backward()
        for grad, parameter in zip(grads, meta.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)
        meta.on_nan = "raise"
        with pytest.raises(ValueError, match=r"task 1: its query loss is nan.*on_nan='drop'"):
            meta(TaskBatch(x, batch.support_y, batch.query_x, batch.query_y))


def test_spans_are_learned_from_their_ends():
    base = freeze(copy.deepcopy(bert()), pool=None)
    meta = MetaFineTuner(base, "lora:r=2", "alfa+rnn", loss="span", steps=3, inner_lr=0.5, dropout=0.0)
    batch = sentences()
    ends = torch.randint(0, 7, (2, 2, 6), generator=torch.Generator().manual_seed(0)).sort(0).values
    y = ends[0] * 7 + ends[1]
    batch = TaskBatch(batch.support_x, y, batch.support_x, y)
    loss, metrics = meta(batch)
    assert metrics["logits"].shape == (2, 6, 7, 2)
    first = meta.before(batch)
    assert bool((metrics["loss"] < first["loss"]).all())
    logits = first["logits"]
    expected = torch.stack([torch.nn.functional.cross_entropy(logits[0, ..., e], ends[e, 0]) for e in (0, 1)]).mean()
    torch.testing.assert_close(first["loss"][0], expected.detach())
    start, end = logits.argmax(2).unbind(-1)
    right = ((start == ends[0]) & (end == ends[1])).double().mean(1)
    torch.testing.assert_close(first["accuracy"], right)
    loss.backward()


def test_meta_training_learns_and_goes_on_bit_for_bit(tmp_path):
    def run(folder, steps, resume=False):
        torch.manual_seed(0)
        meta, batch = tuner("conv", "film", "init+alfa+mend", dropout=0.5, meta_lr=3e-3, inner_lr=0.01)
        training = meta.meta_train(
            [batch], steps, val=[batch], val_episodes=3, output=folder, name="run", resume=resume, save_every=2,
            val_every=2, progress=False, schedule=None,
        )  # fmt: skip
        return meta, training

    whole, training = run(tmp_path / "a", 6)
    assert training.steps == 6 and training.best_score is not None
    torch.manual_seed(0)
    meta, batch = tuner("conv", "film", "init+alfa+mend", dropout=0.5, meta_lr=3e-3, inner_lr=0.01)
    count = [0]

    class Interrupted(list):
        def __iter__(self):
            count[0] += 1
            if count[0] > 5:
                raise KeyboardInterrupt
            return super().__iter__()

    with pytest.raises(KeyboardInterrupt):
        meta.meta_train(
            Interrupted([batch]), 6, val=[batch], val_episodes=3, output=tmp_path / "b", name="run", save_every=2,
            val_every=2, progress=False, schedule=None,
        )  # fmt: skip
    again, _ = run(tmp_path / "b", 6, resume=True)
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    fresh, batch = tuner("conv", "film", "init+alfa+mend", inner_lr=0.01)
    assert whole.eval()(batch)[0].item() < fresh.eval()(batch)[0].item()


def test_the_frozen_model_is_not_state_and_never_changes():
    model = conv_net()
    before = copy.deepcopy(model.state_dict())
    base = freeze(model)
    meta = MetaFineTuner(base, "all", "alfa", steps=2)
    meta(pictures())[0].backward()
    assert not [name for name in meta.state_dict() if "base" in name or "tree" in name]
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    shared = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in meta.tree.backbone.parameters()} <= shared
