"""Every algorithm's meta-gradient equals an independent plain loop in float64, and lowers the loss."""

import pytest
import torch

from metafast.innerloop import SGD, Adam
from metafast.maml import ALGORITHMS, MAML
from tests.maml.maml_cases import CASES, Net, make_batch

EXACT = 1e-10


def meta_gradient(maml, batch):
    loss, metrics = maml(batch)
    loss.backward()
    return loss, metrics, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in maml.named_parameters()}


def test_the_table_has_a_case_for_every_algorithm():
    assert {case.algorithm for case in CASES.values()} == set(ALGORITHMS)


@pytest.mark.parametrize("name", CASES)
def test_meta_gradient_equals_a_plain_float64_loop(name):
    case, batch = CASES[name], make_batch()
    maml = case.make()
    expected = case.expected(maml, batch)
    _, _, actual = meta_gradient(maml, batch)
    assert set(expected) == set(actual)
    scale = max(float(grad.abs().max()) for grad in expected.values())
    assert scale > 1e-4
    for key, grad in expected.items():
        assert float((actual[key] - grad).abs().max()) < EXACT * scale, key


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize(
    "name", ["maml", "anil", "mamlpp", "mamlpp with norm weights per step", "reptile", "imaml", "alfa", "protomaml"]
)
def test_the_generic_engines_give_the_same_meta_gradient(name, engine):
    batch = make_batch()
    _, _, expected = meta_gradient(CASES[name].make(), batch)
    _, _, actual = meta_gradient(CASES[name].make(engine=engine), batch)
    for key, grad in expected.items():
        torch.testing.assert_close(actual[key], grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].algorithm not in ("reptile", "imaml")])
def test_clone_and_adapt_by_hand_give_the_batched_numbers(name):
    """learn2learn's way, with ordinary autograd, for the same tasks."""
    case, batch = CASES[name], make_batch()
    maml = case.make()
    maml.multi_step_batches = 0  # the last step alone, as here
    maml(batch)[0].backward()
    expected = {n: p.grad.clone() for n, p in maml.named_parameters() if p.grad is not None}
    maml.zero_grad()
    total = 0.0
    for index in range(len(batch)):
        x, y, query_x, query_y = batch.task(index)
        learner = maml.clone(x, y) if case.algorithm == "protomaml" else maml.clone()
        for _ in range(maml.steps):
            learner.adapt(torch.nn.functional.cross_entropy(learner(x), y))
        total = total + torch.nn.functional.cross_entropy(learner(query_x), query_y) / len(batch)
    total.backward()
    for key, grad in expected.items():
        torch.testing.assert_close(dict(maml.named_parameters())[key].grad, grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "rule", [SGD(momentum=0.8), SGD(weight_decay=0.1, prox=0.2), Adam(), Adam(beta1=0.5, weight_decay=0.1)], ids=repr
)
def test_clone_follows_the_inner_optimizer(rule):
    batch = make_batch(tasks=1)
    maml = MAML(Net(), inner_lr=0.02, steps=3, rule=rule)
    loss, _, expected = meta_gradient(maml, batch)
    expected = {name: grad.clone() for name, grad in expected.items()}
    maml.zero_grad()
    learner = maml.clone()
    for _ in range(3):
        learner.adapt(torch.nn.functional.cross_entropy(learner(batch.support_x[0]), batch.support_y[0]))
    by_hand = torch.nn.functional.cross_entropy(learner(batch.query_x[0]), batch.query_y[0])
    by_hand.backward()
    torch.testing.assert_close(by_hand, loss, rtol=0, atol=1e-12)
    for key, parameter in maml.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_lowers_the_loss(algorithm):
    """30 meta-steps on tasks of one kind, judged on others of that kind."""
    more = {"cg_steps": 5} if algorithm == "imaml" else {}
    maml = CASES[algorithm].make(torch.float32, **more)
    test = make_batch(torch.float32, tasks=40, seed=99)
    maml.eval()
    with torch.no_grad():
        before = float(maml(test)[0])
    maml.train()
    opt = torch.optim.Adam(maml.parameters(), lr=0.01)
    for step in range(30):
        loss, _ = maml(make_batch(torch.float32, tasks=8, seed=step))
        opt.zero_grad()
        loss.backward()
        opt.step()
    maml.eval()
    with torch.no_grad():
        after = float(maml(test)[0])
    assert after < 0.9 * before
