"""Meta-gradients against definitions, and meta-training: it learns, resumes bit for bit, and refuses nonsense."""

from __future__ import annotations

import math

import pytest
import torch

from metafast.schedule import LRController, Settings, meta_train
from metafast.schedule import _features as features
from metafast.schedule import _policy as policy
from metafast.schedule._judge import Judge
from metafast.schedule._meta_train import parse_budget
from metafast.schedule._pes import PES
from metafast.schedule._suite import Draw
from metafast.schedule._trainings import Start, Trainings, score
from metafast.schedule._truncated import Truncated
from tests.schedule.cases import task

SHAPE = policy.Shape(len(features.NAMES), 4)
DRAW = Draw(5, steps=(20, 40))


def weights(seed: int = 0) -> torch.Tensor:
    drawn = SHAPE.initial(seed)
    SHAPE.split(drawn)["skip"].zero_()
    SHAPE.split(drawn)["offset"].fill_(0.5)
    return drawn + 0.1 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(seed))


def test_the_lstm_is_torchs() -> None:
    cell = torch.nn.LSTMCell(SHAPE.inputs, SHAPE.hidden).double()
    w = weights().double()
    parts = SHAPE.split(w)
    with torch.no_grad():
        order = [0, 1, 3, 2]  # i, f, o, candidate here; i, f, candidate, o there

        def rows(x):
            return torch.cat([x.chunk(4)[k] for k in order])

        cell.weight_ih.copy_(rows(parts["input"]))
        cell.weight_hh.copy_(rows(parts["recurrent"]))
        cell.bias_ih.copy_(rows(parts["bias"]))
        cell.bias_hh.zero_()
        x, memory = torch.randn(3, SHAPE.inputs).double(), torch.randn(2, 3, SHAPE.hidden).double()
        change, after = policy.decide(SHAPE, w, x, memory, 0.7)
        h, c = cell(x, (memory[0], memory[1]))
    torch.testing.assert_close(after, torch.stack([h, c]))
    wanted = h @ parts["head"] + x @ parts["skip"] + parts["offset"]
    expected = 0.7 * (3 * (wanted - x[:, features.NAMES.index("update")]) / 0.7).tanh()
    torch.testing.assert_close(change, expected)


def test_many_learners_at_once_equal_one_at_a_time() -> None:
    several = torch.stack([weights(k) for k in range(3)])
    x, memory = torch.randn(3, 2, SHAPE.inputs), torch.randn(2, 3, 2, SHAPE.hidden)
    change, after = policy.decide(SHAPE, several, x, memory, 1.0)
    for k in range(3):
        one, kept = policy.decide(SHAPE, several[k], x[k], memory[:, k], 1.0)
        torch.testing.assert_close(change[k], one)
        torch.testing.assert_close(after[:, k], kept)


