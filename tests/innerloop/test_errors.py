"""What is wrong is said with the argument, the task, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from metafast.data import TaskBatch
from metafast.innerloop import SGD, Adam, InnerLoop
from tests.innerloop.cases import Bag, make_batch


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def batch(**options: Any) -> TaskBatch:
    return make_batch((6,), dtype=torch.float32, **options)


CONSTRUCTOR: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "steps 0": ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    "steps float": ({"steps": 2.5}, TypeError, "steps must be an integer"),
    "order": ({"order": 3}, ValueError, "order must be one of 0, 1, 2, got 3"),
    "engine": ({"engine": "fast"}, ValueError, "engine must be one of 'auto'"),
    "batch norm": ({"batch_norm": "none"}, ValueError, "batch_norm must be one of"),
    "on_nan": ({"on_nan": "skip"}, ValueError, "on_nan must be one of"),
    "rule": ({"rule": "lbfgs"}, ValueError, "rule='lbfgs' is unknown"),
    "rule type": ({"rule": 3}, TypeError, "rule must be"),
    "loss": ({"loss": "hinge"}, ValueError, "loss='hinge' is unknown"),
    "loss type": ({"loss": 3}, TypeError, "loss must be"),
    "smoothing": ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be at least 0 and below 1"),
    "smoothing of mse": ({"loss": "mse", "label_smoothing": 0.1}, ValueError, "needs loss='cross_entropy'"),
    "adapted": ({"adapted": ["head.*"]}, ValueError, r"pattern 'head\.\*' matches no parameter"),
    "adapted nothing": ({"adapted": lambda name: False}, ValueError, "leaves no parameter"),
    "adapted string": ({"adapted": "0.weight"}, TypeError, "adapted must be a list"),
    "budget": ({"memory_budget": -1}, ValueError, "memory_budget must be at least 0"),
    "budget type": ({"memory_budget": "1 GB"}, TypeError, "memory_budget must be an integer, got '1 GB'"),
}


@pytest.mark.parametrize("case", CONSTRUCTOR)
def test_constructor(case: str) -> None:
    options, kind, message = CONSTRUCTOR[case]
    with pytest.raises(kind, match=message):
        InnerLoop(model(), **options)


def test_rules() -> None:
    for make, message in (
        (lambda: SGD(momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: SGD(weight_decay=-0.1), "weight_decay must be at least 0"),
        (lambda: Adam(eps=0.0), "eps must be above 0"),
        (lambda: Adam(beta2=1.5), "beta2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="prox must be a number"):
        SGD(prox="much")
    with pytest.raises(TypeError, match="model must be"):
        InnerLoop(lambda x: x)
    with pytest.raises(ValueError, match="model has no parameters"):
        InnerLoop(nn.ReLU())


Change = Callable[[TaskBatch], TaskBatch]


def _label(value: int) -> Change:
    def change(b: TaskBatch) -> TaskBatch:
        b.support_y[1, 2] = value
        return b

    return change


DATA: dict[str, tuple[Change, type[Exception], str]] = {
    "label": (_label(3), ValueError, r"support_y: task 1(, example 2)? has labels? .*3.*"),
    "negative label": (_label(-1), ValueError, r"support_y: task 1(, example 2)? has labels? -1"),
    "double": (lambda b: b.to(dtype=torch.float64), TypeError, r"support_x is torch\.float64, the model's"),
    "no query": (lambda b: replace(b, query_x=b.query_x[:, :0], query_y=b.query_y[:, :0]), ValueError, "0 query"),
    "nothing valid": (lambda b: replace(b, support_mask=torch.arange(3)[:, None].ne(1).expand(3, 5)), ValueError,
                      "support_mask: task 1 has no valid example"),
    "shape": (lambda b: make_batch((7,), dtype=torch.float32), ValueError,
              r"support_x: task 0: the model cannot run on its examples, \[5, 7\] of torch.float32: .*5x7 and 6x5"),
}  # fmt: skip


ENGINES = ("auto", "loop", "vmap")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", DATA)
def test_data(case: str, engine: str) -> None:
    change, kind, message = DATA[case]
    with pytest.raises(kind, match=message):
        InnerLoop(model(), engine=engine)(change(batch()))


def test_the_task_that_a_model_refuses_is_named() -> None:
    b = replace(batch(), query_mask=torch.tensor([[True] * 4, [True] * 4, [True, False, False, False]]))
    normed = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    message = r"query_x: task 2: the model cannot run on its examples, \[1, 6\] .*: Expected more than 1 value"
    with pytest.raises(ValueError, match=message):
        InnerLoop(normed, engine="loop")(b)
    with pytest.raises(ValueError, match=r"^x: task 0: the model cannot run on its examples, \[3, 7\]"):
        InnerLoop(model()).gradient(torch.zeros(53), torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.int64))


MISFITS: dict[str, tuple[nn.Module, str]] = {
    "convolution": (nn.Conv2d(3, 4, 3), r"layer 0 \(Conv2d\): it takes 3 channels and gets 2"),
    "batch norm": (nn.BatchNorm2d(5), r"layer 0 \(BatchNorm2d\): it normalizes 5 channels and gets 2"),
    "group norm": (nn.GroupNorm(2, 6), r"layer 0 \(GroupNorm\): it normalizes 6 channels or features and gets 2"),
    "statistics": (nn.BatchNorm2d(5, affine=False).eval(), r"layer 0 \(BatchNorm2d\): it normalizes 5 channels"),
    "map": (nn.Conv2d(2, 4, 7), r"layer 0 \(Conv2d\): a map of 6x6 is too small"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_shapes_that_fit_no_layer(case: str) -> None:
    layer, message = MISFITS[case]
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3))
    images = make_batch((2, 6, 6), dtype=torch.float32)
    with pytest.raises(ValueError, match=f"engine='compiled' cannot run this model: {message}"):
        InnerLoop(net, engine="compiled")(images)
    with pytest.raises(ValueError, match=r"support_x: task 0: the model cannot run on its examples, \[5, 2, 6, 6\]"):
        InnerLoop(net)(images)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_classes_of_a_task(engine: str) -> None:
    b = replace(batch(), classes=torch.tensor([3, 2, 3]))
    b.support_y[:] = 0
    b.query_y[:] = 0
    b.query_y[1, 3] = 2
    with pytest.raises(ValueError, match="query_y: task 1(, example 3)? has labels? .*2.*"):
        InnerLoop(model(), engine=engine)(b)
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"classes: task 2 has {count}, the model has 3"):
            InnerLoop(model(), engine=engine)(replace(b, classes=torch.tensor([3, 3, count])))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("width", [1, 2])  # torch would broadcast 1
def test_targets(width: int, engine: str) -> None:
    b = batch()
    with pytest.raises(TypeError, match="support_y must be torch.float32 targets for mse"):
        InnerLoop(model(), loss="mse", engine=engine)(b)
    y = torch.zeros(3, 5, width), torch.zeros(3, 4, width)
    numbers = TaskBatch(b.support_x, y[0], b.query_x, y[1])
    with pytest.raises(ValueError, match=r"support_y must be \[tasks, examples, .*3.* as the model's output, got"):
        InnerLoop(model(), loss="mse", engine=engine)(numbers)
    with pytest.raises(TypeError, match="support_y must be int64 class numbers"):
        InnerLoop(model(), engine=engine)(numbers)


def test_tokens() -> None:
    tokens = make_batch((4,), tokens=True)
    tokens.query_x[2, 1, 0] = 9
    with pytest.raises(ValueError, match="query_x: task 2 has tokens outside 0 to 8"):
        InnerLoop(Bag())(tokens)


CALL: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "steps": ({"steps": 0}, ValueError, "steps must be at least 1"),
    "order": ({"order": -1}, ValueError, "order must be 0, 1 or 2"),
    "rates shape": ({"rates": torch.ones(3)}, ValueError, r"rates has shape \[3\]; for 2 steps"),
    "rates nan": ({"rates": float("nan")}, ValueError, "rates must be finite"),
    "rates type": ({"rates": "0.1"}, TypeError, "rates must be a number"),
    "rates dtype": ({"rates": torch.ones(2, dtype=torch.int64)}, TypeError, "rates must be floating point"),
    "per": ({"per": "layer", "rates": torch.ones(2)}, ValueError, "per='layer' is unknown"),
    "unknown rate": ({"rates": {"3.weight": 0.1}}, ValueError, "rates: '3.weight' is no parameter"),
    "missing rate": ({"rates": {"0.weight": 0.1}}, ValueError, "rates: '0.bias' has none"),
    "params name": ({"params": {"w": torch.ones(1)}}, ValueError, "params: 'w' is no parameter"),
    "params shape": ({"params": {"0.bias": torch.ones(4)}}, ValueError, r"params\['0.bias'\] must be \[5\]"),
    "params tasks": ({"params": {"0.bias": torch.ones(2, 5)}}, ValueError, "params are for 2 tasks, the batch has 3"),
    "query weights": ({"query_weights": [1.0]}, ValueError, r"query_weights must be \[steps \+ 1\] = \[3\]"),
    "task weights": ({"task_weights": [1.0]}, ValueError, r"task_weights must be \[tasks\] = \[3\]"),
    "task weights nan": ({"task_weights": [1.0, float("nan"), 0]}, ValueError, "task_weights must be finite"),
    "batches": ({"batches": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, r"batches must be \[2, B\]"),
    "batches range": ({"batches": torch.full((2, 2), 5)}, ValueError, "from 0 to 4, got 5 to 5"),
    "batches type": ({"batches": torch.zeros(2, 2)}, TypeError, "batches must be an int64 tensor"),
    "seed": ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    "seed size": ({"seed": 2**63}, ValueError, "seed must fit into 64 bits"),
    "first task": ({"first_task": "0"}, TypeError, "first_task must be an integer"),
    "stats": ({"stats": torch.zeros(2, 8)}, ValueError, r"stats must be \[1 or 3, 0\]"),
}


@pytest.mark.parametrize("case", CALL)
def test_call(case: str) -> None:
    options, kind, message = CALL[case]
    with pytest.raises(kind, match=message):
        InnerLoop(model(), steps=2)(batch(), **options)


GRADIENT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "labels": ({"y": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, r"y must be .* as x, \[3, 4\], got \[3, 2\]"),
    "mask": ({"mask": torch.ones(3, 2, dtype=torch.bool)}, ValueError, r"mask must be bool \[3, 4\] as x"),
    "mask type": ({"mask": torch.ones(3, 4)}, ValueError, r"mask must be bool \[3, 4\] as x, got torch.float32"),
    "classes": ({"classes": torch.tensor([3, 3])}, ValueError, r"classes must be int64 \[3\], got"),
    "step": ({"step": None}, TypeError, "step must be an integer"),
}


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("case", GRADIENT)
def test_gradient(case: str, engine: str) -> None:
    options, kind, message = GRADIENT[case]
    b = batch()
    with pytest.raises(kind, match=message):
        InnerLoop(model(), engine=engine).gradient(torch.zeros(53), **{"x": b.query_x, "y": b.query_y, **options})


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_finite_is_named(engine: str) -> None:
    loop = InnerLoop(model(), engine=engine, steps=2)
    with pytest.raises(ValueError, match="task 0: its query loss is nan; rates contain NaN"):
        loop(batch(), rates=torch.tensor([0.1, float("nan")]))
    with pytest.raises(ValueError, match="task .: its query loss is .*; its inputs are finite, so adaptation diverged"):
        loop(batch(), rates=1e38)
    starts = {"0.bias": torch.zeros(3, 5)}
    starts["0.bias"][1] = float("nan")
    message = "task 1: its query loss is (nan|inf); the parameters that it starts from contain NaN or infinity"
    with pytest.raises(ValueError, match=message):
        loop(batch(), params=starts)


@pytest.mark.parametrize("engine", ["compiled", "loop"])
def test_batch_norm_over_one_example(engine: str) -> None:
    normed = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    loop = InnerLoop(normed, engine=engine, steps=2)
    one = torch.arange(4) < torch.tensor([4, 4, 1])[:, None]
    for wrong, options, which in (
        (batch(support=1), {}, "support_x: task 0"),
        (batch(query=1), {}, "query_x: task 0"),
        (batch(), {"batches": torch.zeros(2, 1, dtype=torch.int64)}, "support_x: task 0"),
        (replace(batch(), query_mask=one), {}, "query_x: task 2"),
    ):
        with pytest.raises(ValueError, match=f"{which}.* 1 example|{which}.*more than 1 value per channel"):
            loop(wrong, **options)
    b = batch()  # adapting looks at no query, which might be one example
    assert loop.adapt(b.support_x, b.support_y)["0.weight"].shape == (3, 5, 6)
    hook = InnerLoop(normed, engine=engine, steps=2, rule=lambda step, params, grads, losses, state: (params, state))
    assert torch.equal(hook.adapt(b.support_x, b.support_y)["0.weight"][1], normed[0].weight)
    assert bool(loop(batch(support=2, query=2)).loss.isfinite())
    assert bool(InnerLoop(normed, engine=engine, batch_norm="running")(batch(support=1)).loss.isfinite())


def test_ambiguous_rates_ask() -> None:
    loop = InnerLoop(model(), steps=4)  # four tensors, four steps
    with pytest.raises(ValueError, match="may mean .*say per="):
        loop(batch(), rates=torch.full((4,), 0.1))
    by_step = loop(batch(), rates=torch.linspace(0.1, 0.4, 4), per="scalar").task_losses
    by_tensor = loop(batch(), rates=torch.linspace(0.1, 0.4, 4), per="tensor").task_losses
    named = dict(zip(loop.names, torch.linspace(0.1, 0.4, 4), strict=True))
    assert not torch.allclose(by_step, by_tensor)
    assert torch.equal(loop(batch(), rates=named).task_losses, by_tensor)


def test_a_batch_of_something_else() -> None:
    with pytest.raises(TypeError, match="batch must be a metafast.data.TaskBatch, got tuple"):
        InnerLoop(model())((torch.zeros(1), torch.zeros(1)))
    with pytest.raises(ValueError, match=r"flat must be \[53\]|flat must be"):
        InnerLoop(model()).unflatten(torch.zeros(7))
    with pytest.raises(ValueError, match="params must be"):
        InnerLoop(model()).gradient(torch.zeros(7), torch.zeros(2, 3, 6), torch.zeros(2, 3, dtype=torch.int64))


def test_a_hook_that_returns_something_else() -> None:
    loop = InnerLoop(model(), rule=lambda step, params, grads, losses, state: (params[0], state))
    with pytest.raises(ValueError, match="rule must return"):
        loop(batch())


def test_explain_before_and_after() -> None:
    loop = InnerLoop(model())
    assert str(loop.explain()) == "engine: undecided (no batch was seen yet)"
    loop(batch())
    assert "0 (Linear)  linear -> 5x1x1" in str(loop.explain())
