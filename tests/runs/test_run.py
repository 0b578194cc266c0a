"""The run record: writing, reading, damage, full disks, wrong use."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from metafast.data import Batches
from metafast.runs import CheckpointError, Run, _checkpoint, list_runs, rng_state, seed_all, set_rng_state, versions


def make(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, opt


def one_step(model, opt):
    model(torch.randn(3, 1, 4, 4)).square().mean().backward()
    opt.step()
    opt.zero_grad()


def same_state(a, b):
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key])


def test_a_run_reads_back(tmp_path):
    config = {"lr": 0.1, "layers": (1, 2), "nested": {0: None}, "inf": float("inf")}
    with Run.create(tmp_path, config=config, seed=7, tags=["a", "b"], name="first") as run:
        assert run.status == "running"
        for step in range(3):
            run.log(step=step, loss=torch.tensor(1.5 - step), accuracy=np.float32(0.1))
        run.log(step=3, loss=float("nan"), rates=[0.1, 0.2], flag=True)
        run.note("a word", why="test")
    run = Run.open(tmp_path / "first")
    assert (run.config, run.seed, run.tags, run.status, run.name) == (config, 7, ["a", "b"], "finished", "first")
    steps, values = run.curve("loss")
    assert steps.dtype == np.int64
    assert steps.tolist() == [0, 1, 2, 3]
    assert values[:3].tolist() == [1.5, 0.5, -0.5]
    assert np.isnan(values[3])
    assert run.curve("accuracy").values.tolist() == [float(np.float32(0.1))] * 3
    assert run.metrics == ["loss", "accuracy", "rates", "flag"]
    assert run.cost["steps"] == 3
    assert run.cost["seconds"] > 0
    assert [row["text"] for row in run.rows() if row["kind"] == "note"] == ["a word"]
    assert run.versions == versions()
    assert run.versions["torch"] == torch.__version__
    with pytest.raises(KeyError, match=r"no metric 'lss'.*accuracy"):
        run.curve("lss")
    with pytest.raises(TypeError, match="'rates' is a list at step 3"):
        run.curve("rates")
    for line in (tmp_path / "first" / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_exceptions_and_ctrl_c_are_recorded(tmp_path):
    with pytest.raises(ZeroDivisionError), Run.create(tmp_path, name="failed"):
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), Run.create(tmp_path, name="stopped"):
        raise KeyboardInterrupt
    failed = Run.open(tmp_path / "failed")
    assert failed.status == "failed"
    assert failed.rows()[-1]["error"] == "ZeroDivisionError: division by zero"
    assert Run.open(tmp_path / "stopped").status == "killed"


def test_a_run_without_a_last_word_counts_as_killed(tmp_path):
    run = Run.create(tmp_path, name="a")
    assert Run.open(run.path).status == "running"
    run.close()
    assert Run.open(run.path).status == "killed" == run.status


def test_checkpoint_brings_back_everything(tmp_path):
    model, opt = make()
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2)
    batches = Batches(torch.arange(10), batch_size=3, seed=1)
    generators = {"draws": np.random.default_rng(3), "noise": torch.Generator().manual_seed(4)}
    with Run.create(tmp_path) as run:
        next(iter(batches))
        one_step(model, opt)
        schedule.step()
        run.save(1, model, opt, extras={"best": (0.5, None)}, schedule=schedule, batches=batches, **generators)
    expected_random = (
        torch.rand(1),
        random.random(),
        generators["draws"].random(),
        torch.rand(1, generator=generators["noise"]),
    )
    expected_batch = next(iter(batches))
    one_step(model, opt)

    again, again_opt = make(9)
    again_schedule = torch.optim.lr_scheduler.StepLR(again_opt, 2)
    again_batches = Batches(torch.arange(10), batch_size=3, seed=1)
    again_generators = {"draws": np.random.default_rng(), "noise": torch.Generator()}
    back = Run.open(run.path).restore(
        again, again_opt, schedule=again_schedule, batches=again_batches, **again_generators
    )
    assert back == (1, {"best": (0.5, None)})
    got = (
        torch.rand(1),
        random.random(),
        again_generators["draws"].random(),
        torch.rand(1, generator=again_generators["noise"]),
    )
    assert got == expected_random
    assert torch.equal(next(iter(again_batches))[0], expected_batch[0])
    one_step(again, again_opt)
    same_state(model, again)
    assert again_schedule.state_dict() == schedule.state_dict()


@pytest.mark.parametrize(
    "build",
    [
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=9),
        lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt),
        lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [2, 4]),
        lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step),
        lambda opt: torch.optim.lr_scheduler.SequentialLR(
            opt, [torch.optim.lr_scheduler.LinearLR(opt), torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5)], [3]
        ),
    ],
)
def test_every_kind_of_scheduler_survives(tmp_path, build):
    model, opt = make()
    schedule = build(opt)
    with Run.create(tmp_path) as run:
        opt.step()
        schedule.step(1.0) if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) else schedule.step()
        run.save(1, model, opt, schedule=schedule)
    other_model, other_opt = make()
    other = build(other_opt)
    Run.open(run.path).restore(other_model, other_opt, schedule=other)
    want, got = schedule.state_dict(), other.state_dict()
    assert {k: v for k, v in want.items() if k != "_schedulers"} == {k: v for k, v in got.items() if k != "_schedulers"}
    assert [group["lr"] for group in opt.param_groups] == [group["lr"] for group in other_opt.param_groups]


def test_resume_cuts_the_curve_back_to_the_checkpoint(tmp_path):
    model, opt = make()
    with pytest.raises(RuntimeError, match="crash"), Run.create(tmp_path, name="r") as run:  # noqa: PT012
        for step in range(1, 6):
            run.log(step=step, loss=step)
            if step == 3:
                run.save(step, model, opt)
            run.note("mark", at=step)
        raise RuntimeError("crash")
    run = Run.resume(tmp_path / "r")
    with pytest.raises(RuntimeError, match=r"call restore"):
        run.log(step=4, loss=0)
    assert run.restore(model, opt).step == 3
    with run:
        assert run.status == "running"
        assert run.curve("loss").steps.tolist() == [1, 2, 3]
        run.log(step=4, loss=40)
    assert run.curve("loss").values.tolist() == [1, 2, 3, 40]
    assert [row["data"]["at"] for row in run.rows() if row["kind"] == "note"] == [1, 2, 3]
    assert run.status == "finished"


def test_resume_without_a_checkpoint_starts_again(tmp_path):
    Run.create(tmp_path, name="r").close()
    run = Run.resume(tmp_path / "r")
    assert run.restore() is None
    with run:
        run.log(step=1, loss=1)
    assert run.curve("loss").steps.tolist() == [1]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path, cut):
    with Run.create(tmp_path, name="r") as run:
        run.log(step=1, loss=1.0)
        run.save(1, *make())
    log = run.path / "run.jsonl"
    rows = len(run.rows())
    log.write_bytes(log.read_bytes() + b'{"kind":"metrics","step":2,"time":0.5,"loss":0.123456789,"more":[1,2]}'[:cut])
    assert len(Run.open(run.path).rows()) == rows
    run = Run.resume(run.path)
    run.restore(*make())
    with run:
        run.log(step=2, loss=2.0)
    assert run.curve("loss").values.tolist() == [1.0, 2.0]


def test_a_damaged_line_in_the_middle_is_left_out_with_a_warning(tmp_path):
    with Run.create(tmp_path) as run:
        run.log(step=1, loss=1.0)
        run.log(step=2, loss=2.0)
    log = run.path / "run.jsonl"
    lines = log.read_bytes().split(b"\n")
    lines[1] = b"\0" * 20
    log.write_bytes(b"\n".join(lines))
    with pytest.warns(RuntimeWarning, match="line 2 of .* is damaged"):
        assert Run.open(run.path).curve("loss").values.tolist() == [2.0]


def test_keep_last(tmp_path):
    model, opt = make()
    with Run.create(tmp_path, keep=3) as run:
        for step in range(1, 7):
            run.save(step, model, opt)
    assert run.checkpoints() == [4, 5, 6]
    assert len(list((run.path / "checkpoints").iterdir())) == 6


def test_saving_the_same_step_again_replaces_it(tmp_path):
    model, opt = make()
    with Run.create(tmp_path) as run:
        for value in range(4):
            run.save(1, model, opt, extras={"value": value, "tensor": torch.tensor([value])})
    assert len(list((run.path / "checkpoints").iterdir())) == 2
    assert Run.open(run.path).restore(model, opt).extras["value"] == 3


@pytest.mark.parametrize("damage", ["flip json", "cut json", "flip tensors", "cut tensors", "no tensors", "empty json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    model, opt = make()
    with Run.create(tmp_path, name="r") as run:
        for step in (1, 2):
            run.log(step=step, loss=step)
            run.save(step, model, opt, extras={"step": step})
    file = run.path / "checkpoints" / ("step-000000002." + ("json" if "json" in damage else "safetensors"))
    data = bytearray(file.read_bytes())
    if damage == "no tensors":
        file.unlink()
    elif damage == "empty json":
        file.write_bytes(b"")
    else:
        middle = data.index(b'"extras"') + 20 if damage == "flip json" else len(data) // 2
        file.write_bytes(
            data[:middle] if "cut" in damage else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )
    run = Run.resume(run.path)
    with pytest.warns(RuntimeWarning, match="falling back to the one of step 1"):
        assert run.restore(model, opt).extras == {"step": 1}
    with run:
        assert run.curve("loss").steps.tolist() == [1]
        assert run.checkpoints() == [1]
        run.log(step=2, loss=2)
        run.save(2, model, opt, extras={"step": 2})
        assert run.checkpoints() == [1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Run.open(run.path).restore(model, opt).step == 2


def test_when_every_checkpoint_is_damaged_the_run_starts_again(tmp_path):
    model, opt = make()
    with Run.create(tmp_path, name="r") as run:
        run.save(1, model, opt)
    (run.path / "checkpoints" / "step-000000001.json").write_text("{}")
    run = Run.resume(run.path)
    with pytest.warns(RuntimeWarning, match="falling back to the start"):
        assert run.restore(model, opt) is None
    run.finish()


def test_a_full_disk_keeps_the_last_checkpoint_and_the_training(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the write, in a process of its own."""
    code = """
import resource, sys, torch
from metafast.runs import CheckpointError, Run
small, big = torch.nn.Linear(4, 4), torch.nn.Linear(400, 400)
run = Run.create(sys.argv[1], name="r")
run.log(step=1, loss=1.0)
run.save(1, extras={"w": small.weight})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    run.save(2, extras={"w": big.weight})
except CheckpointError as error:
    print(error)
run.log(step=2, loss=0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.save(3, extras={"w": big.weight})
run.finish()
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "cannot write the checkpoint of step 2" in done.stdout
    assert "step 1 is intact" in done.stdout
    run = Run.open(tmp_path / "r")
    assert run.checkpoints() == [1, 3]
    assert run.status == "finished"
    assert sorted(f.suffix for f in (run.path / "checkpoints").iterdir()) == [
        ".json",
        ".json",
        ".safetensors",
        ".safetensors",
    ]
    assert run.curve("loss").steps.tolist() == [1, 2]
    assert run.restore().extras["w"].shape == (400, 400)


def test_a_row_that_does_not_fit_leaves_no_trace(tmp_path):
    code = """
