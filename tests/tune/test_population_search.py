"""Populations that train: records, takeovers, accidents, interruptions, processes."""

import contextlib
import itertools
import math
import multiprocessing
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from metafast.runs import Run, _checkpoint, list_runs, rng_state
from metafast.tune import OnlineTuner
from metafast.tune.population import ASHA, PB2, Choice, FloatRange, Leg, PopulationResult, _pool
from metafast.tune.population._pool import Workers
from tests.tune.population_cases import objects, train, train_with_accidents

RATES = {"rate": FloatRange(1e-3, 1.0, log=True), "batch_size": [2, 4, 8]}


def pb2(**options):
    return PB2(RATES, **{"size": 3, "interval": 4, **options})


def run(search, path, steps=12, function=train, **options):
    return search.run(function, steps, output=path, progress=False, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search without accidents."""
    return run(pb2(), tmp_path_factory.mktemp("whole") / "pb2")


def test_a_population_and_its_members_are_records(whole):
    population = Run.open(whole.path)
    assert population.status == "finished" and population.seed == 0 and population.config["search"] == "PB2"
    members = list_runs(whole.path)
    assert [run.name for run in members] == ["member-000", "member-001", "member-002"]
    for member, found in zip(members, whole.members, strict=True):
        assert member.status == "finished" and member.path == found.path
        assert member.checkpoints() == [8, 12]
        assert member.curve("value").steps.tolist() == [4, 8, 12]
        assert float(member.curve("value").values[-1]) == found.value
        legs = [row["data"] for row in member.rows() if row.get("text") == "leg"]
        assert [(leg["start"], leg["stop"]) for leg in legs] == [(0, 4), (4, 8), (8, 12)]
        assert legs[-1]["config"] == found.config


def test_a_takeover_copies_bit_for_bit(whole):
    taken = [leg for leg in whole.legs if leg.number == 2 and leg.source is not None]
    assert len(taken) == 1
    leg = taken[0]
    own = _checkpoint.read(whole.path / leg.name / "checkpoints", 8)
    other = _checkpoint.read(whole.members[leg.source].path / "checkpoints", 8)
    assert own["objects"].keys() == {"model", "optimizer"}
    torch.testing.assert_close(own["objects"], other["objects"], rtol=0, atol=0)
    begins = Run.open(whole.path / leg.name).curve("begins").values[-1]
    assert begins == float(other["objects"]["model"]["weight"])  # the training did begin there


def test_what_a_result_says(whole):
    best = whole.best
    assert best.value == min(member.value for member in whole.members)
    model, _ = objects()
    model.load_state_dict(best.state_dict())
    assert model(torch.ones(1, 1)).item() == pytest.approx(3, abs=1.5)
    with pytest.raises(KeyError, match="no 'tuner'.*'model', 'optimizer'"):
        best.state_dict("tuner")
    table = whole.table()
    assert table[0] == {"member": best.id, "value": best.value, "step": 12, "error": None, **best.config}
    assert [row["value"] for row in table] == sorted(row["value"] for row in table)
    assert f"member {best.id}" in repr(whole)
    for member in range(3):
        past = whole.lineage(member)
        assert [(leg.start, leg.stop) for leg in past] == [(0, 4), (4, 8), (8, 12)]
        for before, leg in itertools.pairwise(past):
            assert before.member == (leg.member if leg.source is None else leg.source)
    with pytest.raises(ValueError, match="member must be one of 0 to 2, got 3"):
        whole.lineage(3)


def test_a_schedule_tells_changes_of_the_past():
    def leg(member, number, rate, value, source=None):
        return Leg(member, number, 10 * number, 10 * number + 10, {"rate": rate, "b": 8}, 0, source, value)

    legs = [leg(0, 0, 1.0, 3.0), leg(1, 0, 2.0, 1.0), leg(0, 1, 4.0, 0.5, source=1), leg(1, 1, 2.0, 0.8)]
    legs += [leg(0, 2, 4.0, 0.1), leg(1, 2, 3.0, 0.2)]
    result = PopulationResult(Path("nowhere"), legs, "min")
    assert result.schedule() == {"rate": [(0, 2.0), (10, 4.0)], "b": [(0, 8)]}
    assert result.schedule(1) == {"rate": [(0, 2.0), (20, 3.0)], "b": [(0, 8)]}
    assert PopulationResult(Path("nowhere"), legs, "max").best.id == 1


def test_the_seed_says_all_and_the_callers_random_numbers_stay(whole, tmp_path):
    before = repr(rng_state())
    threads = torch.get_num_threads()
    again = run(pb2(), tmp_path / "again")
    assert repr(rng_state()) == before
    assert torch.get_num_threads() == threads
    assert again.legs == whole.legs
    assert run(pb2(), tmp_path / "other", seed=1).legs != whole.legs


def test_worker_processes_give_the_same_and_may_die(tmp_path):
    alone = run(pb2(), tmp_path / "alone", function=train_with_accidents)
    together = run(pb2(), tmp_path / "together", function=train_with_accidents, workers=2)

    def facts(result):
        legs = sorted(result.legs, key=lambda leg: (leg.number, leg.member))
        return [(leg.member, leg.number, leg.config, leg.source, leg.value, leg.error is None) for leg in legs]

    assert facts(together) == facts(alone)
    assert {(leg.member, leg.number): leg.error for leg in together.legs if leg.error} == {
        (1, 2): "the process died (exit code 7)",
        (2, 1): "FloatingPointError: the value reported at step 8 is nan",
    }
    assert {leg.error for leg in alone.legs if leg.number == 2} == {None, "RuntimeError: an accident"}
    after = next(leg for leg in together.legs if (leg.member, leg.number) == (2, 2))
    assert after.source in (0, 1) and after.value is not None  # it took another over, and lives
    assert together.members[1].error and together.members[1].step == 8
    notes = [row for row in Run.open(together.path).rows() if row.get("text") == "a leg failed"]
    assert [note["data"]["member"] for note in notes] == [2, 1]
    assert any(row.get("text") == "the leg failed" for row in Run.open(together.members[2].path).rows())


def test_interrupted_in_the_middle_it_goes_on_where_it_was(whole, tmp_path):
    trained = []

    def stopping(member):
        trained.append((member.id, member.start))
        if len(trained) == 5:
            raise KeyboardInterrupt
        train(member)

    with pytest.raises(KeyboardInterrupt):
        run(pb2(), tmp_path / "pb2", function=stopping)
    assert Run.open(tmp_path / "pb2").status == "killed"
    with pytest.raises(FileExistsError, match="resume=True"):
        run(pb2(), tmp_path / "pb2")
    result = run(pb2(), tmp_path / "pb2", function=stopping, resume=True)
    assert result.legs == whole.legs
    assert len(trained) == 10 and trained[5] == trained[4]  # only the leg that was cut off is trained again
    for mine, theirs in zip(result.members, whole.members, strict=True):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert run(pb2(), tmp_path / "pb2", function=stopping, resume=True).legs == whole.legs and len(trained) == 10


def test_a_leg_that_ended_without_a_word_to_the_population_is_taken_from_its_record(whole, tmp_path):
    """Death may come after the member's last word and before the population's."""
    calls = []

    def counting(member):
        calls.append(member.id)
        train(member)

    search = pb2()
    search.todo = lambda done, running, free, steps, seed: [] if done else pb2().todo(done, running, free, steps, seed)
    run(search, tmp_path / "pb2", function=counting)  # one round
    for step in Run.open(tmp_path / "pb2").checkpoints():
        _checkpoint.set_aside(tmp_path / "pb2" / "checkpoints", step)
    assert run(pb2(), tmp_path / "pb2", function=counting, resume=True).legs == whole.legs
    assert len(calls) == 9


def test_a_damaged_checkpoint_costs_a_member_not_the_search(tmp_path):
    def damaging(member):
        if member.id == 0 and member.start == 4:
            for file in (member.path / "checkpoints").glob("*.safetensors"):
                file.write_bytes(b"")
        train(member)

    with pytest.warns(RuntimeWarning, match="does not match its checksum"):
        result = run(pb2(), tmp_path / "pb2", function=damaging)
    errors = {leg.member: leg.error for leg in result.legs if leg.error}
    assert "no good checkpoint of step 4" in errors.pop(0)
    assert all("member-000" in error for error in errors.values())  # whoever takes it over
    assert [leg.source for leg in result.legs if leg.number == 2 and leg.member == 0] != [None]
    assert result.members[0].step == 12


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda member: member.report(member.stop, 1.0), "call restore"),
        (lambda member: member.restore(), "without member.report"),
        (lambda member: (member.restore(), member.report(member.stop, 1.0)), "without member.save"),
        (lambda member: (member.restore(), member.report(member.stop, "1.0")), "value must be a number, got '1.0'"),
        (lambda member: (member.restore(), member.report(member.stop, torch.ones(2))), "tensor of one element"),
        (lambda member: (member.restore(), member.report(5, 1.0)), "step must be one of 0 to 4"),
        (lambda member: (member.restore(), member.save(len)), "model is a builtin_function"),
        (lambda member: 1 / 0, "ZeroDivisionError"),
        (lambda member: exit(3), "SystemExit: 3"),
    ],
)
def test_a_function_that_never_works_is_an_error_that_says_why(tmp_path, function, says):
    with pytest.raises(RuntimeError, match=f"(?s)all members have failed.*{says}"):
        run(pb2(), tmp_path / "pb2", function=function)
    assert Run.open(tmp_path / "pb2").status == "failed"


def test_infinite_and_swallowed_values_fail_too(tmp_path):
    def swallowing(member):
        model, opt = objects()
        member.restore(model, opt)
        with contextlib.suppress(FloatingPointError):
            member.report(member.stop, math.inf if member.id == 0 else torch.tensor(1.0, requires_grad=True))
        member.save(model, opt)

    result = run(pb2(), tmp_path / "pb2", 4, function=swallowing)
    assert [member.value for member in result.members] == [None, 1.0, 1.0]
    assert result.best.id == 1 and result.table()[-1]["member"] == 0


def test_asha_gives_up_trainings_and_keeps_the_rest(tmp_path):
    search = ASHA({**RATES, "rate": FloatRange(1e-4, 1e-1, log=True)}, 9, 2, reduction=3)
    seen = []

    def watching(member):
        seen.append((member.id, member.start))
        train(member)

    result = run(search, tmp_path / "asha", 18, function=watching)
    assert len(set(seen)) == len(seen) == len(result.legs)  # no rung twice
    assert {leg.stop for leg in result.legs} == {2, 6, 18} and len(result.members) == 9
    assert sum(leg.stop == 2 for leg in result.legs) == 9
    assert result.best.step == 18 and result.best.config["rate"] > 1e-2
    assert [leg.stop for leg in result.lineage()] == [2, 6, 18]
    assert {leg.config["rate"] for leg in result.lineage()} == {result.best.config["rate"]}


def test_a_tuner_inside_goes_along_with_the_weights(tmp_path):
    """Rates by hypergradients, batch size by the population, layers inherited: all in one."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, generator=rng), torch.randint(2, (64,), generator=rng)
    restored = {}

    def mixed(member):
        hidden = [torch.nn.Linear(3, 3) for _ in range(member.config["layers"])]
        model = torch.nn.Sequential(*hidden, torch.nn.Linear(3, 2))
        opt = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        tuner = OnlineTuner(model, opt, ["lr", "momentum"], [(x[48:], y[48:])], every=2)
        member.restore(model, opt, tuner=tuner)
        restored[member.id, member.start] = (tuner.calls, opt.param_groups[0]["lr"], len(tuner.state["lr"].history))
        for _ in member.steps:
            chosen = torch.randint(48, (member.config["batch_size"],))
            tuner.step(lambda chosen=chosen: F.cross_entropy(model(x[chosen]), y[chosen]))
        member.report(member.stop, tuner.validation[-1][1], lr=opt.param_groups[0]["lr"])
        member.save(model, opt, tuner=tuner)

    space = {"batch_size": [4, 8, 16], "layers": Choice([1, 2, 3], fixed=True)}
    result = run(PB2(space, 3, interval=4), tmp_path / "mixed", function=mixed)
    taken = [leg for leg in result.legs if leg.source is not None]
    assert taken and not any(leg.error for leg in result.legs)
    for leg in taken:
        origin = next(x for x in result.legs if (x.member, x.stop) == (leg.source, leg.start))
        assert leg.config["layers"] == origin.config["layers"]
        calls, rate, history = restored[leg.member, leg.start]
        curve = Run.open(result.members[leg.source].path).curve("lr")
        assert calls == leg.start and history == 1 + leg.start // 2
        assert rate == curve.values[curve.steps.tolist().index(leg.start)] != 1e-2


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"function": "train"}, TypeError, "train must be a function of a member, got str"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 3}, ValueError, "steps must be at least interval=4"),
        ({"workers": -1}, ValueError, "workers must be at least 0"),
        ({"workers": 1.5}, TypeError, "workers must be an integer"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"function": lambda member: None, "workers": 2}, TypeError, "at the top of a module.*workers=0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        run(pb2(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_an_output_that_is_no_folder_is_refused():
    for output in (None, "", 3):
        with pytest.raises(TypeError, match="output must be a folder"):
            run(pb2(), output)


