"""The baselines: what they compute, and that they are trained and tuned as they say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import ClassSet, TaskBatch, episodes
from metafast.maml import MAML, ProtoNet, evaluate
from metafast.maml.baselines import BASELINES, choose_rate, pretrain, run_baselines, train_protonet
from metafast.models import SinusoidMLP
from tests.maml.maml_cases import WAYS, Net, make_batch


@pytest.fixture
def clusters():
    """Class sets that separate easily: 20 classes around points of the plane."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(20, 6, generator=generator)
    y = torch.arange(20).repeat_interleave(20)
    x = centres[y] + 0.5 * torch.randn(400, 6, generator=generator)
    return x, y


def sources(clusters, ways=3):
    x, y = clusters
    names = tuple(f"cluster {number}" for number in range(20))
    parts = ClassSet(x.numpy(), y.numpy(), names).split(0.5, 0.25)
    return [episodes(part, ways=ways, shots=2, queries=4, tasks=4, seed=seed) for seed, part in enumerate(parts)]


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_protonet_is_the_nearest_mean_feature():
    net, batch = ProtoNet(Net()), make_batch()
    loss, metrics = net(batch)
    body = net.model.features
    total = 0.0
    for task in range(len(batch)):
        x, y, query_x, query_y = batch.task(task)
        found = body(x)
        centres = torch.stack([found[y == c].mean(0) for c in range(WAYS)])
        distances = torch.cdist(body(query_x), centres).square()
        total = total + F.cross_entropy(-distances, query_y) / len(batch)
        right = (distances.argmin(1) == query_y).double().mean()
        assert float(metrics["accuracy"][task]) == pytest.approx(float(right))
    torch.testing.assert_close(loss, total, rtol=0, atol=1e-10)
    loss.backward()
    expected = torch.autograd.grad(total, list(body.parameters()))
    for p, grad in zip(body.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-10)


def test_protonet_adapts_to_a_module():
    net, batch = ProtoNet(Net()), make_batch()
    net.eval()
    with torch.no_grad():
        logits = net(batch)[1]["logits"][0]
    model = net.adapt(batch.support_x[0], batch.support_y[0])
    torch.testing.assert_close(model(batch.query_x[0]), logits, rtol=0, atol=1e-10)


def test_protonet_is_the_same_after_any_number_of_steps():
    net = ProtoNet(Net())
    result = evaluate(net, [make_batch()], 4, steps=3, per_step=True)
    assert [score.mean for score in result.per_step] == [result.score.mean] * 4


def test_protonet_leaves_padding_out():
    batch = make_batch()
    mask = torch.ones(batch.query_y.shape, dtype=torch.bool)
    mask[1, 8:] = False
    masked = TaskBatch(batch.support_x, batch.support_y, batch.query_x, batch.query_y, query_mask=mask)
    loss, metrics = ProtoNet(Net())(masked)
    one = TaskBatch(batch.support_x[1:2], batch.support_y[1:2], batch.query_x[1:2, :8], batch.query_y[1:2, :8])
    alone = ProtoNet(Net())(one)[0]
    torch.testing.assert_close(metrics["loss"][1], alone.detach(), rtol=0, atol=1e-10)
    assert loss.isfinite()


def test_protonet_drops_a_task_with_nan_or_names_it():
    batch = make_batch()
    x = batch.query_x.clone()
    x[1, 0] = torch.nan
    bad = TaskBatch(batch.support_x, batch.support_y, x, batch.query_y)
    net = ProtoNet(Net(), on_nan="drop")
    loss, metrics = net(bad)
    loss.backward()
    assert metrics["dropped"] == [1]
    alone = ProtoNet(Net())
    expected = alone(TaskBatch.cat([batch[:1], batch[2:]]))[0]
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for p, q in zip(net.model.features.parameters(), alone.model.features.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="task 1: .*its query_x contains NaN"):
        alone(bad)


def test_pretraining_learns_all_classes_and_leaves_the_model_alone(clusters):
    model = mlp()
    before = [p.clone() for p in model.parameters()]
    losses = []
    trained = pretrain(
        model, *clusters, steps=200, batch_size=64, lr=1e-2, progress=lambda step, loss: losses.append(loss)
    )
    assert losses[-1] < 0.3 * losses[0]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert trained[2].weight.shape == (3, 16) and not trained[2].weight.any()
    assert not torch.equal(trained[0].weight, model[0].weight)


def test_choose_rate_takes_the_best_and_survives_divergence(clusters):
    _, val, _ = sources(clusters)

    def make(rate):
        return MAML(mlp(), rate, 5, on_nan="drop")

    learner, rate = choose_rate(make, val, rates=(1e-4, 0.3, 1e30), n=20)
    assert rate == 0.3 and learner.inner_lr == 0.3
    scores = [evaluate(make(r), val, 20).score.mean for r in (1e-4, 0.3)]
    assert scores[1] > scores[0]


def test_all_baselines_beat_chance_and_pretraining_beats_random(clusters):
    train, val, test = sources(clusters)
    seen = []
    found = run_baselines(
        mlp(), train, val, test, steps=5, training_steps=150, episodes=60, val_episodes=20, per_step=True,
        done=lambda one: seen.append(one.title),
    )  # fmt: skip
    assert list(found) == list(BASELINES) and seen == [one.title for one in found.values()]
    for one in found.values():
        assert one.result.score.mean > 0.5
    assert found["pretrained"].result.score.mean >= found["random"].result.score.mean - 0.02
    assert len(found["random"].result.per_step) == 6
    again = train_protonet(mlp(), train, 150)
    assert evaluate(again, test, 60).score.mean == found["protonet"].result.score.mean  # the same seed


def test_regression_baselines_have_no_protonet():
    parts = [episodes("sinusoid", split=s, shots=5, queries=5, tasks=5, seed=0) for s in ("train", "val", "test")]
    found = run_baselines(
        SinusoidMLP((16,), seed=0), *parts, steps=3, training_steps=20, episodes=20, val_episodes=10, loss="mse"
    )
    assert set(found) == {"random", "pretrained", "probe"}
    assert all(one.result.metric == "mse" for one in found.values())


def test_an_unknown_baseline_is_refused(clusters):
    with pytest.raises(ValueError, match="which must be names out of"):
        run_baselines(mlp(), *sources(clusters), which=["bert"])
