"""Seeded batches and their position."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import Batches


def values(batches, count):
    return [x.tolist() for (x,) in islice(batches.forever(), count)]


@given(st.integers(1, 20), st.integers(1, 8), st.booleans(), st.integers(0, 3))
def test_an_epoch_has_every_sample_once(samples, batch_size, shuffle, seed):
    batches = Batches(torch.arange(samples), batch_size=batch_size, seed=seed, shuffle=shuffle)
    epoch = [x for (x,) in batches]
    assert len(epoch) == len(batches)
    assert sorted(torch.cat(epoch).tolist()) == list(range(samples))
    assert batches.epoch == 1


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 25), st.booleans())
def test_a_saved_position_goes_on_with_the_same_batches(samples, batch_size, before, drop_last):
    if drop_last and batch_size > samples:
        batch_size = samples
    options = {"batch_size": batch_size, "seed": 1, "drop_last": drop_last}
    whole = values(Batches(torch.arange(samples), **options), before + 12)
    first = Batches(torch.arange(samples), **options)
    values(first, before)
    second = Batches(torch.arange(samples), **options)
    second.load_state_dict(first.state_dict())
    assert values(second, 12) == whole[before:]


def test_seeds_and_epochs_differ_and_repeat():
    orders = {(seed, epoch): None for seed in range(4) for epoch in range(4)}
    for seed in range(4):
        batches = Batches(torch.arange(50), batch_size=50, seed=seed)
        for epoch in range(4):
            orders[seed, epoch] = tuple(next(iter(batches))[0].tolist())
    assert len(set(orders.values())) == 16
    assert tuple(next(iter(Batches(torch.arange(50), batch_size=50, seed=3)))[0].tolist()) == orders[3, 0]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(Batches(torch.arange(5), batch_size=2))
    assert torch.equal(before, torch.get_rng_state())


def test_tensors_stay_together_and_leaving_a_loop_keeps_the_position():
    batches = Batches(torch.arange(10), torch.arange(10) * 2, batch_size=3, drop_last=True)
    for x, y in batches:
        assert torch.equal(x * 2, y)
        break
    assert batches.state_dict()["batch"] == 1
    assert len(list(batches)) == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((), {"batch_size": 1}, ValueError, "tensors must not be empty"),
        (([1],), {"batch_size": 1}, TypeError, r"tensors\[0\] must be a torch.Tensor, got list"),
        ((torch.tensor(1),), {"batch_size": 1}, ValueError, "0-d tensor"),
        ((torch.zeros(2), torch.zeros(3)), {"batch_size": 1}, ValueError, r"equal length of at least 1, got \[2, 3\]"),
        ((torch.zeros(0),), {"batch_size": 1}, ValueError, "at least 1"),
        ((torch.zeros(2),), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ((torch.zeros(2),), {"batch_size": 1.5}, TypeError, "batch_size must be an integer"),
        ((torch.zeros(2),), {"batch_size": 3, "drop_last": True}, ValueError, "batch_size must be at most 2"),
        ((torch.zeros(2),), {"batch_size": 1, "seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_wrong_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        Batches(*arguments, **options)


def test_a_position_in_other_batches_is_refused():
    state = Batches(torch.arange(10), batch_size=3, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed 1 saved, 2 here"):
        Batches(torch.arange(10), batch_size=3, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="samples 10 saved, 11 here"):
        Batches(torch.arange(11), batch_size=3, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="must be below 4, got 9"):
        Batches(torch.arange(10), batch_size=3, seed=1).load_state_dict({**state, "batch": 9})
