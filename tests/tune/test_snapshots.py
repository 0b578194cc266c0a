"""Snapshots: resumed bit for bit after a kill, rolled back by the rule, and no disk that ends a training."""

from __future__ import annotations

import copy
import errno
import math
import os
import random
import shutil
import signal
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metafast.data import Batches
from metafast.runs import _checkpoint
from metafast.tune import OnlineTuner, RollBack, Snapshots, Tune

STEPS = 40


def make(folder, method="forward", poison=(), **options):
    """A training with dropout, AdamW and batches; `poison`: looks at which the validation loss is what it says."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 6, generator=generator)
    y = (x[:, :3].sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
    opt = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = Batches(x[:64], y[:64], batch_size=16, seed=2)
    looks = iter(range(10**6))
    values = dict(poison)

    def val_loss(model, x, y):
        loss = F.cross_entropy(model(x), y)
        return loss * values.get(next(looks), 1.0)

    settings = {"every": 10, "data": batches, **options}
    snapshots = Snapshots(folder, **settings)
    tune = [Tune("lr", bounds=(1e-5, 1.0)), "weight_decay"]
    tuner = OnlineTuner(model, opt, tune, [(x[64:], y[64:])], method, 5, val_loss=val_loss, snapshots=snapshots)
    return snapshots, tuner, batches


def train(tuner, batches, start=0, steps=STEPS):
    source = batches.forever()
    for _ in range(start, steps):
        x, y = next(source)
        tuner.step(lambda x, y: F.cross_entropy(tuner.model(x), y), x, y)


def state_of(tuner):
    return copy.deepcopy(
        {"weights": list(tuner.model.parameters()), "optimizer": tuner.optimizer.state_dict(),
         "tuner": tuner.state_dict(), "noise": torch.rand(3)}
    )  # fmt: skip


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("method", ["forward", "reverse", "implicit"])
def test_resumes_bit_for_bit(tmp_path, method, background):
    snapshots, tuner, batches = make(tmp_path / "whole", method, background=background)
    train(tuner, batches)
    expected = state_of(tuner)
    snapshots.close()
    first, other, data = make(tmp_path / "cut", method, background=background, every=7)  # amid windows
    train(other, data, steps=16)
    first.close()
    second, again, data = make(tmp_path / "cut", method, background=background, every=7)
    again.step(lambda x: again.model(x).sum(), torch.ones(2, 6))  # whatever it did before
    start = second.resume(again)
    assert start == 14
    train(again, data, start)
    assert_same(state_of(again), expected)
    second.close()


def test_a_kill_at_any_moment_loses_nothing_that_was_saved(tmp_path):
    """Children die by SIGKILL until one gets to the end; its weights are those of a training in peace."""
    snapshots, tuner, batches = make(tmp_path / "whole")
    train(tuner, batches, steps=60)
    expected = state_of(tuner)
    snapshots.close()
    chance = random.Random(3)
    deaths, longest = 0, 0.6
    for _ in range(40):
        child = os.fork()
        if child == 0:  # pragma: no cover
            code = 1
            try:
                own, tuner, batches = make(tmp_path / "killed", every=3)
                train(tuner, batches, own.resume(tuner), 60)
                own.flush()
                torch.save(state_of(tuner), tmp_path / "end.pt")
                code = 0
            finally:
                os._exit(code)
        time.sleep(chance.uniform(0.02, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        deaths += 1
        longest *= 1.15
    else:
        pytest.fail("no child came to the end")
    assert deaths > 0
    assert_same(torch.load(tmp_path / "end.pt", weights_only=False), expected)


def test_keeps_so_many_and_falls_back_to_the_one_before(tmp_path):
    snapshots, tuner, batches = make(tmp_path, keep=2, background=False)
    train(tuner, batches)
    assert _checkpoint.steps_on_disk(tmp_path) == [2, 3]
    snapshots.close()
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    again, tuner, _ = make(tmp_path)
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert again.resume(tuner) == 30
    again.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, 10.0])
def test_goes_back_when_validation_worsens(tmp_path, value):
    rule = RollBack(worse=3.0, patience=2, factor=0.25)
    snapshots, tuner, batches = make(tmp_path, poison=[(4, value), (5, value)], rollback=rule)
    train(tuner, batches, steps=20)
    snapshots.flush()
    good = state_of(tuner)  # the snapshot of 20 calls
    rate = tuner.state["lr"].values["all"]
    position = batches.state_dict()
    train(tuner, batches, 20, 29)
    assert not snapshots.events and tuner.calls == 29
    train(tuner, batches, 29, 30)  # the second bad look
    (event,) = snapshots.events
    assert (event["calls"], event["to"], tuner.calls) == (30, 20, 20)
    assert_same(list(tuner.model.parameters()), good["weights"])
    assert_same(tuner.optimizer.state_dict()["state"], good["optimizer"]["state"])
    assert tuner.validation == good["tuner"]["validation"]
    assert tuner.state["lr"].values["all"] == pytest.approx(0.25 * rate)
    assert tuner.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * rate)
    assert batches.state_dict() != position  # the data go on
    train(tuner, batches, 20, 40)
    assert tuner.calls == 40 and len(snapshots.events) == 1
    snapshots.close()
    again, other, _ = make(tmp_path, rollback=rule)
    assert again.resume(other) == 40
    assert repr(again.events) == repr(snapshots.events)  # a NaN equals nothing
    again.close()


def test_one_bad_look_is_no_reason_and_bad_states_are_not_saved(tmp_path):
    snapshots, tuner, batches = make(tmp_path, poison=[(3, 50.0)], background=False)
    train(tuner, batches, steps=20)
    assert not snapshots.events
    assert len(_checkpoint.steps_on_disk(tmp_path)) == 1  # that of 10; at 20 the look was bad
    train(tuner, batches, 20, 30)
    assert len(_checkpoint.steps_on_disk(tmp_path)) == 2
    snapshots.close()


def test_goes_back_so_often_and_rates_shrink_each_time(tmp_path):
    rule = RollBack(patience=1, factor=0.5, limit=2)
    snapshots, tuner, batches = make(tmp_path, poison=[(i, math.nan) for i in range(2, 12)], rollback=rule)
    train(tuner, batches, steps=10)
    rate = tuner.state["lr"].values["all"]
    train(tuner, batches, 0, 10)
    assert len(snapshots.events) == 2
    assert tuner.state["lr"].values["all"] == pytest.approx(0.25 * rate)
    train(tuner, batches, 0, 20)
    assert len(snapshots.events) == 2 and tuner.calls == 30
    snapshots.close()


def test_a_full_disk_never_ends_a_training(tmp_path, monkeypatch):
    snapshots, tuner, batches = make(tmp_path, background=False)
    train(tuner, batches, steps=10)
    write = _checkpoint._write_tensors

    def full(tensors, path):
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_checkpoint, "_write_tensors", full)
    with pytest.warns(RuntimeWarning, match="No space left") as seen:
        train(tuner, batches, 10, 30)
    assert len(seen) == 1  # once, not at each snapshot
    assert tuner.calls == 30 and isinstance(snapshots.error, OSError)
    assert _checkpoint.steps_on_disk(tmp_path) == [0]
    monkeypatch.setattr(_checkpoint, "_write_tensors", write)
    train(tuner, batches, 30, 40)
    assert snapshots.error is None
    assert snapshots.resume(tuner) == 40
    snapshots.close()


def test_a_folder_that_is_gone(tmp_path):
    """In the background: the next snapshot makes the folder again."""
    snapshots, tuner, batches = make(tmp_path / "gone")
    train(tuner, batches, steps=10)
    snapshots.flush()
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "gone").write_text("in the way")
    train(tuner, batches, 10, 20)
    with pytest.warns(RuntimeWarning, match="exists"):
        snapshots.flush()
    (tmp_path / "gone").unlink()
    train(tuner, batches, 20, 30)
    snapshots.flush()
    assert snapshots.error is None and snapshots.resume(tuner) == 30
    snapshots.close()


def test_without_a_tuned_rate_the_optimizers_own_shrinks():
    model = nn.Linear(2, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    tuner = OnlineTuner(model, opt, "momentum", [(torch.ones(1, 2), torch.ones(1, 1))])
    tuner.scale_rates(0.5)
    assert opt.param_groups[0]["lr"] == 0.2


def test_bad_input(tmp_path):
    snapshots, tuner, batches = make(tmp_path / "a", background=False)
    with pytest.raises(RuntimeError, match="another folder"):
        Snapshots(tmp_path / "a")
    train(tuner, batches, steps=10)
    snapshots.close()
    other = nn.Linear(6, 2)
    opt = torch.optim.AdamW(other.parameters(), lr=0.1)
    wrong = OnlineTuner(other, opt, "lr", [(torch.ones(2, 6), torch.zeros(2).long())])
    before = [p.clone() for p in other.parameters()]
    again = Snapshots(tmp_path / "a", data=batches)
    with pytest.raises(ValueError, match="model does not fit"):
        again.resume(wrong)
    assert_same(before, [p.detach() for p in other.parameters()])
    assert opt.param_groups[0]["lr"] == 0.1
    again.close()
    for call, error, message in [
        (lambda: Snapshots(tmp_path, every=0), ValueError, "every"),
        (lambda: Snapshots(tmp_path, keep=0), ValueError, "keep"),
        (lambda: Snapshots(tmp_path, rollback=2.0), TypeError, "RollBack"),
        (lambda: Snapshots(tmp_path, data=[1]), TypeError, "data"),
        (lambda: Snapshots(tmp_path, model=other), ValueError, "model"),
        (lambda: RollBack(worse=1.0), ValueError, "worse"),
        (lambda: RollBack(factor=1.5), ValueError, "factor"),
        (lambda: RollBack(patience=0), ValueError, "patience"),
        (lambda: OnlineTuner(other, opt, "lr", [1], snapshots="runs"), TypeError, "Snapshots"),
    ]:
        with pytest.raises(error, match=message):
            call()
