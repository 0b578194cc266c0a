"""The memory that a compiled inner loop works in, as `explain()` reports it, and what it grows with."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from metafast.innerloop import InnerLoop
from metafast.models import Conv4
from metafast.ops import _native
from tests.innerloop.cases import batch_of, make, make_batch

pytestmark = [
    pytest.mark.skipif(not _native.LIBRARIES["cpu"].loaded, reason="the native CPU library is not built"),
    pytest.mark.usefixtures("one_thread"),  # each thread has memory of its own
]


def conv4() -> nn.Module:
    return Conv4(1, 3, 28, channels=16, seed=0)


def memory(model: nn.Module, *, tasks: int = 2, **options: Any) -> int:
    inner = InnerLoop(model, **options)
    inner(make_batch((1, 28, 28), tasks=tasks, dtype=torch.float32), rates=0.01).loss.backward()
    found = inner.explain().memory
    assert found is not None and found > 4 * inner.numel
    return found


def test_steps_cost_weight_copies_alone() -> None:
    """Without a budget every step keeps its activations; with none to spare memory is flat but for the weights."""
    model = conv4()
    weights = 4 * sum(p.numel() for p in model.parameters())
    few, many = (memory(model, steps=k, memory_budget=0) for k in (5, 45))
    assert 40 * weights <= many - few <= 1.1 * 40 * weights  # channels are padded to whole vectors
    assert memory(model, steps=45) > 5 * many


def test_a_budget_is_kept() -> None:
    model = conv4()
    least, most = (memory(model, steps=20, memory_budget=budget) for budget in (0, None))
    between = memory(model, steps=20, memory_budget=(least + most) // 2)
    page = 2 << 20  # blocks of two and more are whole huge pages
    assert (3 * least + most) // 4 < between <= (least + most) // 2 + page


def test_more_tasks_need_no_more_memory_but_threads_do() -> None:
    model = conv4()
    few, many = (memory(model, tasks=tasks, steps=3) for tasks in (2, 32))
    assert few == many
    torch.set_num_threads(2)
    assert memory(model, tasks=2, steps=3) > 1.5 * few


def test_it_is_that_of_the_last_call_of_this_loop() -> None:
    small, large = InnerLoop(make("shared"), steps=1), InnerLoop(make("residual"), steps=9)
    assert small.explain().memory is None
    small(batch_of("shared"))
    alone = small.explain().memory
    large(batch_of("residual"))
    assert small.explain().memory == alone < large.explain().memory
    before = large.explain().memory
    with torch.no_grad():
        large(batch_of("residual"))
    assert large.explain().memory < before
    assert " MB for the last call" in str(small.explain())
    weights = {n: p.expand(3, *p.shape) for n, p in small.model.named_parameters()}
    small.gradient(weights, batch_of("shared").support_x, batch_of("shared").support_y)
    assert 0 < small.explain().memory != alone
    assert pickle.loads(pickle.dumps(small)).explain().memory is None


@pytest.mark.parametrize("engine", ["loop", "vmap", "reference"])
def test_what_pytorch_allocates_is_not_counted(engine: str) -> None:
    inner = InnerLoop(make("shared"), steps=1, engine=engine)
    inner(batch_of("shared"))
    assert inner.explain().memory is None and "MB" not in str(inner.explain())
