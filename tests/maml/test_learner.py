"""What all algorithms share: rates, adaptation to one task, states, masks, NaN, and what is refused."""

import copy
import itertools

import pytest
import torch
from torch import nn

from metafast.data import TaskBatch
from metafast.maml import ALGORITHMS, ANIL, IMAML, MAML, MAMLpp, MetaSGD, ProtoMAML, ProtoNet, Reptile
from tests.maml.maml_cases import CASES, Net, make_batch

NORMS = "mamlpp with norm weights per step"


def mlp(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def flat_batch(tasks=4, shots=6, queries=5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def part(count):
        y = torch.arange(count).remainder(3).expand(tasks, -1).contiguous()
        return torch.randn(tasks, count, 4, generator=generator, dtype=torch.float64) + y[..., None], y

    return TaskBatch(*part(shots), *part(queries))


def gradient(maml, batch, **options):
    maml.zero_grad()
    loss, metrics = maml(batch, **options)
    loss.backward()
    return loss.detach(), metrics, [None if p.grad is None else p.grad.clone() for p in maml.parameters()]


@pytest.mark.parametrize("name", [*ALGORITHMS, NORMS])
def test_adapt_gives_a_module_that_computes_what_the_batch_said(name):
    maml, batch = CASES[name].make(), make_batch()
    maml.eval()
    with torch.no_grad():
        _, metrics = maml(batch)
    before = copy.deepcopy(maml.state_dict())
    for task in range(2):
        adapted = maml.adapt(batch.support_x[task], batch.support_y[task])
        assert type(adapted) is type(maml.model)
        for mode in (True, False):
            adapted.train(mode)
            torch.testing.assert_close(adapted(batch.query_x[task]), metrics["logits"][task], rtol=0, atol=1e-10)
    for key, value in maml.state_dict().items():
        assert torch.equal(value, before[key])


def test_adapt_for_more_steps_goes_on_with_the_last_rates():
    maml = MAML(mlp(), inner_lr=torch.tensor([0.3, 0.1]), steps=2)
    batch = flat_batch(tasks=1)
    long = MAML(maml.model, inner_lr=torch.tensor([0.3, 0.1, 0.1, 0.1, 0.1]), steps=5)
    a = maml.adapt(batch.support_x[0], batch.support_y[0], steps=5)
    b = long.adapt(batch.support_x[0], batch.support_y[0])
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (4,), (51,), (1, 4), (3, 1), (3, 4), (3, 51)])
def test_rates_of_every_shape_mean_what_they_say(shape):
    """Compared with one rate for each element and step."""
    rates = 0.1 + 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sizes = torch.tensor([24, 6, 18, 3])
    table = rates[:, None] if shape == (3,) else rates
    table = table.expand(3, table.shape[-1] if table.dim() else 1)
    if table.shape[1] == 4:
        table = table.repeat_interleave(sizes, 1)
    full = table.expand(3, 51).contiguous()
    batch = flat_batch()
    loss, _, grads = gradient(MAML(mlp(), inner_lr=rates, steps=3), batch)
    expected, _, same = gradient(MAML(mlp(), inner_lr=full, steps=3), batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for a, b in zip(grads, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_given_parameter_is_the_rate_that_is_learned():
    rate = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    maml = MAML(mlp(), inner_lr=rate, steps=2)
    assert any(p is rate for p in maml.parameters())
    gradient(maml, flat_batch())
    assert rate.grad is not None and float(rate.grad.abs()) > 0
    assert "inner_lr" not in dict(MAML(mlp(), inner_lr=0.2).named_parameters())


def test_tasks_with_fewer_examples_and_classes_equal_tasks_of_their_own():
    batch = flat_batch(tasks=3)
    support_mask = torch.ones(3, 6, dtype=torch.bool)
    query_mask = torch.ones(3, 5, dtype=torch.bool)
    support_mask[1, 4:] = False
    query_mask[2, 3:] = False
    junk = batch.support_x.clone()
    junk[1, 4:] = torch.nan  # padding that nobody may read
    padded = TaskBatch(junk, batch.support_y, batch.query_x, batch.query_y, support_mask, query_mask)
    maml = MAML(mlp(), inner_lr=0.1, steps=3)
    _, metrics, grads = gradient(maml, padded)
    total = [torch.zeros_like(p) for p in maml.parameters()]
    for task in range(3):
        s, q = support_mask[task], query_mask[task]
        one = TaskBatch(
            batch.support_x[task][s][None], batch.support_y[task][s][None],
            batch.query_x[task][q][None], batch.query_y[task][q][None],
        )  # fmt: skip
        alone, single, each = gradient(maml, one)
        torch.testing.assert_close(alone, metrics["loss"][task], rtol=0, atol=1e-12)
        assert float(single["accuracy"][0]) == pytest.approx(float(metrics["accuracy"][task]))
        total = [t + g / 3 for t, g in zip(total, each, strict=True)]
    for a, b in zip(grads, total, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, NORMS])
def test_a_task_with_nan_is_dropped_and_counted_or_an_error(algorithm):
    batch = make_batch()
    bad = TaskBatch(batch.support_x.clone(), batch.support_y, batch.query_x, batch.query_y)
    bad.support_x[1, 0, 0, 0, 0] = torch.nan
    kept = TaskBatch(*(getattr(batch, f)[[0, 2, 3]] for f in ("support_x", "support_y", "query_x", "query_y")))
    maml = CASES[algorithm].make(on_nan="drop")
    loss, metrics, grads = gradient(maml, bad)
    assert metrics["dropped"] == [1]
    expected, _, same = gradient(CASES[algorithm].make(), kept)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-11)
    for a, b in zip(grads, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"task 1: .*its support_x contains NaN"):
        CASES[algorithm].make()(bad)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, NORMS])
