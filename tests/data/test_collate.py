"""The collator: C++ and numpy agree bit for bit, and both hold what the plan says."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metafast.data import _collate
from metafast.data._collate import Arrays, Plan, collate, native_collator
from metafast.data._prefetch import Pool, stream

needs_native = pytest.mark.skipif(_collate.native() is None, reason="metafast._host is not built")
PER_CLASS, CLASSES = 25, 8


def make_plan(dtype=np.uint8, shape=(1, 6, 6), **options):
    rng = np.random.default_rng(0)
    size = (PER_CLASS * CLASSES, *shape)
    examples = rng.random(size).astype(dtype) if dtype == np.float32 else rng.integers(0, 256, size).astype(dtype)
    members = rng.permutation(len(examples)).reshape(CLASSES, -1)
    channels = shape[0]
    values = {
        "examples": examples,
        "members": np.sort(members, axis=1).reshape(-1),
        "starts": np.arange(CLASSES + 1) * PER_CLASS,
        "seed": 3,
        "tasks": 6,
        "first": 0,
        "count": 6,
        "ways": (4, 4),
        "shots": (2, 2),
        "queries": (3, 3),
        "same_positions": False,
        "class_rotations": False,
        "rotate": False,
        "flip": False,
        "crop": 0,
        "per": 0,
        "scale": rng.random(channels).astype(np.float32),
        "shift": rng.random(channels).astype(np.float32),
    }
    return Plan(**{**values, **options})


def filled(plan, batch=0, by=None):
    """A meta-batch in memory that was full of other values."""
    arrays = Pool(plan, keep=1, pinned=False).take()
    for array in arrays.all():
        array.view(np.uint8).fill(0x5A if array.dtype != np.bool_ else 1)
    if by is None:
        collate(plan, batch, arrays)
    else:
        by.collate(batch, arrays.all())
    return arrays


def assert_equal(one, other):
    for a, b in zip(one.all(), other.all(), strict=True):
        np.testing.assert_array_equal(a, b)


@needs_native
@settings(max_examples=60)
@given(
    kind=st.sampled_from(["grey", "colour", "tokens", "floats"]),
    ways=st.sampled_from([(1, 1), (5, 5), (2, 8)]),
    shots=st.sampled_from([(1, 1), (2, 5)]),
    queries=st.sampled_from([(1, 1), (3, 15), (20, 20)]),
    same=st.booleans(),
    turned=st.booleans(),
    rotate=st.booleans(),
    flip=st.booleans(),
    crop=st.integers(0, 7),
    per=st.integers(0, 2),
    seed=st.sampled_from([0, 1, -1, 2**63, 2**64 - 1]),
    batch=st.sampled_from([0, 1, 2**40]),
)
def test_native_equals_numpy(kind, ways, shots, queries, same, turned, rotate, flip, crop, per, seed, batch):
    dtype, shape = {
        "grey": (np.uint8, (1, 5, 5)),
        "colour": (np.uint8, (3, 7, 7)),
        "tokens": (np.int32, (9,)),
        "floats": (np.float32, (4, 3)),
    }[kind]
    pictures = dtype == np.uint8
    options = {"class_rotations": turned, "rotate": rotate, "flip": flip, "crop": crop} if pictures else {}
    plan = make_plan(
        dtype, shape, ways=ways, shots=shots, queries=queries, same_positions=same, per=per, seed=seed,
        first=1, count=4, **options,
    )  # fmt: skip
    assert_equal(filled(plan, batch, native_collator(plan, 1)), filled(plan, batch))


@needs_native
def test_oblong_pictures_are_cropped_and_flipped_alike():
    plan = make_plan(shape=(3, 4, 9), flip=True, crop=2)
    assert_equal(filled(plan, 5, native_collator(plan, 1)), filled(plan, 5))


def origin(plan, row):
    """Which example a gathered row is."""
    bytes_ = np.rint((row - plan.shift[:, None, None]) / plan.scale[:, None, None]).astype(np.uint8)
    return int((plan.examples == bytes_).all(axis=(1, 2, 3)).nonzero()[0][0])


def test_a_task_holds_what_the_plan_says():
    plan = make_plan(ways=(2, 5), shots=(1, 3), queries=(2, 4))
    klass = {int(m): c for c in range(CLASSES) for m in plan.members[plan.starts[c] : plan.starts[c + 1]]}
    sizes = set()
    for batch in range(20):
        out = filled(plan, batch)
        for task in range(plan.count):
            ways, support, query = out.classes[task], out.support_mask[task].sum(), out.query_mask[task].sum()
            assert 2 <= ways <= 5 and support % ways == 0 and query % ways == 0
            sizes.add((ways, support // ways, query // ways))
            seen, used = {}, []
            for part, count in (("support", support), ("query", query)):
                x, y, mask = (getattr(out, f"{part}_{name}")[task] for name in ("x", "y", "mask"))
                assert mask[:count].all() and not x[count:].any() and not y[count:].any()
                np.testing.assert_array_equal(y[:count], np.repeat(np.arange(ways), count // ways))
                for row, label in zip(x[:count], y[:count], strict=True):
                    example = origin(plan, row)
                    used.append(example)
                    assert seen.setdefault(int(label), klass[example]) == klass[example]
            assert len(set(used)) == len(used)
            assert len(set(seen.values())) == len(seen) == ways
    assert (
        {s[0] for s in sizes} == {2, 3, 4, 5}
        and {s[1] for s in sizes} == {1, 2, 3}
        and {s[2] for s in sizes} == {2, 3, 4}
    )


def test_classes_and_examples_are_drawn_evenly():
    plan = make_plan(tasks=500, count=500, ways=(2, 2), shots=(1, 1), queries=(1, 1))
    picked = np.array([origin(plan, row) for row in filled(plan).support_x.reshape(-1, 1, 6, 6)])
    place = np.empty(len(plan.examples), int)
    place[plan.members] = np.arange(len(plan.examples))
    by_class, by_place = np.bincount(place[picked] // PER_CLASS), np.bincount(place[picked] % PER_CLASS)
    # 1000 draws: five standard deviations of the counts
    assert np.abs(by_class - 125).max() < 5 * 10.5
    assert np.abs(by_place - 40).max() < 5 * 6.2


def test_same_positions_keep_the_places_of_support_and_query_apart():
    plan = make_plan(same_positions=True, shots=(3, 3), queries=(5, 5))
    place = np.empty(len(plan.examples), int)
    place[plan.members] = np.arange(len(plan.examples)) % PER_CLASS
    out = filled(plan)
    for task in range(plan.count):
        support, query = ({place[origin(plan, row)] for row in x[task]} for x in (out.support_x, out.query_x))
        assert len(support) == 3 and len(query) == 5 and not support & query


def test_turned_classes_turn_whole_classes():
    plan = make_plan(class_rotations=True, ways=(8, 8), queries=(1, 1))
    out, turns = filled(plan), set()
    for task in range(plan.count):
        for slot in range(8):
            rows = out.support_x[task, 2 * slot : 2 * slot + 2]
            found = [
                quarters
                for quarters in range(4)
                for _ in [0]
                if all((plan.examples == np.rint((np.rot90(row, -quarters, (1, 2)) - plan.shift[:, None, None])
                        / plan.scale[:, None, None]).astype(np.uint8)).all((1, 2, 3)).any() for row in rows)
            ]  # fmt: skip
            assert len(found) == 1
            turns.update(found)
    assert turns == {0, 1, 2, 3}


@pytest.mark.parametrize("per", [0, 1, 2])
def test_augmentation_by_example_class_or_task(per):
    column = np.arange(6, dtype=np.uint8)[None, None, None, :]
    examples = np.broadcast_to(column, (PER_CLASS * CLASSES, 1, 6, 6)).copy()
    plan = make_plan(examples=examples, flip=True, per=per, tasks=40, count=40)
    flipped = filled(plan).query_x[:, :, 0, 0, 0] > filled(plan).query_x[:, :, 0, 0, 5]
    by_class = flipped.reshape(40, 4, 3)
    assert 0 < flipped.mean() < 1
    assert (by_class == by_class[:, :, :1]).all() == (per >= 1)
    assert (flipped == flipped[:, :1]).all() == (per == 2)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_stream_gives_each_meta_batch_once_in_order(prefetch):
    plan = make_plan()
    pool = Pool(plan, keep=prefetch + 4, pinned=False)
    for number, arrays in zip(range(4, 11), stream(plan, pool, 4, 11, workers=2, prefetch=prefetch), strict=True):
        assert_equal(arrays, filled(plan, number))


def test_memory_is_used_again_unless_somebody_holds_it():
    import torch

    plan = make_plan()
    pool = Pool(plan, keep=4, pinned=False)
    first = pool.take()
    view = torch.from_numpy(first.query_x)[1:]
    second = pool.take()
    assert second is not first
    assert pool.take() is second
    del view
    assert pool.take() is first


def threads():
    return len(os.listdir("/proc/self/task"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


@needs_native
@linux
def test_threads_end_with_the_stream():
    plan = make_plan()

    def begin():
        made = stream(plan, Pool(plan, keep=6, pinned=False), 0, None, workers=3, prefetch=2)
        next(made)
        return made

    before = threads()
    made = begin()
    assert threads() == before + 3
    made.close()
    assert threads() == before
    made = begin()
    del made
    assert threads() == before

    def fail():
        for _ in begin():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:  # the traceback may hold the iterator for a moment
        time.sleep(0.01)
    assert threads() == before


@needs_native
def test_a_closed_collator_never_blocks():
    plan = make_plan()
    collator, arrays = native_collator(plan, 1), Pool(plan, keep=1, pinned=False).take()
    assert not collator.wait(7)
    collator.submit(7, arrays.all())
    with pytest.raises(ValueError, match="already submitted"):
        collator.submit(7, arrays.all())
    assert collator.wait(7)
    assert not collator.wait(7)
    collator.close()
    collator.close()
    assert not collator.wait(8)
    with pytest.raises(RuntimeError, match="closed"):
        collator.submit(8, arrays.all())


@needs_native
def test_close_wakes_a_thread_that_waits():
    plan = make_plan(tasks=20000, count=20000)
    collator, pool = native_collator(plan, 1), Pool(plan, keep=2, pinned=False)
    arrays = [pool.take().all() for _ in range(2)]
    collator.submit(0, arrays[0])
    collator.submit(1, arrays[1])
    results = []
    waiter = threading.Thread(target=lambda: results.append(collator.wait(1)))
    waiter.start()
    collator.close()
    waiter.join(10)
    assert not waiter.is_alive()


@needs_native
def test_gathering_leaves_the_interpreter_to_others():
    plan = make_plan(tasks=40000, count=40000)
    collator, arrays = native_collator(plan, 1), Pool(plan, keep=1, pinned=False).take().all()
    began, ended = threading.Event(), threading.Event()

    def gather():
        began.set()
        collator.collate(0, arrays)
        ended.set()

    thread = threading.Thread(target=gather)
    thread.start()
    began.wait()
    turns = 0
    while not ended.is_set():
        time.sleep(1e-3)  # with the interpreter held, the first sleep would last to the end
        turns += 1
    thread.join()
    assert turns >= 5


ENDINGS = """
import os, signal, sys, traceback
import numpy as np
from metafast.data import episodes

