"""torch.compile of a training step: same numbers, and a changed lr recompiles nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import metafast

# torch.compile itself looks at the loss's .grad after a graph break; torch.optim's optimizers see the same warning.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

OPTIONS: list[dict[str, Any]] = [{}, {"hypergrad": "tensor"}, {"hypergrad": "global", "hyper_exact": True}]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    # Guards of inductor's code depend on these, and the tests' fixtures switch them.
    torch.use_deterministic_algorithms(False)
    yield
    torch._dynamo.reset()


def train(backend: Any, options: dict[str, Any], schedule: str) -> tuple[list[torch.Tensor], list[float]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    lr: Any = torch.tensor(0.01) if schedule == "tensor" else 0.01
    opt = metafast.optim.AdamW(model.parameters(), lr=lr, **options)
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.8) if schedule != "by hand" else None

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        return loss

    run = step if backend is None else torch.compile(step, backend=backend)
    frames = []
    for i in range(8):
        run(x, y)
        if scheduler is not None:
            scheduler.step()
        else:
            opt.param_groups[0]["lr"] = 0.01 / (i + 1)
        if isinstance(backend, CompileCounter):
            frames.append(backend.frame_count)
    if frames:
        assert frames[0] >= 1, "nothing was compiled"
        assert frames[-1] == frames[2], f"recompiled: {frames}"  # step 1 makes the states, step 2 is the steady one
    return [p.detach() for p in model.parameters()], opt.learned_lr()


@pytest.mark.parametrize("schedule", ["scheduler", "tensor", "by hand"])
@pytest.mark.parametrize("options", OPTIONS)
def test_no_recompiles_when_lr_changes(options: dict[str, Any], schedule: str) -> None:
    eager, rates = train(None, options, schedule)
    compiled, compiled_rates = train(CompileCounter(), options, schedule)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    assert compiled_rates == pytest.approx(rates, rel=1e-5)


@pytest.mark.slow
def test_with_inductor() -> None:
    torch._dynamo.utils.counters.clear()
    eager, rates = train(None, {"hypergrad": "tensor"}, "scheduler")
    compiled, compiled_rates = train("inductor", {"hypergrad": "tensor"}, "scheduler")
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    assert compiled_rates == pytest.approx(rates, rel=1e-3)
    assert not torch._dynamo.utils.counters["recompiles"]
