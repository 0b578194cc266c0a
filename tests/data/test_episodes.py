"""Episodes: reproducible, resumable, split over ranks, and clear about what they cannot do."""

import json
import statistics
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metafast.data import Augment, ClassSet, TaskBatch, _collate, episodes
from metafast.data import _prefetch as prefetch_module


def pictures(classes=8, each=12, side=5):
    rng = np.random.default_rng(0)
    labels = np.arange(classes * each) % classes
    return ClassSet(
        rng.integers(0, 256, (classes * each, 1, side, side)).astype(np.uint8),
        labels,
        tuple(f"class {i}" for i in range(classes)),
        order=np.arange(classes * each) // classes,
        name="pictures",
    )


SOURCES = {
    "pictures": (pictures(), {"ways": 3, "shots": 2, "queries": 3}),
    "padded": (pictures(), {"ways": (2, 4), "shots": (1, 3), "queries": 2}),
    "augmented": (pictures(), {"ways": 2, "queries": 2, "turned_classes": True, "augment": Augment(True, True, 2)}),
    "drawers": (pictures(), {"ways": 2, "queries": 2, "disjoint_order": True}),
    "curves": ("sinusoid", {"shots": 4, "queries": 3}),
}


def make(name, **options):
    source, sizes = SOURCES[name]
    return episodes(source, **{"tasks": 4, **sizes, **options})


def equal(one: TaskBatch, other: TaskBatch) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in TaskBatch.__dataclass_fields__]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def keep(batches, count):
    return list(islice(batches, count))


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_seed_gives_the_same_tasks_however_they_are_made(name):
    want = keep(make(name, seed=5), 6)
    for options in ({"workers": 3, "prefetch": 4}, {"prefetch": 0}, {"prefetch": 1}):
        assert all(map(equal, keep(make(name, seed=5, **({} if name == "curves" else options)), 6), want))
    loader = make(name, seed=5)
    assert all(equal(loader[i], want[i]) for i in (5, 0, 3))
    assert not equal(make(name, seed=6)[0], want[0])
    assert not equal(want[0], want[1])
    assert all(batch.validate(ways=4) is batch for batch in want)


@pytest.mark.parametrize("name", SOURCES)
def test_without_the_native_library_the_tasks_are_the_same(name, monkeypatch):
    want = keep(make(name), 3)
    monkeypatch.setattr(prefetch_module, "native", lambda: None)
    assert all(map(equal, keep(make(name), 3), want))


@pytest.mark.parametrize("name", SOURCES)
@given(before=st.integers(0, 9), batches=st.sampled_from([1, 3, 4, None]), fixed=st.booleans())
def test_a_saved_position_goes_on_with_the_same_tasks(name, before, batches, fixed):
    options = {"batches": batches, "fixed": fixed and batches is not None}

    def run(loader, count):
        made = []
        while len(made) < count:
            for batch in loader:
                made.append(batch)
                if len(made) == count:
                    break
        return made

    whole = run(make(name, **options), before + 5)
    first = make(name, **options)
    run(first, before)
    second = make(name, **options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.epoch == (before // batches if batches else 0)
    assert all(map(equal, run(second, 5), whole[before:]))


def test_epochs():
    loader = make("pictures", batches=3)
    epochs = [list(loader) for _ in range(2)]
    assert len(loader) == 3 and loader.epoch == 2 and [len(epoch) for epoch in epochs] == [3, 3]
    assert not any(equal(a, b) for a in epochs[0] for b in epochs[1])
    fixed = make("pictures", batches=3, fixed=True)
    assert all(map(equal, list(fixed), list(fixed)))
    assert equal(fixed[4], epochs[0][1])
    with pytest.raises(TypeError, match="no end, so no length; pass batches="):
        len(make("pictures"))


def test_a_batch_that_is_kept_does_not_change():
    loader = make("pictures")
    kept = keep(loader, 12)
    copies = [batch.query_x.clone() for batch in kept]
    keep(loader, 12)
    assert all(torch.equal(batch.query_x, copy) for batch, copy in zip(kept, copies, strict=True))


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_meta_batch_without_repeats(name, world_size):
    whole = keep(make(name), 3)
    parts = [keep(make(name, rank=rank, world_size=world_size), 3) for rank in range(world_size)]
    for index, batch in enumerate(whole):
        assert equal(TaskBatch.cat([part[index] for part in parts]), batch)
    assert make(name, rank=1, world_size=2).first_task == 2
    # a run may go on with another number of processes
    make(name).load_state_dict(make(name, rank=1, world_size=2).state_dict())


CODE = """
import sys, hashlib
sys.path.insert(0, sys.argv[1])
from tests.data.test_episodes import SOURCES, make, keep
for name in SOURCES:
    digest = hashlib.sha256()
    for batch in keep(make(name, seed=11), 3):
        for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y):
            digest.update(part.numpy().tobytes())
    print(name, digest.hexdigest())
"""


def test_another_process_makes_the_same_tasks():
    import hashlib
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(root)], capture_output=True, text=True, timeout=120
    )
    want = []
    for name in SOURCES:
        digest = hashlib.sha256()
        for batch in keep(make(name, seed=11), 3):
            for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y):
                digest.update(part.numpy().tobytes())
        want.append(f"{name} {digest.hexdigest()}")
    assert done.stdout.splitlines() == want, done.stderr