def test_state_dict_brings_everything_back(algorithm):
    a, b = CASES[algorithm].make(torch.float32), CASES[algorithm].make(torch.float32)
    opt = torch.optim.SGD(a.parameters(), lr=0.1)
    for seed in range(2):
        a(make_batch(torch.float32, seed=seed))[0].backward()
        opt.step()
    b.load_state_dict(a.state_dict())
    batch = make_batch(torch.float32, seed=5)
    for x, y in zip(gradient(a, batch)[2], gradient(b, batch)[2], strict=True):
        assert (x is None and y is None) or torch.equal(x, y)


def test_a_copy_learns_by_itself():
    maml = MAML(mlp(), inner_lr=0.1, steps=2)
    other = copy.deepcopy(maml)
    _, _, expected = gradient(maml, flat_batch())
    maml.zero_grad()
    _, _, grads = gradient(other, flat_batch())
    assert all(p.grad is None for p in maml.parameters())
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_mean_squared_error_and_its_metric():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    maml = MAML(model, inner_lr=0.05, steps=3, loss="mse")
    loss, metrics, _ = gradient(maml, TaskBatch(x[:, :5], x[:, :5].sin(), x[:, 5:], x[:, 5:].sin()))
    torch.testing.assert_close(metrics["mse"], metrics["loss"], rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics["mse"].mean(), loss, rtol=0, atol=1e-12)


def test_before_is_the_model_as_it_is():
    maml, batch = MAML(Net(), inner_lr=0.3), make_batch()
    metrics = maml.before(batch)
    for task in range(len(batch)):
        torch.testing.assert_close(metrics["logits"][task], maml.model(batch.query_x[task]), rtol=0, atol=1e-12)


def test_frozen_parameters_neither_adapt_nor_learn():
    model = mlp()
    model[0].requires_grad_(False)
    maml = MAML(model, inner_lr=0.1, steps=3)
    head_only = ANIL(mlp(), inner_lr=0.1, steps=3)
    loss, _, _ = gradient(maml, flat_batch())
    expected, _, _ = gradient(head_only, flat_batch())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    assert maml.model[0].weight.grad is None
    adapted = maml.adapt(flat_batch().support_x[0], flat_batch().support_y[0])
    assert torch.equal(adapted[0].weight, model[0].weight)