import os, resource, sys
from metafast.runs import Run
run = Run.create(sys.argv[1], name="r")
for step, room in enumerate([0, 10, 40, 90]):
    run.log(step=step, loss=1.0)
    size = os.path.getsize(run.path / "run.jsonl")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    try:
        run.log(step=step, loss=2.0, a_long_name_that_does_not_fit_into_the_last_bytes=3.0)
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.finish()
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot append") == done.stdout.count("intact") == 4
    assert Run.open(tmp_path / "r").curve("loss").values.tolist() == [1.0] * 4


@pytest.mark.parametrize("failing", ["fsync", "replace", "save_tensors", "mkdir"])
def test_any_failing_system_call_leaves_the_last_checkpoint(tmp_path, monkeypatch, failing):
    model, opt = make()
    run = Run.create(tmp_path)
    if failing != "mkdir":
        run.save(1, model, opt)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "save_tensors":
            patch.setattr(_checkpoint, "save_tensors", fail)
        elif failing == "mkdir":
            patch.setattr(_checkpoint.Path, "mkdir", fail)
        else:
            patch.setattr(_checkpoint.os, failing, fail)
        with pytest.raises(CheckpointError, match=r"No space left.*Free some space"):
            run.save(2, model, opt)
        if failing == "save_tensors":
            with pytest.raises(CheckpointError, match="step 1 is intact"):
                run.save(1, model, opt)
    before = [] if failing == "mkdir" else [1]
    assert run.checkpoints() == before
    assert [step for step, state, _ in _checkpoint.valid(run.path / "checkpoints") if state] == before
    run.save(2, model, opt)
    assert run.checkpoints() == [*before, 2]
    run.finish()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into any folder")
