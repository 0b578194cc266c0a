"""Every engine gives the numbers of a plain loop, for every model, option and layer."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metafast.data import TaskBatch
from metafast.innerloop import SGD, Adam, InnerLoop
from tests.innerloop.cases import COMPILED, batch_of, gradients, make, make_batch, strided, worst

ENGINES = ("reference", "compiled", "loop", "vmap")


def plain_loop(model: nn.Module, batch: TaskBatch, rate: float, steps: int, order: int = 2) -> dict[str, Tensor]:
    """The meta-gradient as the MAML paper writes it, with autograd through everything."""
    start = dict(model.named_parameters())
    total = 0.0
    for sx, sy, qx, qy in (batch.task(t) for t in range(batch.tasks)):
        weights = start
        for _ in range(steps):
            loss = F.cross_entropy(functional_call(model, weights, (sx,)), sy)
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=order == 2)
            weights = {n: w - rate * g for (n, w), g in zip(weights.items(), grads, strict=True)}
        total = total + F.cross_entropy(functional_call(model, weights, (qx,)), qy) / batch.tasks
    grads = torch.autograd.grad(total, list(start.values()))
    return dict(zip(start, grads, strict=True))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", COMPILED)
def test_engines_equal_a_plain_loop(name: str, order: int) -> None:
    model, batch = make(name), batch_of(name)
    if name == "bag":  # torch has no second derivative of its own of an embedding bag
        expected = gradients(InnerLoop(model, steps=3, engine="reference", order=order), batch, rates=0.1)[1]
    else:
        expected = plain_loop(model, batch, 0.1, 3, order)
    for engine in ENGINES:
        if engine in ("loop", "vmap") and name == "bag":
            continue
        found = gradients(InnerLoop(model, steps=3, engine=engine, order=order), batch, rates=0.1)[1]
        error, where = worst(found, expected)
        assert error < 1e-10, (engine, where, error)


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_path_takes_the_model(name: str) -> None:
    inner = InnerLoop(make(name), steps=1)
    inner(batch_of(name))
    explanation = inner.explain()
    assert explanation.engine == "compiled", str(explanation)
    assert len(explanation.layers) >= 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "rule", [SGD(), SGD(0.8, 0.01, 0.2), Adam(0.7, 0.9, 1e-3, 0.01, 0.1)], ids=["sgd", "momentum", "adam"]
)
@pytest.mark.parametrize("order", [1, 2])
def test_options_agree(rule: SGD | Adam, order: int, masked: bool) -> None:
    """Rules, mini-batches, multi-step losses, rates of every kind, starts of tasks, padding: all engines agree."""
    model = make("residual")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and masked:
            module.eval()  # mini-batches of one valid example have no batch statistics
    batch = batch_of("residual", masked=masked)
    batch = dataclasses.replace(
        batch, support_x=batch.support_x.requires_grad_(), query_x=batch.query_x.requires_grad_()
    )
    names = [n for n, _ in model.named_parameters()]
    sizes = sum(p.numel() for p in model.parameters())
    start = {names[0]: torch.stack([dict(model.named_parameters())[names[0]].detach() + 0.01 * t for t in range(3)])}
    start = {n: s.requires_grad_() for n, s in start.items()}
    for shape in ((), (3,), (1, len(names)), (3, sizes)):
        rates = (0.05 + 0.02 * torch.rand(shape, dtype=torch.float64)).requires_grad_()
        options = {
            "rates": rates, "query_weights": [0.2, 0.0, 0.3, 0.5], "task_weights": [0.2, 0.5, 0.3],
            "batches": torch.tensor([[0, 1, 2], [2, 3, 1], [1, 1, 4]]), "params": start, "first_task": 2,
        }  # fmt: skip
        results = {}
        for engine in ENGINES[:1] + ENGINES[1:] if not shape else ENGINES[1:3]:
            if engine == "vmap" and masked:
                continue
            inner = InnerLoop(model, steps=3, rule=rule, order=order, engine=engine, adapted=["*weight", "head.*"])
            start[names[0]].grad = None
            outcome, found = gradients(inner, batch, **options)
            found["start"] = start[names[0]].grad.clone()
            results[engine] = (outcome, found)
        first, expected = results["compiled"]
        for engine, (outcome, found) in results.items():
            error, where = worst(found, expected)
            assert error < 1e-9, (engine, where, error)
            for field in ("loss", "task_losses", "support_losses", "query_losses", "logits"):
                a, b = getattr(outcome, field).detach(), getattr(first, field).detach()
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{engine} {field}")


def test_batch_norm_is_right_in_every_composition() -> None:
    """A derivative from outside a `vmap` loses a term through batch norm in torch 2.13 (or is right, some day): the
    composition that we hand out never takes one. Checked against finite differences, so that no autograd is trusted.
    """
    model, batch = strided().double(), make_batch((2, 6, 6))
    rate, steps = 0.4, 2

    def value(weights: dict[str, Tensor]) -> float:
        inner = InnerLoop(model, steps=steps, engine="loop")
        with torch.no_grad():
            return float(inner(batch, rates=rate, params=weights).loss)

    start = {n: p.detach() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in start.items()}
    step = 1e-5
    slope = (value({n: p + step * direction[n] for n, p in start.items()})
             - value({n: p - step * direction[n] for n, p in start.items()})) / (2 * step)  # fmt: skip
    for engine in (*ENGINES, "auto"):
        inner = InnerLoop(model, steps=steps, engine=engine)
        compositions = {
            "backward": lambda i=inner: gradients(i, batch, rates=rate)[1],
            "sum of parts": lambda i=inner: _parts(i, batch, rate),
            "params": lambda i=inner: _by_params(i, batch, rate),
            "hook": lambda: gradients(InnerLoop(model, steps=steps, engine=engine, rule=_descend(rate)), batch)[1],  # noqa: B023
        }
        for what, compose in compositions.items():
            grads = compose()
            found = sum(float((grads[n] * d).sum()) for n, d in direction.items())
            assert found == pytest.approx(slope, rel=1e-6), (engine, what)


@pytest.mark.parametrize("engine", ["compiled", "loop"])
def test_transforms_of_torch_func_are_refused(engine: str) -> None:
    """The composition that loses a term, made by the user around an inner loop, and the one that is right."""
    model = strided(lambda c: nn.BatchNorm2d(c, track_running_stats=False)).double()
    batch = make_batch((2, 6, 6))
    inner = InnerLoop(model, steps=1, engine=engine)
    start = {n: p.detach() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="InnerLoop cannot run inside torch.func.grad; .*torch.autograd.grad"):
        grad(lambda w: inner(batch, params=w).loss)(start)

    def step(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return inner.gradient(flat[None], x[None], y[None])[2][0].square().sum()

    flat = inner.flatten(start)
    with pytest.raises(ValueError, match="InnerLoop.gradient cannot run inside torch.func.vmap; it takes all tasks in"):
        vmap(step, in_dims=(None, 0, 0))(flat, batch.support_x, batch.support_y)
    if engine == "loop":
        x, y = batch.support_x[0], batch.support_y[0]
        leaf = flat.clone().requires_grad_()
        expected = torch.autograd.grad(step(leaf, x, y), leaf)[0]
        torch.testing.assert_close(grad(step)(flat, x, y), expected)


def _descend(rate: float):
    return lambda step, params, grads, losses, state: (params - rate * grads, state)


def _parts(inner: InnerLoop, batch: TaskBatch, rate: float) -> dict[str, Tensor]:
    """The loss of tasks one by one, averaged by the user."""
    inner.model.zero_grad(set_to_none=True)
    torch.stack([inner(batch[t], rates=rate).loss for t in range(batch.tasks)]).mean().backward()
    return {n: p.grad.clone() for n, p in inner.model.named_parameters()}


def _by_params(inner: InnerLoop, batch: TaskBatch, rate: float) -> dict[str, Tensor]:
    """Starts of tasks given as tensors of their own, behind another computation."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in inner.model.named_parameters()}
    starts = {n: (2.0 * p)[None].expand(batch.tasks, *p.shape) / 2.0 for n, p in leaves.items()}
    loss = inner(batch, rates=rate, params=starts).loss
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_changing_one_task_changes_only_its_result(engine: str) -> None:
    model, batch = make("strided"), batch_of("strided")
    inner = InnerLoop(model, steps=2, engine=engine)
    before = inner(batch, rates=0.1, want_adapted=True)
    other = dataclasses.replace(batch, support_x=batch.support_x.clone())
    other.support_x[1] += 1.0
    after = inner(other, rates=0.1, want_adapted=True)
    assert before.task_losses[1] != after.task_losses[1]
    for t in (0, 2):
        assert torch.equal(before.task_losses[t], after.task_losses[t]) or engine in ("vmap", "reference")
        torch.testing.assert_close(before.task_losses[t], after.task_losses[t], rtol=1e-12, atol=0)
        for name in before.adapted:
            torch.testing.assert_close(before.adapted[name][t], after.adapted[name][t], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", ["reference", "compiled", "loop"])
def test_padding_is_not_there(engine: str) -> None:
    """Padded tasks, with NaN where there is padding, equal the same tasks one by one without padding."""
    model, batch = make("strided"), batch_of("strided", masked=True)
    with torch.no_grad():
        for part in ("support", "query"):
            getattr(batch, f"{part}_x")[~getattr(batch, f"{part}_mask")] = float("nan")
            getattr(batch, f"{part}_y")[~getattr(batch, f"{part}_mask")] = -7
    inner = InnerLoop(model, steps=2, engine=engine)
    outcome, together = gradients(inner, batch, rates=0.1)
    model.zero_grad(set_to_none=True)
    for t in range(batch.tasks):
        one = batch.task(t)
        small = TaskBatch(*(part[None] for part in one), classes=batch.classes[t : t + 1])
        single = inner(small, rates=0.1)
        torch.testing.assert_close(single.task_losses[0], outcome.task_losses[t], rtol=1e-10, atol=0)
        (single.loss / batch.tasks).backward()
    error, where = worst(together, {n: p.grad for n, p in model.named_parameters()})
    assert error < 1e-10, where


def test_dropout_depends_on_seed_and_task_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    batch = make_batch((6,), tasks=4, dtype=torch.float32)
    for engine in ("compiled", "loop"):
        inner = InnerLoop(model, steps=2, engine=engine)
        whole = inner(batch, rates=0.1, seed=3).task_losses
        parts = [inner(batch[t], rates=0.1, seed=3, first_task=t).task_losses for t in range(4)]
        torch.testing.assert_close(torch.cat(parts), whole)
        assert not torch.allclose(inner(batch, rates=0.1, seed=4).task_losses, whole)
        model.eval()
        assert torch.equal(inner(batch, rates=0.1, seed=3).task_losses, inner(batch, rates=0.1, seed=4).task_losses)
        model.train()


def test_the_model_is_left_as_it_was() -> None:
    for engine in ENGINES:
        model = strided()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        generator = torch.get_rng_state()
        InnerLoop(model, steps=2, engine=engine)(make_batch((2, 6, 6), dtype=torch.float32), rates=0.1)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), engine
        assert torch.equal(generator, torch.get_rng_state()), engine
        assert model.training and all(p.grad is None for p in model.parameters())