def test_mamlpp_anneals_the_multi_step_loss_and_the_order():
    maml = MAMLpp(mlp(), steps=3, multi_step_batches=10, first_order_batches=2)
    seen, orders = [], []
    for _ in range(12):
        seen.append(maml.loss_weights())
        orders.append(maml._order())
        gradient(maml, flat_batch())
    assert orders == [1, 1] + [2] * 10
    torch.testing.assert_close(seen[0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(seen[10], torch.tensor([0, 0, 0, 1.0], dtype=torch.float64))
    for weights in seen:
        assert float(weights.sum()) == pytest.approx(1.0)
    assert all(float(b[-1]) >= float(a[-1]) for a, b in itertools.pairwise(seen))


def test_mamlpp_records_statistics_per_step_and_uses_them_in_evaluation():
    maml = MAMLpp(Net(), inner_lr=0.1, steps=2, statistics="per_step", momentum=1.0)
    batch = make_batch()
    gradient(maml, batch)
    assert maml.stats.shape == (3, 8) and int(maml.stats_seen) == 1
    conv = maml.model.features[0]
    with torch.no_grad():
        maps = torch.stack([conv(x) for x in batch.support_x])  # [T, N, C, H, W]
        mean = maps.mean((1, 3, 4)).mean(0)
        variance = maps.transpose(1, 2).flatten(2).var(2, unbiased=True).mean(0)
    torch.testing.assert_close(maml.stats[0], torch.cat([mean, variance]), rtol=0, atol=1e-10)
    maml.eval()
    one = TaskBatch(batch.support_x, batch.support_y, batch.query_x[:, :1], batch.query_y[:, :1])
    with torch.no_grad():
        whole, single = maml(batch)[1]["logits"], maml(one)[1]["logits"]
    torch.testing.assert_close(whole[:, :1], single, rtol=0, atol=1e-10)  # a query does not see the others
    adapted = maml.adapt(batch.support_x[0], batch.support_y[0])
    torch.testing.assert_close(adapted(batch.query_x[0]), whole[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, NORMS])
def test_every_algorithm_adapts_for_more_steps_than_it_learned(algorithm):
    maml, batch = CASES[algorithm].make(steps=1), make_batch()
    maml.eval()
    with torch.no_grad():
        course = list(maml.trajectory(batch, 3))
        logits = maml(batch, steps=3)[1]["logits"]
    torch.testing.assert_close(course[3]["logits"], logits, rtol=0, atol=1e-10)
    adapted = maml.adapt(batch.support_x[0], batch.support_y[0], steps=3)
    torch.testing.assert_close(adapted(batch.query_x[0]), logits[0], rtol=0, atol=1e-10)


def test_mamlpp_with_norm_weights_starts_as_without_and_trains_them():
    batch = make_batch()
    own = MAMLpp(Net(), inner_lr=0.3, steps=2, norm_weights="per_step")
    assert own.norm_weights.shape == (2, 8)
    norm = own.model.features[1]
    assert torch.equal(own.norm_weights, torch.cat([norm.weight, norm.bias]).expand(2, -1))
    fixed = MAML(Net(), inner_lr=0.3, steps=2, adapted=lambda name: not name.startswith("features.1."))
    own.eval()
    with torch.no_grad():
        torch.testing.assert_close(own(batch)[0], fixed(batch)[0], rtol=0, atol=1e-12)
    own.train()
    gradient(own, batch)
    assert bool((own.norm_weights.grad.abs().sum(1) > 0).all())
    plain = MAMLpp(Net(), inner_lr=0.3, steps=2)
    assert "norm_weights" not in plain.state_dict() and plain.norm_weights is None


def test_reptile_on_all_examples_adapts_to_both_sets():
    batch = flat_batch()
    both = TaskBatch(
        torch.cat([batch.support_x, batch.query_x], 1), torch.cat([batch.support_y, batch.query_y], 1),
        batch.query_x, batch.query_y,
    )  # fmt: skip
    _, _, grads = gradient(Reptile(mlp(), inner_lr=0.1, steps=3, train_on="all"), batch)
    _, _, expected = gradient(Reptile(mlp(), inner_lr=0.1, steps=3), both)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_inner_mini_batches_depend_on_the_seed_alone():
    maml = MAML(mlp(), inner_lr=0.1, steps=4, inner_batch=2, seed=1)
    loss = gradient(maml, flat_batch())[0]
    again = gradient(MAML(mlp(), inner_lr=0.1, steps=4, inner_batch=2, seed=1), flat_batch())[0]
    other = gradient(MAML(mlp(), inner_lr=0.1, steps=4, inner_batch=2, seed=2), flat_batch())[0]
    assert torch.equal(loss, again)
    assert not torch.equal(loss, other)
    assert not torch.equal(loss, gradient(maml, flat_batch())[0])  # the next batch draws anew


def test_a_loss_is_differentiated_once():
    loss, _ = MAML(mlp(), inner_lr=0.1)(flat_batch())
    loss.backward()
    with pytest.raises(RuntimeError):
        loss.backward()


def test_explain_names_the_engine():
    maml = MAML(mlp(), inner_lr=0.1)
    maml(flat_batch())
    assert "engine" in str(maml.explain())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: MAML(3), TypeError, "model must be an nn.Module"),
        (lambda: MAML(mlp(), steps=0), ValueError, "steps must be at least 1"),
        (lambda: MAML(mlp(), order=3), ValueError, "order must be 2"),
        (lambda: MAML(mlp(), inner_lr="fast"), TypeError, "inner_lr must be a number or a tensor"),
        (lambda: MAML(mlp(), inner_lr=float("nan")), ValueError, "inner_lr must be finite"),
        (lambda: MAML(mlp(), inner_lr=torch.ones(7)), ValueError, r"inner_lr must be 0-d, \[5\] \(steps\)"),
        (lambda: MAML(mlp(), inner_lr=torch.ones(4), steps=4), ValueError, "may mean steps or tensors"),
        (lambda: MAML(mlp(), on_nan="hide"), ValueError, "on_nan must be one of"),
        (lambda: MAML(mlp(), adapted=["nothing.*"]), ValueError, "adapted must choose at least one parameter"),
        (lambda: MAML(mlp(), adapted="0.weight"), TypeError, "list of name patterns"),
        (lambda: ANIL(mlp(), head="classifier"), ValueError, "head must name a layer"),
        (lambda: ANIL(nn.Linear(2, 2)), ValueError, "at least two layers"),
        (lambda: Reptile(mlp(), order=2), TypeError, "Reptile takes no order"),
        (lambda: IMAML(mlp(), strength=0.0), ValueError, "strength must be positive"),
        (lambda: MAMLpp(mlp(), statistics="per_step"), ValueError, "needs a batch norm"),
        (lambda: MAMLpp(mlp(), norm_weights="per_step"), ValueError, "needs a batch norm with weights"),
        (lambda: MAMLpp(Net(), norm_weights="own"), ValueError, "norm_weights must be one of"),
        (lambda: MAMLpp(Net(), norm_weights="per_step", statistics="per_step"), ValueError, "no statistics are rec"),
        (lambda: MAMLpp(Net(), norm_weights="per_step", rule=print), TypeError, "rule must be"),
        (lambda: ProtoMAML(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))), TypeError, "with bias"),
        (lambda: MAML(mlp().requires_grad_(False)), ValueError, "nothing to adapt"),
        (lambda: Reptile(mlp()).clone(), NotImplementedError, "no meta-gradient through clone"),
        (lambda: ProtoMAML(mlp()).clone(), ValueError, "maml.clone"),
        (lambda: MAML(mlp())(flat_batch(), steps=0), ValueError, "steps must be at least 1"),
        (lambda: MAML(mlp()).clone().adapt(torch.ones(2)), ValueError, "loss must be 0-d"),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(make, error, text):
    with pytest.raises(error, match=text):
        make()