def test_features_do_not_depend_on_scale() -> None:
    """A loss in other units, and a network whose weights, and so updates, are ten times as large: the same features."""
    units = features.Units(torch.tensor([0, 0]), torch.tensor([4.0, 9.0]).double(), 1)

    def seen(loss_scale: float, size: float):
        state, found = features.first_state(1), []
        for k in range(4):
            generator = torch.Generator().manual_seed(k)
            gg, gu, uu, pp = torch.rand(4, 2, generator=generator, dtype=torch.float64) + 1.0
            grad = loss_scale / size
            table = torch.stack([gg * grad**2, 0.3 * gu * grad, uu, 50 * pp * size**2], -1)
            mean, spread = torch.tensor(2.0 - 0.3 * k) * loss_scale, torch.tensor(0.1) * loss_scale
            rates = torch.full((2,), 1e-2 * size, dtype=torch.float64)
            x, state = features.observe(state, units, table, rates, mean, spread, torch.tensor(0.2 * k))
            found.append(x)
        return torch.stack(found)

    torch.testing.assert_close(seen(1.0, 1.0), seen(100.0, 10.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_features_are_bounded_whatever_comes(value) -> None:
    units = features.Units(torch.tensor([0, 1]), torch.tensor([4.0, 9.0]).double(), 2)
    state, number = features.first_state(2), torch.tensor(value, dtype=torch.float64)
    for _ in range(3):
        x, state = features.observe(
            state, units, torch.full((2, 4), value, dtype=torch.float64),
            torch.full((2,), abs(value), dtype=torch.float64), number.float(), number.float(), torch.tensor(math.nan),
        )  # fmt: skip
        assert x.shape == (2, len(features.NAMES))
        assert bool(x.isfinite().all()) and float(x.abs().max()) <= 3.0


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("per", ["global", "tensor"])
def test_side_by_side_equals_one_at_a_time(optimizer, per) -> None:
    """A training among others ends where it ends alone."""
    starts = [Start(3, 1e-3, 20), Start(4, 1e-2, 20)]
    together = Trainings(task(optimizer=optimizer), starts, 1, per, 5, seed=1)
    batches = []
    draw = Trainings._draw

    def listen(self, part, size, places):
        batches.append(draw(self, part, size, places))
        return batches[-1]

    together._draw = listen.__get__(together)
    for _ in range(3):
        together.run(SHAPE, weights(), 1.0)
    for k, start in enumerate(starts):
        alone = Trainings(task(optimizer=optimizer), [start], 1, per, 5, seed=9)
        replay = iter(batches)
        alone._draw = lambda part, size, places, k=k, replay=replay: tuple(x[k : k + 1] for x in next(replay))
        for _ in range(3):
            alone.run(SHAPE, weights(), 1.0)
        torch.testing.assert_close(alone.flat[0], together.flat[k], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.log_rates[0], together.log_rates[k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("per", ["global", "tensor"])
def test_truncated_goes_the_same_way_as_the_fused_optimizers(optimizer, per) -> None:
    a = Truncated(task(optimizer=optimizer), 3, per, 5, 0, 2, DRAW)
    b = Trainings(task(optimizer=optimizer), [Start(k, 1e-2, 40) for k in range(3)], 1, per, 5, 1)
    a.trainings = b
    a.kept = type(a.kept)(b)
    c = Trainings(task(optimizer=optimizer), [Start(k, 1e-2, 40) for k in range(3)], 1, per, 5, 1)
    for _ in range(2):
        a.gradient(SHAPE, weights(), 1.0, 0.0)
        for _ in range(2):
            c.run(SHAPE, weights(), 1.0)
            c.validate()  # draws what `gradient` has drawn
    torch.testing.assert_close(b.flat, c.flat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.log_rates, c.log_rates, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("per", ["global", "tensor"])
def test_truncated_gradient_is_the_derivative(optimizer, per) -> None:
    """Against finite differences: in a first window of two decisions no feature depends on the learner."""

    def make():
        starts = [Start(k, 3e-3, 40) for k in range(4)]
        learner = Truncated(task(optimizer=optimizer), 4, per, 5, 0, 2, DRAW)
        learner.trainings = Trainings(task(optimizer=optimizer), starts, 1, per, 5, 1)
        learner.kept = type(learner.kept)(learner.trainings)
        return learner

    w = weights()
    gradient, value = make().gradient(SHAPE, w, 1.0, 0.0)
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(7))
    direction = direction / direction.norm() + 0.5 * gradient / gradient.norm()
    eps = 0.02
    up, down = (make().gradient(SHAPE, w + sign * eps * direction, 1.0, 0.0)[1] for sign in (1, -1))
    assert math.isfinite(value)
    assert float(gradient @ direction) == pytest.approx((up - down) / (2 * eps), rel=0.05)


def test_first_order_leaves_the_hessian_out() -> None:
    found = []
    for order in (1, 2):
        learner = Truncated(task(optimizer="sgd"), 4, "global", 5, 0, 2, DRAW, order)
        found.append(learner.gradient(SHAPE, weights(), 1.0, 0.0)[0])
    assert not torch.allclose(found[0], found[1], rtol=1e-4, atol=0)
    assert float(torch.nn.functional.cosine_similarity(found[0], found[1], 0)) > 0.5


def test_pes_is_the_antithetic_estimate_and_remembers_its_perturbations() -> None:
    pes, twin = (PES(task(), 3, "global", 5, 0, 0.1, 2, DRAW) for _ in range(2))
    for each in (pes, twin):
        each.trainings.steps[:] = 1000.0  # none ends
    noise = 0.1 * torch.randn(3, SHAPE.numel, generator=torch.Generator().set_state(pes.generator.get_state()))
    estimate, _ = pes.gradient(SHAPE, weights(), 1.0, 0.0)
    first = pes.xi.clone()
    torch.testing.assert_close(first, noise)
    for _ in range(2):
        twin.trainings.run(SHAPE, weights() + torch.stack([noise, -noise], 1).flatten(0, 1), 1.0)
    scores = score(twin.trainings.validate(), twin.trainings.first_loss).view(3, 2)
    difference = scores[:, 0] - scores[:, 1]
    expected = (noise * difference[:, None]).mean(0) / (2 * 0.1**2) / difference.square().mean().sqrt().clamp(min=0.1)
    torch.testing.assert_close(estimate, expected, rtol=1e-3, atol=1e-4)
    pes.gradient(SHAPE, weights(), 1.0, 0.0)
    assert float((pes.xi - first).std()) == pytest.approx(0.1, rel=0.1)


def test_an_ended_training_begins_anew_without_its_perturbations() -> None:
    pes = PES(task(), 3, "global", 5, 0, 0.1, 2, DRAW)
    pes.trainings.steps[:] = torch.tensor([10.0, 10.0, 1000.0, 1000.0, 1000.0, 1000.0])
    pes.gradient(SHAPE, weights(), 1.0, 0.0)
    assert bool((pes.xi[0] == 0).all()) and bool((pes.xi[1:] != 0).any())
    assert pes.trainings.done.tolist() == [0, 0, 10, 10, 10, 10]


def test_both_of_a_pair_see_the_same_data() -> None:
    trainings = Trainings(task(), [Start(1, 1e-3, 40), Start(2, 1e-2, 40)], 2, "global", 5, 0)
    trainings.run(SHAPE, weights(), 1.0)
    assert torch.equal(trainings.flat[0], trainings.flat[1])
    assert torch.equal(trainings.flat[2], trainings.flat[3])
    assert not torch.equal(trainings.flat[0], trainings.flat[2])


@pytest.mark.parametrize("method", ["pes", "truncated"])
def test_resumes_bit_for_bit(method, tmp_path) -> None:
    options = {
        "tasks": [task("a"), task("b", "sgd", seed=1)], "validation": [task("c", seed=2)], "method": method,
        "pairs": 3, "hidden": 4, "interval": 5, "steps": (20, 40), "validate_every": 2, "tensor_share": 0.5,
    }  # fmt: skip
    whole = meta_train(updates=6, output=tmp_path / "whole", **options)
    meta_train(updates=4, output=tmp_path / "parts", **options)
    again = meta_train(updates=6, output=tmp_path / "parts", **options)
    twice = meta_train(updates=6, output=tmp_path / "parts", **options)
    assert torch.equal(whole.weights, again.weights)
    assert torch.equal(whole.weights, twice.weights)
    assert whole.record["meta_training"] == {"data": ["a", "b"], "models": ["MLP"]}
    assert whole.record["meta_validation"]["data"] == ["c"]
    with pytest.raises(ValueError, match="other settings"):
        meta_train(updates=6, output=tmp_path / "parts", **{**options, "hidden": 5})


def test_it_learns() -> None:
    """On one toy task, from starting rates of all sizes, a controller of a few updates beats rates that stay."""
    learned = meta_train(
        [task("a")], validation=[task("b", seed=1)], updates=30, validate_every=5, pairs=12, hidden=4,
        meta_lr=0.05, interval=5, steps=(80, 160), halve=0, tensor_share=0.0, max_change=2.0,
    )  # fmt: skip
    judge = Judge([task("c", seed=3)], rates=(1e-5, 1e-4, 1e-3), interval=5, steps=120)
    steered = judge.score(learned.shape, learned.weights, learned.max_change)
    assert steered < judge.score(learned.shape, learned.weights, 1e-9) - 0.5


def test_presets() -> None:
    paper = LRController.meta_train([task()], preset="paper", updates=1, steps=(20, 40), pairs=2)
    settings = paper.record["settings"]
    assert (settings["meta_lr"], settings["interval"], settings["dropout"], settings["method"]) == (
        1e-4, 10, 0.5, "truncated",
    )  # fmt: skip
    assert Settings().interval == 10


def test_budgets_and_bad_arguments() -> None:
    assert (parse_budget("90s"), parse_budget("1.5h"), parse_budget(3)) == (90.0, 5400.0, 3.0)
    for budget in ("soon", "-3s", "0min"):
        with pytest.raises(ValueError, match="budget"):
            parse_budget(budget)
    with pytest.raises(TypeError, match="budget"):
        parse_budget(True)
    for wrong, error in (
        ({"preset": "best"}, ValueError), ({"method": "grid"}, ValueError), ({"layers": 2}, TypeError),
        ({"sigma": 0.0}, ValueError), ({"dropout": 1.0}, ValueError), ({"order": 3}, ValueError),
        ({"pairs": 0}, ValueError), ({"updates": 0}, ValueError), ({"validation": [task("toy")]}, ValueError),
        ({"tasks": []}, ValueError), ({"tasks": [3]}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error):
            meta_train(**{"tasks": [task("toy")], "updates": 1, **wrong})


def test_starts_are_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [Draw(10)(generator) for _ in range(400)]
    assert all(1e-6 <= s.rate <= 0.1 and s.steps % 10 == 0 and 100 <= s.steps <= 800 for s in starts)
    assert 0.1 < sum(s.open_end for s in starts) / 400 < 0.3
    assert sum(3e-4 <= s.rate <= 3e-3 for s in starts) / 400 > 0.5