def test_another_search_does_not_go_on_with_this_one(whole):
    rows = Run.open(whole.path).rows()
    for search, options, says in [
        (pb2(kappa=1.0), {}, "has kappa=2.0, this one 1.0"),
        (pb2(), {"seed": 1}, "has seed=0, this one 1"),
        (pb2(), {"steps": 16}, "has steps=12, this one 16"),
        (PB2({"rate": [1.0]}, 3, interval=4), {}, "has space="),
        (ASHA(RATES, 3, 4), {}, "has search='PB2', this one 'ASHA'"),
    ]:
        with pytest.raises(ValueError, match=says):
            run(search, whole.path, resume=True, **options)
    assert Run.open(whole.path).rows() == rows


def test_two_searches_at_a_time_in_one_folder(tmp_path):
    def meddling(member):
        with pytest.raises(RuntimeError, match="another process"):
            run(pb2(), tmp_path / "pb2", 4, resume=True)
        train(member)

    assert not any(leg.error for leg in run(pb2(), tmp_path / "pb2", 4, function=meddling).legs)


@pytest.fixture
def worker():
    """Workers with one process that is not there, and the end of its pipe."""
    workers = Workers(train, None, 1, lambda *report: None, 1)
    ours, theirs = multiprocessing.Pipe()
    process = SimpleNamespace(is_alive=lambda: False, join=lambda *timeout: None, terminate=lambda: None, exitcode=1)
    end = SimpleNamespace(connection=ours, process=process, end=ours.close, ready=False, leg=Leg(0, 0, 0, 1, {}, 0))
    workers._workers.append(end)
    yield workers, end, theirs
    ours.close()
    theirs.close()