def child(work):
    read, write = os.pipe()
    number = os.fork()
    if number:
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read().decode()
        return os.waitpid(number, 0)[1], said
    try:
        os.write(write, repr(work()).encode())
    except BaseException:
        os._exit(7)
    sys.exit(0)  # the interpreter's whole shutdown, with what is still there

x, y = np.arange(40, dtype=np.float32).reshape(40, 1), np.arange(40) % 4
made = iter(episodes((x, y), ways=2, shots=1, queries=1, tasks=2, batches=8))
first = [next(made).query_x.tolist() for _ in range(2)]
code, said = child(lambda: [batch.query_x.tolist() for batch in made])
assert (code, said) == (0, repr([batch.query_x.tolist() for batch in made])), (code, said)
print("forked in the middle", flush=True)  # a child would write it again

def busy():
    global loader, running, batch
    pictures = np.zeros((4000, 1, 64, 64), np.uint8)
    loader = episodes((pictures, np.arange(4000) % 40), tasks=32, prefetch=3, workers=2)
    running = iter(loader)
    batch = next(running)

def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    busy()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in running:
            pass
    except KeyboardInterrupt:
        return "interrupted"

print(child(busy)[0], child(interrupted), flush=True)
killed = os.fork()
if not killed:
    busy()
    os.kill(os.getpid(), signal.SIGKILL)