def test_the_tasks_of_a_seed_stay_as_they_are():
    """Recorded once: another order of draws would silently change every published run."""
    members = ClassSet(np.arange(60, dtype=np.float32)[:, None], np.arange(60) // 10, tuple("abcdef"), name="numbers")
    batch = episodes(members, ways=3, shots=1, queries=2, tasks=2, seed=7)[1]
    assert batch.support_x.squeeze(-1).tolist() == RECORDED["support"]
    assert batch.query_x.squeeze(-1).tolist() == RECORDED["query"]
    curve = episodes("sinusoid", shots=2, queries=1, tasks=1, seed=7)[3]
    torch.testing.assert_close(curve.support_x.flatten(), torch.tensor(RECORDED["x"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(curve.support_y.flatten(), torch.tensor(RECORDED["y"]), atol=1e-6, rtol=0)


RECORDED = {
    "support": [[22.0, 9.0, 42.0], [42.0, 12.0, 20.0]],
    "query": [[29.0, 21.0, 0.0, 2.0, 47.0, 48.0], [46.0, 47.0, 17.0, 13.0, 27.0, 22.0]],
    "x": [4.886345, -4.107586],
    "y": [2.896233, -2.025399],
}


def test_varying_sizes_have_masks_and_others_have_none():
    batch = make("padded", tasks=64)[0]
    assert batch.support_x.shape == (64, 12, 1, 5, 5) and batch.query_x.shape == (64, 8, 1, 5, 5)
    assert set(batch.classes.tolist()) == {2, 3, 4}
    assert torch.equal(batch.query_mask.sum(1), batch.classes * 2)
    assert make("pictures")[0].support_mask is None and make("pictures")[0].classes is None


def test_disjoint_order_keeps_drawers_apart():
    source = pictures()
    drawer = {row.tobytes(): int(order) for row, order in zip(source.examples, source.order, strict=True)}

    def drawers(x):
        return {drawer[np.rint(row.numpy() * 255).astype(np.uint8).tobytes()] for row in x}

    for task in make("drawers", tasks=16)[0]:
        assert not drawers(task.support_x[0]) & drawers(task.query_x[0])
    assert any(drawers(task.support_x[0]) & drawers(task.query_x[0]) for task in make("pictures", tasks=16)[0])


def test_examples_are_those_of_the_tasks():
    loader = make("pictures")
    inputs, labels = loader.examples()
    rows = {row.numpy().tobytes(): int(label) for row, label in zip(inputs, labels, strict=True)}
    batch = loader[0]
    for task in range(batch.tasks):
        classes = [rows[row.numpy().tobytes()] for row in batch.query_x[task]]
        assert len(set(classes)) == 3 and classes == sorted(classes, key=classes.index)
    with pytest.raises(TypeError, match="curves have no fixed set"):
        make("curves").examples()


def test_curves_follow_their_family():
    from metafast.data import Harmonic, Sinusoid, Step

    batch = episodes("sinusoid", shots=50, queries=50, tasks=200)[0]
    x, y = (
        torch.cat([batch.support_x, batch.query_x], 1)[..., 0],
        torch.cat([batch.support_y, batch.query_y], 1)[..., 0],
    )
    assert -5 <= x.min() < -4.9 and 4.9 < x.max() <= 5
    basis = torch.stack([x.sin(), x.cos()], -1)
    solved = torch.linalg.lstsq(basis.double(), y[..., None].double()).solution  # y = a cos(φ) sin x - a sin(φ) cos x
    torch.testing.assert_close((basis.double() @ solved)[..., 0], y.double(), atol=1e-5, rtol=0)
    amplitude, phase = solved[:, :, 0].norm(dim=1), torch.atan2(-solved[:, 1, 0], solved[:, 0, 0])
    assert 0.1 <= amplitude.min() < 0.3 and 4.8 < amplitude.max() <= 5
    assert 0 <= phase.min() < 0.1 and 3 < phase.max() <= 3.1416
    train, test = (episodes("sinusoid", split=split, tasks=4)[0] for split in ("train", "test"))
    assert not torch.equal(train.support_x, test.support_x)
    steps = episodes(Step(), shots=64, tasks=3)[0]
    assert all(len(task.unique()) == 2 for task in steps.support_y)
    assert episodes(Harmonic(noise=0.5), tasks=2)[0].query_y.isfinite().all()
    noisy, clean = (episodes(Sinusoid(noise=noise), shots=500, tasks=20)[0] for noise in (0.3, 0.0))
    assert torch.equal(noisy.support_x, clean.support_x)
    assert abs((noisy.support_y - clean.support_y).std().item() - 0.3) < 0.01


def test_several_loops_and_an_early_end_leave_the_position():
    loader = make("pictures", batches=5)
    for _ in loader:
        break
    assert loader.state_dict()["batch"] == 1
    assert len(list(loader)) == 4


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ways": 9}, ValueError, "ways must be at most 8, the classes of pictures, got 9"),
        ({"ways": 0}, ValueError, "ways must be at least 1, got 0"),
        ({"ways": (3, 2)}, ValueError, r"ways must be \(lowest, highest\), got \(3, 2\)"),
        ({"ways": (1, 2, 3)}, ValueError, r"ways must be a number or \(lowest, highest\)"),
        ({"shots": 1.5}, TypeError, "shots must be an integer"),
        (
            {"shots": 5, "queries": 8},
            ValueError,
            r"class 'class 0' of pictures has 12 examples, fewer than shots \+ queries = 5 \+ 8 = 13",
        ),
        ({"tasks": 0}, ValueError, "tasks must be at least 1"),
        ({"batches": 0}, ValueError, "batches must be at least 1"),
        ({"fixed": True}, ValueError, "fixed=True .* needs batches="),
        ({"rank": 2, "world_size": 2}, ValueError, "rank must be below world_size=2, got 2"),
        ({"tasks": 3, "world_size": 2}, ValueError, "tasks must be a multiple of world_size=2, got 3"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"prefetch": -1}, ValueError, "prefetch must be at least 0"),
        ({"split": "dev"}, ValueError, "split must be 'train', 'val' or 'test', got 'dev'"),
        ({"split": "test"}, ValueError, "split='test' needs a data set by name"),
        ({"source": (np.zeros((20, 3), np.float32), np.arange(20) % 2), "ways": 2, "queries": 2,
          "augment": Augment(flip=True)}, ValueError, "are for pictures"),
        ({"source": (np.zeros((20, 1, 4, 6), np.uint8), np.arange(20) % 2), "ways": 2, "queries": 2,
          "turned_classes": True}, ValueError, "only square pictures can be turned"),
        ({"source": (np.zeros((20, 3), np.float32), np.arange(20) % 2), "ways": 2, "queries": 2,
          "disjoint_order": True}, ValueError, "disjoint_order needs ClassSet.order"),
        ({"source": 3}, TypeError, "source must be a ClassSet, .* got int"),
        ({"source": "no such name"}, ValueError, "name must be letters"),
        ({"source": "sinusoid", "shots": (1, 2)}, TypeError, "shots must be an integer"),
    ],
)  # fmt: skip
def test_wrong_arguments(options, error, text):
    with pytest.raises(error, match=text):
        episodes(**{"source": pictures(), "ways": 3, "queries": 3, **options})


def test_uneven_drawers_are_refused():
    source = pictures()
    odd = ClassSet(source.examples, source.labels, source.names, order=np.arange(len(source.labels)), name="odd")
    with pytest.raises(ValueError, match="same values of order in every class, each once, and class 'class 1' of odd"):
        episodes(odd, ways=2, queries=2, disjoint_order=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": 1}, "seed 0 saved, 1 here"),
        ({"shots": 1}, r"shots \[2, 2\] saved, \[1, 1\] here"),
        ({"augment": Augment(flip=True)}, "augment"),
        ({"batches": 4}, "batches None saved, 4 here"),
    ],
)
def test_a_position_in_other_episodes_is_refused(options, text):
    state = make("pictures").state_dict()
    with pytest.raises(ValueError, match=text):
        make("pictures", **options).load_state_dict(state)


