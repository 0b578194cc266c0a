"""An attached rule: bounds, schedulers, what it refuses, what it survives, and that it resumes bit for bit."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import metafast.optim
from metafast.schedule import Hypergradient, MLRSNet, Watchdog
from tests.schedule.cases import controller, problem, train

MAKERS = {
    "metafast": lambda params: metafast.optim.Adam(params, lr=1e-3),
    "torch": lambda params: torch.optim.Adam(params, lr=1e-3),
    "tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(1e-3), foreach=False),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("per", ["global", "group", "tensor"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_groups_keep_their_base_rates(make, per) -> None:
    ctl = controller()
    _, opt = train(make, 30, ctl, interval=5, per=per)
    assert float(opt.param_groups[0]["lr"]) == pytest.approx(1e-3)
    assert len(ctl.lr()) == {"global": 1, "group": 1, "tensor": 4}[per]
    assert all(rate != pytest.approx(1e-3) for rate in ctl.lr().values())
    ctl.detach()
    assert ctl.lr() == {}
    assert opt.param_groups[0]["lr"] == pytest.approx(1e-3)


@pytest.mark.parametrize("per", ["global", "tensor"])
@pytest.mark.parametrize("name", ["metafast", "torch", "sgd"])
def test_steered_steps_are_those_of_the_rate(name, per) -> None:
    """With a rule that multiplies the rate by e once, everything after is a training at e times the rate."""

    class Once(Hypergradient):
        def _decide(self, *_):
            return torch.full((len(self.labels),), 1.0 if self._calls == 2 else 0.0)

    rule = Once()
    model, _ = train(MAKERS[name], 6, rule, interval=2, per=per, watchdog=None)
    twin, opt = train(MAKERS[name], 2)
    opt.param_groups[0]["lr"] *= math.e
    train(MAKERS[name], 4, start=2, model=twin, opt=opt)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rates_stay_inside_the_bounds(make) -> None:
    ctl = controller(shift=50.0)  # wants far more than it may have
    train(make, 60, ctl, interval=5, lr_bounds=(1e-4, 2e-3), watchdog=None)
    assert max(rates[0] for _, rates in ctl.history) == pytest.approx(2e-3)
    ctl = controller(shift=-50.0)
    train(make, 60, ctl, interval=5, lr_bounds=(1e-4, 2e-3), watchdog=None)
    assert min(rates[0] for _, rates in ctl.history) == pytest.approx(1e-4)


def test_a_scheduler_goes_on_as_the_base() -> None:
    def half(opt):
        return torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.0 if step == 0 else 1.0)

    def chained(opt):
        return torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)

    for scheduler in (half, chained):
        for make in (MAKERS["metafast"], MAKERS["torch"]):
            ctl = controller()
            _, opt = train(make, 20, ctl, interval=5, scheduler=scheduler)
            _, plain = train(make, 20, scheduler=scheduler)
            assert opt.param_groups[0]["lr"] == plain.param_groups[0]["lr"]


def test_without_knowing_the_length_it_runs_too() -> None:
    known, unknown = controller(), controller()
    train(MAKERS["metafast"], 40, known, interval=5, total_steps=40)
    train(MAKERS["metafast"], 40, unknown, interval=5)
    assert known.lr() != unknown.lr()


@pytest.mark.parametrize("per", ["global", "tensor"])
@pytest.mark.parametrize("kill", [13, 15, 19, 20])
@pytest.mark.parametrize("name", ["metafast", "torch", "sgd"])
@pytest.mark.parametrize("rule", [controller, Hypergradient], ids=["lstm", "hypergradient"])
def test_resumes_bit_for_bit(rule, name, kill, per) -> None:
    whole = rule()
    expected, _ = train(MAKERS[name], 40, whole, interval=5, per=per, total_steps=40)

    first = rule()
    model, opt = train(MAKERS[name], kill, first, interval=5, per=per, total_steps=40)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "rule": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    model, *_ = problem(seed=5)
    opt = MAKERS[name](model.parameters())
    again = rule().attach(opt, interval=5, per=per, total_steps=40)
    model.load_state_dict(state["model"])
    opt.load_state_dict(state["opt"])
    again.load_state_dict(state["rule"])
    train(None, 40 - kill, again, start=kill, model=model, opt=opt)
    assert again.history == whole.history
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_is_refused() -> None:
    ctl = controller()
    train(MAKERS["metafast"], 10, ctl, interval=5)
    state = ctl.state_dict()
    other = controller()
    train(MAKERS["metafast"], 10, other, interval=2)
    with pytest.raises(ValueError, match="interval"):
        other.load_state_dict(state)
    changed = controller(weights=ctl.learned.weights * 2)
    train(MAKERS["metafast"], 10, changed, interval=5)
    with pytest.raises(ValueError, match="another controller file"):
        changed.load_state_dict(state)
    with pytest.raises(RuntimeError, match="attach"):
        controller().state_dict()
    with pytest.raises(RuntimeError, match="attach"):
        controller().load_state_dict(state)


# ---- the watchdog


@pytest.mark.parametrize("name", ["metafast", "torch", "sgd"])
def test_a_rate_that_wrecks_the_start_is_taken_back(name) -> None:
    makers = {
        "metafast": lambda params: metafast.optim.Adam(params, lr=3.0),
        "torch": lambda params: torch.optim.Adam(params, lr=3.0),
        "sgd": lambda params: torch.optim.SGD(params, lr=300.0, momentum=0.9),
    }
    ctl = controller()
    model, _ = train(makers[name], 200, ctl, interval=5, lr_bounds=(1e-8, 1e3), total_steps=200)
    assert ctl.events
    assert ctl.events[0]["rewound"]
    assert "lost" in ctl.events[0]["what"] or "finite" in ctl.events[0]["what"]
    _, x, y = problem()
    assert nn.functional.cross_entropy(model(x), y).item() < 1.2
    assert all(p.isfinite().all() for p in model.parameters())


def test_nan_losses_fall_back_to_the_base_schedule() -> None:
    model, *_ = problem()
    opt = metafast.optim.Adam(model.parameters(), lr=1e-3)
    ctl = controller(shift=5.0).attach(opt, interval=2, watchdog=Watchdog(rewind=False, limit=2))
    for loss in [1.0] * 6 + [math.nan] * 20:
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        opt.step()
        ctl.step(loss)
    assert ctl.lr()["all"] == pytest.approx(1e-3)
    assert len(ctl.events) == 3
    assert "base schedule from here on" in ctl.events[-1]["what"]
    assert not any(event["rewound"] for event in ctl.events)


def test_buffers_come_back_with_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    ctl = controller().attach(opt, interval=1, model=model)
    for _ in range(12):
        opt.zero_grad()
        loss = model(torch.full((8, 4), 1e38) * torch.randn(8, 4)).square().mean()
        loss.backward()
        opt.step()
        ctl.step(loss)
    assert any(event["rewound"] for event in ctl.events)
    assert torch.equal(model.state_dict()["1.running_var"], before["1.running_var"]) or bool(
        model.state_dict()["1.running_var"].isfinite().all()
    )


def test_copies_go_when_the_start_is_over_or_are_renewed() -> None:
    ctl = controller()
    train(MAKERS["metafast"], 40, ctl, interval=2, watchdog=Watchdog(early=10))
    assert ctl._copies is None
    ctl = controller()
    train(MAKERS["metafast"], 40, ctl, interval=2, watchdog=Watchdog(early=10, rewind=True))
    assert ctl._copies is not None
    ctl = controller()
    train(MAKERS["metafast"], 40, ctl, interval=2, watchdog=None)
    assert ctl._copies is None
    assert ctl.events == []


# ---- what is refused, and what it lets go of


def test_bad_arguments() -> None:
    model, *_ = problem()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    for wrong, match in (
        ({"interval": 0}, "interval"),
        ({"per": "layer"}, "per must be"),
        ({"total_steps": 0}, "total_steps"),
        ({"lr_bounds": (1e-2, 1.0)}, "leave out the base rate"),
        ({"lr_bounds": (1.0, 1e-2)}, "ascending"),
        ({"lr_bounds": (0.0, 1e-2)}, "positive"),
    ):
        with pytest.raises(ValueError, match=match):
            controller().attach(opt, **wrong)
    for wrong, match in (
        ({"interval": 1.5}, "interval"),
        ({"lr_bounds": 3}, "lr_bounds"),
        ({"watchdog": True}, "watchdog"),
        ({"model": 3}, "model"),
    ):
        with pytest.raises(TypeError, match=match):
            controller().attach(opt, **wrong)
    with pytest.raises(TypeError, match="optimizer"):
        controller().attach(model)
    empty = torch.optim.SGD([{"params": []}], lr=0.1)
    with pytest.raises(ValueError, match="no parameters"):
        controller().attach(empty)
    learned = metafast.optim.Adam(model.parameters(), hypergrad="global")
    with pytest.raises(ValueError, match="hypergrad"):
        controller().attach(learned)
    ctl = controller().attach(opt)
    with pytest.raises(ValueError, match="already"):
        ctl.attach(opt)
    with pytest.raises(ValueError, match="one element"):
        ctl.step(torch.ones(2))
    with pytest.raises(TypeError, match="loss"):
        ctl.step("low")
    with pytest.raises(RuntimeError, match="attach"):
        controller().step(1.0)
    assert opt.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize(
    "wrong", [{"worse": 0.0}, {"margin": math.nan}, {"cut": 1.0}, {"hold": -1}, {"rewind": "end"}, {"early": 0}]
)
def test_bad_watchdogs(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Watchdog(**wrong)


@pytest.mark.parametrize("name", ["metafast", "torch"])
def test_changed_parameters_end_it_with_a_warning_and_not_the_training(name) -> None:
    ctl = controller()
    model, opt = train(MAKERS[name], 12, ctl, interval=5)
    more = nn.Linear(2, 2)
    opt.add_param_group({"params": more.parameters()})
    with pytest.warns(RuntimeWarning, match="parameters have changed"):
        train(None, 1, ctl, start=12, model=model, opt=opt)
    train(None, 10, ctl, start=13, model=model, opt=opt)
    assert ctl.optimizer is None
    assert "let go" in ctl.events[-1]["what"]
    assert opt.param_groups[0]["lr"] == 1e-3


def test_parameters_without_gradients() -> None:
    for make in (MAKERS["metafast"], MAKERS["torch"]):
        for per in ("global", "tensor"):
            model, x, y = problem()
            spare = nn.Parameter(torch.ones(3))
            opt = make([*model.parameters(), spare])
            ctl = controller().attach(opt, interval=2, per=per)
            for _ in range(8):
                opt.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                opt.step()
                ctl.step(loss)
            assert torch.equal(spare, torch.ones(3))
            assert all(math.isfinite(rate) for rate in ctl.lr().values())


def test_sharded_parameters_need_a_fused_optimizer(monkeypatch) -> None:
    monkeypatch.setattr("metafast.schedule._rule.sharding", lambda param: ("mesh", "placements"))
    model, *_ = problem()
    with pytest.raises(ValueError, match="sharded"):
        controller().attach(torch.optim.Adam(model.parameters()))
    controller().attach(metafast.optim.Adam(model.parameters()))


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(20, 4, sparse=True)
    opt = torch.optim.SGD(table.parameters(), lr=0.1)
    ctl = controller().attach(opt, interval=3)
    for _ in range(9):
        opt.zero_grad()
        loss = table(torch.randint(20, (8,))).square().mean()
        loss.backward()
        opt.step()
        ctl.step(loss)
    assert ctl.lr()["all"] != pytest.approx(0.1)


def test_an_error_in_the_rule_does_not_end_the_training() -> None:
    class Broken(Hypergradient):
        def _decide(self, *_):
            raise RuntimeError("no idea")

    rule = Broken()
    with pytest.warns(RuntimeWarning, match="no idea"):
        _, opt = train(MAKERS["torch"], 12, rule, interval=5)
    assert "no idea" in rule.events[-1]["what"]
    assert opt.param_groups[0]["lr"] == 1e-3


def test_names_of_tensors() -> None:
    model, *_ = problem()
    ctl = controller().attach(torch.optim.SGD(model.named_parameters(), lr=0.1), per="tensor")
    assert ctl.labels == ["0.weight", "0.bias", "2.weight", "2.bias"]
    ctl = controller().attach(torch.optim.SGD(model.parameters(), lr=0.1), per="tensor")
    assert ctl.labels == ["0", "1", "2", "3"]


# ---- scaling, compiling


@pytest.mark.parametrize("name", ["metafast", "torch"])
def test_grad_scaler(name) -> None:
    """Scaled or not, the same rates; a step that overflows is left out and hurts nothing."""
    found = []
    for scaled in (False, True):
        model, x, y = problem()
        opt = MAKERS[name](model.parameters())
        ctl = controller().attach(opt, interval=5)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for step in range(30):
            rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
            opt.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            ctl.step(loss)
        found.append(ctl.lr()["all"])
        if scaled:
            opt.zero_grad()
            scaler.scale(loss.detach() * math.inf + 0 * model(x).sum()).backward()
            scaler.step(opt)
            scaler.update()
            ctl.step(loss)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert all(p.isfinite().all() for p in model.parameters())


def test_compiled_model_and_step() -> None:
    torch._dynamo.reset()
    model, x, y = problem()
    compiled = torch.compile(model, backend="eager")
    opt = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3))
    step = torch.compile(opt.step, backend="eager")
    ctl = controller()
    ctl.attach(opt, interval=5)
    for _ in range(15):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(compiled(x), y)
        loss.backward()
        step()
        ctl.step(loss)
    twin, _, _ = problem()
    plain = torch.optim.Adam(twin.parameters(), lr=1e-3)
    again = controller().attach(plain, interval=5)
    for _ in range(15):
        plain.zero_grad()
        loss = nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        plain.step()
        again.step(loss)
    assert ctl.lr()["all"] == pytest.approx(again.lr()["all"], rel=1e-3)


# ---- other rules


def test_hypergradient_with_an_interval_of_one_follows_the_cosine() -> None:
    rule = Hypergradient(0.3)
    train(lambda params: metafast.optim.SGD(params, lr=1e-2, momentum=0.9), 8, rule, interval=1, watchdog=None)
    _, opt = train(
        lambda params: metafast.optim.SGD(
            params, lr=1e-2, momentum=0.9, hypergrad="global", hyper_lr=0.3, safe_start=None
        ),
        8,
    )
    # The rule of the optimizer looks at the step's gradient before that step's rate is used a step later: the same.
    assert rule.lr()["all"] == pytest.approx(opt.learned_lr()[0], rel=1e-4)
    with pytest.raises(ValueError, match="hyper_lr"):
        Hypergradient(0.0)


def test_mlr_snet_learns_its_rate_from_held_out_data() -> None:
    """On a problem that a small rate cannot solve in time, the network raises it."""
    torch.manual_seed(0)
    x, w = torch.randn(256, 8), torch.randn(8, 1)
    y = x @ w
    model = nn.Linear(8, 1)
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)

    def val_loss():
        return (model(x[128:]) - y[128:]).square().mean()

    rule = MLRSNet(val_loss, max_lr=0.2, meta_lr=1e-2, every=1, seed=0)
    rule.attach(opt, interval=1, watchdog=None)
    with torch.no_grad():
        rule.head.bias.fill_(-4.0)
    for step in range(60):
        rows = slice(16 * (step % 8), 16 * (step % 8) + 16)
        opt.zero_grad()
        loss = (model(x[rows]) - y[rows]).square().mean()
        loss.backward()
        opt.step()
        rule.step(loss)
    rates = [rates[0] for _, rates in rule.history]
    assert max(rates[2:]) > 2 * rates[2]
    assert all(0 < rate <= 0.2 for rate in rates)
    with pytest.raises(ValueError, match="global"):
        MLRSNet(val_loss, 0.1).attach(opt, per="tensor")
    with pytest.raises(ValueError, match="max_lr"):
        MLRSNet(val_loss, 0.0)


def test_mlr_snet_slope_is_the_derivative_of_the_look_ahead() -> None:
    """-g' . u against a finite difference in the rate of the last step, for each optimizer whose step it knows."""
    for make in (
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.Adam(params, lr=0.1),
        lambda params: metafast.optim.Adam(params, lr=0.1),
    ):
        model, x, y = problem()
        opt = make(model.parameters())
        rule = MLRSNet(lambda: torch.zeros(()), max_lr=1.0).attach(opt, watchdog=None)
        for _ in range(3):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x[:16]), y[:16]).backward()
            before = [p.detach().clone() for p in model.parameters()]
            opt.step()
        params = list(model.parameters())
        direction = rule._last_direction(params)
        for p, b, u in zip(params, before, direction, strict=True):
            torch.testing.assert_close(p.detach(), b - 0.1 * u, rtol=1e-4, atol=1e-6)