def test_batch_norm_in_evaluation_uses_running_statistics() -> None:
    model, batch = strided().double(), make_batch((2, 6, 6))
    for _ in range(5):
        model(torch.randn(8, 2, 6, 6, dtype=torch.float64) * 2 + 1)
    results = []
    for engine in ENGINES:
        model.train()
        forced = InnerLoop(model, steps=2, engine=engine, batch_norm="running")(batch, rates=0.1).task_losses
        model.eval()
        followed = InnerLoop(model, steps=2, engine=engine)(batch, rates=0.1).task_losses
        torch.testing.assert_close(forced, followed, rtol=1e-12, atol=0)
        batch_norm = InnerLoop(model, steps=2, engine=engine, batch_norm="batch")(batch, rates=0.1).task_losses
        assert not torch.allclose(batch_norm, followed)
        results.append(torch.stack([followed, batch_norm]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-9, atol=0)


def test_statistics_of_steps_come_back_and_can_be_given() -> None:
    model, batch = strided().double(), make_batch((2, 6, 6))
    found = InnerLoop(model, steps=2)(batch, rates=0.1, want_batch_stats=True).batch_stats
    assert found.shape == (3, 18)
    x = batch.support_x.flatten(0, 1)
    per_task = [model[0](batch.support_x[t]) for t in range(batch.tasks)]
    torch.testing.assert_close(found[0, :4], torch.stack([m.mean((0, 2, 3)) for m in per_task]).mean(0))
    torch.testing.assert_close(found[0, 4:8], torch.stack([m.var((0, 2, 3)) for m in per_task]).mean(0))
    assert x.shape[0] == 15
    losses = [InnerLoop(model, steps=2, engine=e, batch_norm="running")(batch, rates=0.1, stats=found).task_losses
              for e in ENGINES]  # fmt: skip
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-9, atol=0)