def misfit(part, change):
    """A batch with one field changed."""
    batch = flat_batch()
    fields = {n: getattr(batch, n) for n in ("support_x", "support_y", "query_x", "query_y")}
    return TaskBatch(**{**fields, **{n: change(v.clone()) for n, v in fields.items() if n.endswith(part)}})


def seven(y):
    y[1, 2] = 7
    return y


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "protonet"])
def test_every_algorithm_names_the_task_and_the_argument(algorithm):
    maml = {**ALGORITHMS, "protonet": ProtoNet}[algorithm](mlp())
    for call in (maml, maml.before):
        with pytest.raises(TypeError, match="batch must be a metafast.data.TaskBatch, got tuple"):
            call((flat_batch().support_x, flat_batch().support_y))
    for part in ("support_y", "query_y"):
        with pytest.raises(ValueError, match=rf"{part}\b.* task 1\b.* 7\b"):
            maml(misfit(part, seven))
    with pytest.raises(ValueError, match=r"x\b.* task 0\b.*\[6, 3\]"):
        maml(misfit("_x", lambda x: x[..., :3]))
    x, y = flat_batch().support_x[0], flat_batch().support_y[0]
    with pytest.raises(TypeError, match="x must be a torch.Tensor, got list"):
        maml.adapt(x.tolist(), y)
    with pytest.raises(ValueError, match=r"as many examples, got shapes \[5, 4\] and \[6\]"):
        maml.adapt(x[:5], y)


def test_divergence_of_one_adaptation_is_an_error():
    batch = flat_batch()
    x = batch.support_x[0].clone()
    x[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"diverged: 0.weight is not finite after 3 steps"):
        MAML(mlp(), inner_lr=0.1, steps=3).adapt(x, batch.support_y[0])


def test_prototypes_need_an_example_of_each_class():
    batch = make_batch()
    labels = batch.support_y.clone()
    labels[labels == 1] = 0
    with pytest.raises(ValueError, match="no example of class 1"):
        ProtoMAML(Net())(TaskBatch(batch.support_x, labels, batch.query_x, batch.query_y))


def test_metasgd_starts_from_its_rate():
    maml = MetaSGD(mlp(), inner_lr=0.07)
    assert maml.inner_lr.shape == (1, 51) and bool((maml.inner_lr == 0.07).all())
