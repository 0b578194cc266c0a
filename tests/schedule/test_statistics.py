"""Statistics beside torch's steps equal those that a fused step returns, and both lead to the same rates."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import metafast.optim
from metafast.schedule import LRController
from metafast.schedule._statistics import Statistics
from tests.schedule.cases import problem, train

PAIRS = {
    "adam": (torch.optim.Adam, metafast.optim.Adam, {"lr": 1e-2}),
    "adamw": (torch.optim.AdamW, metafast.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, metafast.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_statistics_equal_those_of_the_fused_step(name: str) -> None:
    theirs, ours, options = PAIRS[name]
    model, x, y = problem()
    twin, *_ = problem()
    opt, fused = theirs(model.parameters(), **options), ours(twin.parameters(), **options)
    rates = torch.full((4,), options["lr"], dtype=torch.float64)
    statistics = Statistics(opt, lambda: rates, interval=3)
    for step in range(6):
        for net, optimizer in ((model, opt), (twin, fused)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
        statistics.before_step(2 - step % 3)
        opt.step()
        fused.step()
        if step % 3 == 2:
            torch.testing.assert_close(statistics.read(), fused.tensor_stats(), rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("per", ["global", "group", "tensor"])
@pytest.mark.parametrize("name", PAIRS)
def test_same_rates_for_torch_and_fused_optimizers(name: str, per: str) -> None:
    theirs, ours, options = PAIRS[name]
    learned = []
    for make in (theirs, ours):
        controller = LRController.load()
        model, _ = train(lambda params, make=make: make(params, **options), 40, controller, interval=5, per=per)
        learned.append((torch.tensor(controller.history[-1][1]), [p.detach() for p in model.parameters()]))
    torch.testing.assert_close(learned[0][0], learned[1][0], rtol=5e-3, atol=0)
    for a, b in zip(learned[0][1], learned[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-4)


def test_interval_of_one() -> None:
    for make in (torch.optim.Adam, metafast.optim.Adam):
        controller = LRController.load()
        train(lambda params, make=make: make(params, lr=1e-3), 5, controller, interval=1)
        assert len(controller.history) == 6
        assert controller.history[-1][1] != controller.history[0][1]


def test_plain_sgd_counts_its_gradient_as_direction() -> None:
    controller = LRController.load()
    train(lambda params: metafast.optim.SGD(params, lr=1e-2), 20, controller, interval=5)
    twin = LRController.load()
    train(lambda params: torch.optim.SGD(params, lr=1e-2), 20, twin, interval=5)
    assert controller.lr()["all"] > 0
    assert twin.lr()["all"] > 0


def test_grad_scale_does_not_change_what_is_seen() -> None:
    model, x, y = problem()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    statistics = Statistics(opt, lambda: torch.full((4,), 0.1, dtype=torch.float64), interval=2)
    tables = []
    for scale in (1.0, 1024.0):
        nn.functional.cross_entropy(model(x), y).backward()
        statistics.before_step(1)
        kept = [p.detach().clone() for p in model.parameters()]
        opt.step()
        for p in model.parameters():
            p.grad.mul_(scale)
        opt.grad_scale = torch.tensor(scale)
        statistics.before_step(0)
        tables.append(statistics.read())
        del opt.grad_scale
        with torch.no_grad():
            for p, before in zip(model.parameters(), kept, strict=True):
                p.copy_(before)
        opt.state.clear()
        opt.zero_grad()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("per", ["global", "tensor"])
@pytest.mark.parametrize("name", PAIRS)
def test_steers_on_a_gpu_as_on_the_cpu(name: str, per: str) -> None:
    """Fused optimizers take the factors as they are; others get them half an interval later, and end near by."""
    theirs, ours, options = PAIRS[name]
    for make, tolerance in ((ours, 2e-2), (theirs, 0.5)):
        found = []
        for device in ("cpu", "cuda"):
            model, x, y = problem()
            model, x, y = model.to(device), x.to(device), y.to(device)
            opt = make(model.parameters(), **options)
            ctl = LRController.load().attach(opt, interval=4, per=per, total_steps=40)
            for step in range(40):
                opt.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                checked = device == "cuda" and make is ours and step > 8
                torch.cuda.set_sync_debug_mode("error" if checked else "default")
                opt.step()
                ctl.step(loss)
                torch.cuda.set_sync_debug_mode("default")
            found.append(torch.tensor(list(ctl.lr().values())))
        torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=0)