def test_statistics_for_layers_that_keep_none() -> None:
    """MAML++: batch norms without running statistics, evaluated with those of each step."""
    model = strided(lambda c: nn.BatchNorm2d(c, track_running_stats=False)).double()
    batch = make_batch((2, 6, 6))
    stats = torch.rand(3, 18, dtype=torch.float64) + 0.5
    losses = [InnerLoop(model, steps=2, engine=e, batch_norm="running")(batch, rates=0.1, stats=stats).task_losses
              for e in ENGINES]  # fmt: skip
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-9, atol=0)
    assert model[1].running_mean is None
    for engine in ENGINES:
        with pytest.raises(ValueError, match="stats is needed: batch norm '1' keeps no running statistics"):
            InnerLoop(model, steps=2, engine=engine, batch_norm="running")(batch)
        model.eval()  # without statistics of their own, torch's layers go on with the batch's
        followed = InnerLoop(model, steps=2, engine=engine)(batch, rates=0.1).task_losses
        model.train()
        torch.testing.assert_close(followed, InnerLoop(model, steps=2, engine=engine)(batch, rates=0.1).task_losses)


def test_adapt_and_gradient() -> None:
    for engine in ("compiled", "loop"):
        model, batch = make("strided"), batch_of("strided")
        inner = InnerLoop(model, steps=3, engine=engine)
        adapted = inner.adapt(batch.support_x, batch.support_y, rates=0.1)
        expected = inner(batch, rates=0.1, want_adapted=True).adapted
        single = inner.adapt(batch.support_x[1], batch.support_y[1], rates=0.1)
        for name, value in expected.items():
            torch.testing.assert_close(adapted[name], value)
            torch.testing.assert_close(single[name], value[1], rtol=1e-8, atol=1e-10)
            assert not adapted[name].requires_grad
        losses, logits, grads = inner.gradient(adapted, batch.query_x, batch.query_y)
        outcome = inner(batch, rates=0.1)
        torch.testing.assert_close(losses.detach(), outcome.task_losses)
        torch.testing.assert_close(logits, outcome.logits)
        assert grads.keys() == expected.keys()
        # twice: the Hessian's product, against a difference of gradients
        flat = inner.flatten(adapted).requires_grad_()
        _, _, g = inner.gradient(flat, batch.query_x, batch.query_y)
        v = torch.randn_like(g)
        (hv,) = torch.autograd.grad(g, flat, v, retain_graph=True)
        again = torch.autograd.grad(g, flat, v)[0]
        assert torch.equal(hv, again)
        up, down = (inner.gradient((flat + s * 1e-5 * v).detach(), batch.query_x, batch.query_y)[2] for s in (1, -1))
        torch.testing.assert_close(hv, (up - down) / 2e-5, rtol=1e-4, atol=1e-6)