print(os.waitpid(killed, 0)[1])
busy()
1 / 0
"""


@needs_native
@linux
def test_processes_end_while_threads_work():
    """Forked in the middle, at the end of the interpreter, interrupted, killed, and after an exception: none hangs."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ENDINGS], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["forked in the middle", "0 (0, \"'interrupted'\")", "9"], done.stderr
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "terminate" not in done.stderr


@needs_native
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ways": (9, 9)}, "ways must be at most the number of classes"),
        ({"shots": (20, 20), "queries": (6, 6)}, "each class must have at least shots"),
        ({"members": np.full(200, 200)}, "members must be indices of examples"),
        ({"starts": np.array([0, 300])}, "starts must stay within members"),
        ({"queries": (3, 2)}, "ranges must be ascending"),
        ({"scale": np.ones(3, np.float32)}, "one number per channel"),
        ({"examples": np.zeros((200, 1, 4, 6), np.uint8), "rotate": True}, "square"),
        ({"examples": np.zeros((200, 8), np.int32), "flip": True}, "only uint8 pictures can be augmented"),
        ({"examples": np.zeros((200, 8), np.float64)}, "examples must be uint8, int32 or float32"),
        ({"examples": np.zeros((200, 8), np.uint8)}, r"must be \[M, C, H, W\]"),
        ({"count": 0}, "tasks must be at least 1"),
    ],
)
def test_a_plan_that_would_read_out_of_bounds_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        native_collator(make_plan(**options), 1)


@needs_native
def test_arrays_of_another_size_are_refused():
    plan = make_plan()
    collator, arrays = native_collator(plan, 1), Pool(plan, keep=1, pinned=False).take()
    wrong = {
        "support_x": arrays.support_x[:, :-1],
        "support_y": arrays.support_y.astype(np.int32),
        "query_mask": np.asfortranarray(arrays.query_mask),
        "classes": arrays.classes.repeat(2),
    }
    for name, array in wrong.items():
        changed = Arrays(**{**{f: getattr(arrays, f) for f in Arrays.__dataclass_fields__}, name: array})
        for call in (collator.collate, collator.submit):
            with pytest.raises(ValueError, match=f"{name} must be a writable C-contiguous array"):
                call(0, changed.all())