def test_an_unwritable_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Run.create(tmp_path, name="r")


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Run.create(tmp_path / "file", name="r")


def test_another_model_is_refused_before_anything_changes(tmp_path):
    model, opt = make()
    with Run.create(tmp_path, name="r") as run:
        run.log(step=2, loss=1)
        run.save(1, model, opt)
    other = torch.nn.Sequential(torch.nn.Linear(3, 3))
    before = (run.path / "run.jsonl").read_bytes(), other[0].weight.clone(), random.getstate()
    with pytest.raises(ValueError, match=r"model does not fit .*not in this model.*build the model"):
        Run.resume(run.path).restore(other, torch.optim.AdamW(other.parameters()))
    wide, _ = make()
    wide[3] = torch.nn.Linear(8, 5)
    with pytest.raises(ValueError, match=r"3.weight: \(2, 8\) stored, \(5, 8\) here"):
        Run.resume(run.path).restore(wide, torch.optim.AdamW(wide.parameters()))
    with pytest.raises(ValueError, match=r"groups of \[6\] parameters, this optimizer has \[2\]"):
        Run.resume(run.path).restore(model, torch.optim.AdamW(other.parameters()))
    with pytest.raises(ValueError, match=r"holds \['model', 'optimizer'\], restore was given \['model', 'schedule'\]"):
        Run.resume(run.path).restore(model, schedule=opt)
    assert before[0] == (run.path / "run.jsonl").read_bytes()
    assert torch.equal(before[1], other[0].weight)
    assert before[2] == random.getstate()