def test_hook_equals_the_rule_that_it_writes_out() -> None:
    model, batch = make("residual"), batch_of("residual", masked=True)
    scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def rule(step: int, params: Tensor, grads: Tensor, losses: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        state = grads if state is None else 0.5 * state + grads
        return params - scale * state, state

    for engine in ("compiled", "loop"):
        for order in (1, 2):
            expected = gradients(
                InnerLoop(model, steps=2, rule=SGD(0.5), order=order, engine=engine), batch, rates=scale
            )
            scale.grad = None
            hooked = gradients(InnerLoop(model, steps=2, rule=rule, order=order, engine=engine), batch)
            hooked[1]["rates"] = scale.grad.clone()
            error, where = worst(hooked[1], expected[1])
            assert error < 1e-9, (engine, order, where, error)
            torch.testing.assert_close(hooked[0].logits, expected[0].logits)


def test_backward_once() -> None:
    inner = InnerLoop(make("strided"), steps=1)
    loss = inner(batch_of("strided")).loss
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = inner(batch_of("strided")).loss
    weight = inner.model[0].weight
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="InnerLoop.gradient"):
        grad.sum().backward()


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    inner = InnerLoop(make("strided"), steps=1)
    with torch.no_grad():
        assert not inner(batch_of("strided")).loss.requires_grad
    inner.model.requires_grad_(False)
    assert not inner(batch_of("strided")).loss.requires_grad
    rates = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    found = []
    for engine in ENGINES:
        inner = InnerLoop(inner.model, steps=2, engine=engine, adapted=["*"])
        rates.grad = None
        inner(batch_of("strided"), rates=rates).loss.backward()
        found.append(rates.grad)
    torch.testing.assert_close(torch.stack(found[1:]), found[0].expand(3), rtol=1e-10, atol=0)