def test_a_position_beyond_the_epoch_is_refused():
    loader = make("pictures", batches=4)
    with pytest.raises(ValueError, match="must be below 4, got 9"):
        loader.load_state_dict({**loader.state_dict(), "batch": 9})


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Augment(crop=-1), ValueError, "crop must be at least 0"),
        (lambda: Augment(crop=0.5), TypeError, "crop must be an integer"),
        (lambda: Augment(per="batch"), ValueError, r"per must be one of \['example', 'class', 'task'\], got 'batch'"),
    ],
)
def test_wrong_augmentation(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    keep(make("padded"), 2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.skipif(_collate.native() is None, reason="metafast._host is not built")
def test_data_for_a_step_costs_less_than_the_step():
    """On one core 32 tasks of Omniglot's shape take about a millisecond; a slow loop over examples takes hundreds."""
    source = ClassSet(
        np.zeros((4000, 1, 28, 28), np.uint8), np.arange(4000) % 200, tuple(map(str, range(200))), turned_classes=True
    )
    loader = episodes(source, tasks=32, prefetch=0)
    made, times = iter(loader), []
    for _ in range(15):
        begin = time.thread_time()
        next(made)
        times.append(time.thread_time() - begin)
    assert min(times) < 0.05


@pytest.mark.skipif(_collate.native() is None, reason="metafast._host is not built")
def test_a_step_never_waits_for_data():
    """While a step takes three times as long as a meta-batch, the next one is made; on a busy machine, now and then."""
    rng = np.random.default_rng(0)
    source = ClassSet(
        rng.integers(0, 256, (800, 3, 84, 84)).astype(np.uint8), np.arange(800) % 40, tuple(map(str, range(40)))
    )

    def waits(step, **options):
        made, times = iter(episodes(source, tasks=8, augment=Augment(rotate=True, flip=True), **options)), []
        for _ in range(9):
            begin = time.perf_counter()
            next(made)
            times.append(time.perf_counter() - begin)
            time.sleep(step)
        return statistics.median(times[1:])

    def ratio():
        alone = waits(0.0, prefetch=0)
        return waits(3 * alone, prefetch=2, workers=1) / alone

    assert any(ratio() < 0.25 for _ in range(5))


@pytest.mark.gpu
def test_on_a_device():
    want = keep(make("padded"), 8)
    got = keep(make("padded", device="cuda"), 8)
    assert all(batch.query_x.device.type == "cuda" for batch in got)
    assert all(equal(batch.to("cpu"), other) for batch, other in zip(got, want, strict=True))