def test_two_writers_are_kept_apart(tmp_path):
    run = Run.create(tmp_path, name="r")
    with pytest.raises(RuntimeError, match="being written by another process"):
        Run.resume(run.path)
    with pytest.raises(RuntimeError, match="being written"):
        Run.create(tmp_path, name="r")
    run.finish()
    with pytest.raises(FileExistsError, match=r"Run.resume"):
        Run.create(tmp_path, name="r")


def test_a_forked_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    code = """
import os, sys, time
from metafast.runs import Run
run = Run.create(sys.argv[1], name="r")
if os.fork() == 0:
    try:
        run.log(step=1, loss=1.0)
    except RuntimeError:
        print("refused", os.getpid(), flush=True)
    time.sleep(60)
run.log(step=1, loss=1.0)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    with parent.stdout:
        word, child = parent.stdout.readline().split()
        assert word == "refused"
        assert Run.open(tmp_path / "r").status == "running"
        parent.kill()
        parent.wait()
        try:
            assert Run.open(tmp_path / "r").status == "killed"
            Run.resume(tmp_path / "r").close()
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_reading_and_closed_runs_refuse_to_write(tmp_path):
    run = Run.create(tmp_path, name="r")
    run.finish()
    with pytest.raises(RuntimeError, match="is closed"):
        run.log(step=1, loss=1)
    with pytest.raises(RuntimeError, match="opened for reading"):
        Run.open(run.path).save(1)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda run: run.log(step=1.5, loss=1), TypeError, "step must be an integer, got 1.5"),
        (lambda run: run.log(step=True, loss=1), TypeError, "step must be an integer"),
        (lambda run: run.log(step=-1, loss=1), ValueError, "step must be at least 0, got -1"),
        (lambda run: run.log(step=1), ValueError, "metrics must not be empty"),
        (lambda run: run.log(step=1, time=1), ValueError, "'time' cannot be a metric"),
        (lambda run: run.log(step=1, loss="low"), TypeError, "'loss' is 'low'.*note"),
        (lambda run: run.log(step=1, loss=torch.zeros(2, 2)), TypeError, r"shape \(2, 2\)"),
        (lambda run: run.log(step=1, loss={}), TypeError, "'loss' is a dict"),
        (lambda run: run.note(1), TypeError, "note takes a text"),
        (lambda run: run.save(1, object()), TypeError, r"model is a object, expected .*state_dict"),
        (lambda run: run.save(1, extras={"f": print}), TypeError, "without pickle"),
        (lambda run: run.restore(), RuntimeError, "right after Run.resume"),
    ],
)
def test_wrong_use_says_what_to_do(tmp_path, call, error, text):
    run = Run.create(tmp_path)
    with pytest.raises(error, match=text):
        call(run)
    run.log(step=2, loss=0.0)
    with pytest.raises(ValueError, match="must not go back: got 1 after 2"):
        run.log(step=1, loss=0.0)
    run.finish()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"config": [1]}, TypeError, "config must be a mapping"),
        ({"config": {"w": torch.zeros(1)}}, TypeError, "config holds tensors"),
        ({"config": {"f": print}}, TypeError, "without pickle"),
        ({"seed": "0"}, TypeError, "seed must be an integer"),
        ({"tags": "one"}, TypeError, r"write \['one'\]"),
        ({"tags": [1]}, TypeError, "tags must be strings"),
        ({"keep": 0}, ValueError, "keep must be at least 1"),
        ({"name": "../up"}, ValueError, "plain folder name"),
        ({"name": ""}, ValueError, "plain folder name"),
    ],
)
def test_wrong_options_of_create(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        Run.create(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_open_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run.open(tmp_path)
    (tmp_path / "run.jsonl").write_text('{"kind":"metrics"}\n')
    with pytest.raises(ValueError, match="does not begin with a header"):
        Run.open(tmp_path)
    (tmp_path / "run.jsonl").write_text('{"kind":"header","format":99}\n')
    with pytest.raises(ValueError, match=r"format 99.*update metafast"):
        Run.open(tmp_path)


def test_list_runs_filters(tmp_path):
    for index, lr in enumerate([0.1, 0.2, 0.2]):
        run = Run.create(tmp_path, name=f"r{index}", config={"lr": lr}, seed=index, tags=["t", f"n{index}"])
        run.finish() if index else run.close()
    (tmp_path / "junk").mkdir()
    names = lambda **options: [run.name for run in list_runs(tmp_path, **options)]  # noqa: E731
    assert names() == ["r0", "r1", "r2"]
    assert names(lr=0.2) == ["r1", "r2"]
    assert names(status="killed") == ["r0"]
    assert names(tags=["t", "n2"]) == ["r2"]
    assert names(seed=1, lr=0.2, status="finished") == ["r1"]
    assert names(width=3) == []
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="status must be one of"):
        names(status="done")
    with pytest.raises(TypeError, match="tags must be a list"):
        names(tags="t")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.jsonl").write_text("{}\n")
    with pytest.warns(RuntimeWarning, match="left out"):
        assert names() == ["r0", "r1", "r2"]


def test_a_half_made_folder_can_be_used(tmp_path):
    (tmp_path / "r").mkdir()  # a process died between the folder and its header
    Run.create(tmp_path, name="r").finish()
    assert Run.open(tmp_path / "r").status == "finished"


def test_files_are_as_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        with Run.create(tmp_path) as run:
            run.save(1, *make())
    finally:
        os.umask(old)
    assert {oct(f.stat().st_mode & 0o777) for f in (run.path / "checkpoints").iterdir()} == {"0o644"}


def test_random_states_and_seeds():
    seed_all(5)
    state = rng_state()
    first = torch.rand(3), random.random()
    set_rng_state(state)
    assert torch.equal(torch.rand(3), first[0])
    assert random.random() == first[1]
    with pytest.raises(ValueError, match=r"below 2\*\*32"):
        seed_all(2**32)
    with pytest.raises(TypeError, match="seed must be an integer"):
        seed_all(None)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    import pickle

    monkeypatch.setattr(pickle, "Pickler", None)
    monkeypatch.setattr(pickle, "dumps", None)
    monkeypatch.setattr(torch, "save", None)
    with Run.create(tmp_path) as run:
        run.save(1, *make())
    assert Run.open(run.path).restore(*make()).step == 1


def test_what_killed_writers_left_goes_with_the_next_checkpoint(tmp_path):
    """Ours (".tmp-") and those of safetensors, which writes to a temporary file of its own."""
    model, opt = make()
    run = Run.create(tmp_path, name="r")
    run.save(1, model, opt)
    run.close()
    left = [folder / name for folder in (run.path, run.path / "checkpoints") for name in (".tmp-1-x", ".tmpAb3dE6")]
    for path in left:
        path.write_bytes(b"half")
    run = Run.resume(run.path)
    run.restore(model, opt)
    run.save(2, model, opt)
    assert not [path for path in left if path.exists()]
    run.close()