def test_slices_with_gaps_go_everywhere() -> None:
    model, whole = make("shared"), batch_of("shared", support=9, masked=True)
    cut = TaskBatch(
        whole.support_x[:, 4:], whole.support_y[:, 4:], whole.support_x[:, :4], whole.support_y[:, :4],
        whole.support_mask[:, 4:], whole.support_mask[:, :4], whole.classes,
    )  # fmt: skip
    for engine in ("compiled", "loop"):
        for rule in ("sgd", _descend(0.1)):
            inner = InnerLoop(model, steps=2, rule=rule, engine=engine)
            expected = inner(cut, rates=0.1).task_losses
            copied = TaskBatch(*(getattr(cut, f.name).clone() for f in dataclasses.fields(cut)))
            torch.testing.assert_close(inner(copied, rates=0.1).task_losses, expected, rtol=1e-10, atol=0)
        weights = inner.adapt(cut.support_x, cut.support_y, mask=cut.support_mask, classes=cut.classes, rates=0.1)
        inner.gradient(weights, cut.query_x, cut.query_y, mask=cut.query_mask, classes=cut.classes)


def test_frozen_layers_get_their_gradient_but_do_not_move() -> None:
    model, batch = make("strided"), batch_of("strided")
    model[0].requires_grad_(False)
    for engine in ENGINES:
        inner = InnerLoop(model, steps=2, engine=engine, adapted=["8.*"])
        outcome = inner(batch, rates=0.1, want_adapted=True)
        outcome.loss.backward()
        assert model[0].weight.grad is None
        assert bool(model[3].weight.grad.abs().sum() > 0)
        assert torch.equal(outcome.adapted["3.weight"][1], model[3].weight.detach())
        assert not torch.equal(outcome.adapted["8.weight"][1], model[8].weight.detach())


def test_no_task_of_nan_touches_another() -> None:
    model, batch = make("strided"), batch_of("strided")
    batch.query_x[1, 0, 0, 0, 0] = float("nan")
    for engine in ENGINES:
        with pytest.raises(ValueError, match=r"task 1: its query loss is nan; its query_x contains NaN"):
            InnerLoop(model, steps=2, engine=engine)(batch, rates=0.1)
        inner = InnerLoop(model, steps=2, engine=engine, on_nan="drop")
        outcome, found = gradients(inner, batch, rates=0.1)
        assert outcome.dropped == [1]
        kept = TaskBatch(
            *(torch.cat([v[:1], v[2:]]) for v in (batch.support_x, batch.support_y, batch.query_x, batch.query_y))
        )
        alone, expected = gradients(inner, kept, rates=0.1)
        torch.testing.assert_close(outcome.loss, alone.loss)
        assert worst(found, expected)[0] < 1e-10, engine
        hooked = InnerLoop(model, steps=2, engine=engine, on_nan="drop", rule=_descend(0.1))
        outcome, found = gradients(hooked, batch)
        assert outcome.dropped == [1] and worst(found, expected)[0] < 1e-9


def test_a_copy_adapts_its_own_model() -> None:
    model, batch = make("strided"), batch_of("strided")
    inner = InnerLoop(model, steps=2)
    before = inner(batch, rates=0.1).task_losses
    twin = copy.deepcopy(inner)
    again = pickle.loads(pickle.dumps(inner))
    for other in (twin, again):
        assert torch.equal(other(batch, rates=0.1).task_losses, before)
        with torch.no_grad():
            other.model[0].weight.mul_(2.0)
        assert not torch.equal(other(batch, rates=0.1).task_losses, before)
    assert torch.equal(inner(batch, rates=0.1).task_losses, before)
    model.float()
    assert inner(batch.to(dtype=torch.float32), rates=0.1).task_losses.dtype is torch.float32