def test_workers_that_cannot_begin_are_an_error(worker):
    workers, _, theirs = worker
    theirs.send(("unusable", "AttributeError: no attribute 'train'"))
    with pytest.raises(TypeError, match="can import: AttributeError: no attribute 'train'; move it.*workers=0"):
        workers.wait()
    with pytest.raises(RuntimeError, match=r'\(exit code 1\): a script.*if __name__ == "__main__"'):
        workers.wait()


def test_a_worker_that_is_killed_costs_its_leg_and_another_takes_its_place(worker, monkeypatch):
    workers, end, theirs = worker
    workers.submit(Leg(1, 0, 0, 1, {}, 0))  # waits for it
    end.process.exitcode = -9
    theirs.send(("ready",))
    theirs.send(("report", 1, 0.5))
    theirs.close()
    sent = []
    fresh = SimpleNamespace(leg=None, connection=SimpleNamespace(send=sent.append))
    monkeypatch.setattr(_pool, "_Worker", lambda *place: fresh)
    assert [(leg.member, leg.error) for leg in workers.wait()] == [(0, "the process died (signal SIGKILL)")]
    assert workers._workers == [fresh] and [leg.member for leg in sent] == [1]


def test_progress_is_lines_where_there_is_no_terminal(tmp_path, capsys):
    pb2().run(train, 4, output=tmp_path / "pb2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines if line] == [f"member {m}, step 4" for m in range(3)]


def test_the_example_runs_and_is_short(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    example = Path(__file__).resolve().parents[2] / "examples" / "tune_population.py"
    assert len(example.read_text().splitlines()) < 80
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), "--search", "asha", "--steps", "18"])
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert "batch size of the best" in said and "test accuracy" in said
