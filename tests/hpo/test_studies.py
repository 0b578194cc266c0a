"""Studies, run records and tables as tasks to learn from."""

import math

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from metafast.hpo import FloatRange, IntRange, MetaTask, Space, when
from metafast.hpo._records import task_of_runs
from metafast.hpo._studies import observations_of_study, task_of_study, to_tasks
from metafast.hpo._tables import task_of_table
from metafast.runs import Run

SPACE = Space(lr=FloatRange(1e-3, 1.0, log=True), optimizer=["sgd", "adam"], momentum=[0.0, 0.9],
              conditions=[when("optimizer", "sgd", "momentum")])  # fmt: skip


def study_of(trials=12, direction="maximize"):
    """Trials 1 to 4 are failed, NaN, pruned and infeasible."""

    def objective(trial):
        config = SPACE.ask(trial)
        for step in range(10):
            trial.report(config["lr"] * (step + 1) / 10, step)
            if trial.number in (1, 3) and step == 4:
                raise RuntimeError("out of memory") if trial.number == 1 else optuna.TrialPruned
        if trial.number == 4:
            trial.set_constraint("memory", 1.0)
        return math.nan if trial.number == 2 else config["lr"]

    study = optuna.create_study(study_name="one", direction=direction, sampler=optuna.samplers.RandomSampler(seed=2))
    study.optimize(objective, n_trials=trials, catch=(RuntimeError,))
    return study


def test_a_study():
    study = study_of()
    task = task_of_study(study, dataset="digits", metric="val_accuracy", reference=0.1, features={"a": 1.0})
    assert (task.name, task.dataset, task.metric, task.direction) == ("one", "digits", "val_accuracy", "maximize")
    assert (task.reference, task.features) == (0.1, {"a": 1.0})
    assert task.space == SPACE
    assert task.configs == [trial.params for trial in study.trials if trial.number != 3]
    assert np.isnan(task.final).tolist() == [False, True, True, True] + [False] * 7
    np.testing.assert_allclose(task.fractions, np.arange(1, 9) / 8)
    lr = task.configs[0]["lr"]
    np.testing.assert_allclose(task.curves[0], lr * np.floor(task.fractions * 10) / 10)
    assert np.isfinite(task.seconds[0]) and np.isnan(task.seconds[1])
    assert to_tasks(study)[0].name == "one"


def test_the_space_may_be_given_and_trials_may_lie_outside():
    narrow = Space({**SPACE.dimensions, "lr": FloatRange(0.01, 0.5, log=True)}, conditions=SPACE.conditions)
    task = task_of_study(study_of(30), space=narrow)
    assert task.space == narrow and 5 < len(task.configs) < 29
    with pytest.raises(ValueError, match=r"study 'one' searches another space: none of its 11 trials .*have \['lr'"):
        task_of_study(study_of(), space=Space(width=[1, 2]))


def test_ranges_that_change_are_left_out():
    study = optuna.create_study(study_name="s")
    for number in range(4):
        distributions = {"x": FloatDistribution(0, 1), "n": IntDistribution(0, 5 + number)}
        study.add_trial(
            optuna.create_trial(params={"x": number / 4, "n": 1}, distributions=distributions, value=number)
        )
    task = task_of_study(study, metric="loss")
    assert task.space == Space(x=FloatRange(0.0, 1.0)) and task.fractions.tolist() == [1.0]
    assert len(task_of_study(study, space=Space(x=FloatRange(0.0, 1.0), n=IntRange(0, 8))).configs) == 4
    lone = optuna.create_study(study_name="s")
    for number in range(2):
        distributions = {"n": IntDistribution(0, 5 + number)}
        lone.add_trial(optuna.create_trial(params={"n": 1}, distributions=distributions, value=number))
    with pytest.raises(ValueError, match="no finished trials with hyperparameters whose ranges do not change"):
        task_of_study(lone)


def test_one_configuration_several_times_is_averaged():
    study = optuna.create_study(study_name="s")
    for value, choice in ((1.0, "a"), (2.0, "b"), (3.0, "a")):
        distributions = {"x": CategoricalDistribution(["a", "b"])}
        study.add_trial(optuna.create_trial(params={"x": choice}, distributions=distributions, value=value))
    task = task_of_study(study)
    assert task.configs == [{"x": "a"}, {"x": "b"}] and task.final.tolist() == [2.0, 2.0]
    assert (task.metric, task.direction) == ("loss", "minimize")


def test_observations_have_what_a_task_leaves_out():
    study = study_of()
    observed = observations_of_study(study, SPACE)
    pruned = study.trials[3]
    lr = pruned.params["lr"]
    assert [(o.fraction, o.score) for o in observed if o.config == pruned.params] == [
        (0.2, pytest.approx(0.2 * lr)), (0.3, pytest.approx(0.3 * lr)), (0.5, pytest.approx(0.5 * lr)),
    ]  # fmt: skip
    assert sum(o.failed for o in observed) == 3
    with pytest.raises(ValueError, match="none of its 12 trials is in Space"):
        observations_of_study(study, Space(width=[1, 2]))
    with pytest.raises(TypeError, match="space must be a Space, got dict"):
        observations_of_study(study, {})


def test_studies_that_teach_nothing():
    with pytest.raises(ValueError, match="metric 'loss' is to minimize, but the direction is 'maximize'; study 'one'"):
        task_of_study(study_of(), metric="loss")
    several = optuna.create_study(study_name="s", directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="study 's' has 2 objectives"):
        task_of_study(several)
    with pytest.raises(ValueError, match="study 's' has no finished trials with hyperparameters"):
        task_of_study(optuna.create_study(study_name="s"))
    with pytest.raises(ValueError, match="has 1 finished configurations with a finite accuracy, at least 2"):
        task_of_study(study_of(4))
    with pytest.raises(TypeError, match="study must be an Optuna study, got str"):
        task_of_study("one")


def records(root, *, seeds=(0,), metric="val_accuracy", extra=None):
    for lr in (0.1, 0.2, 0.4):
        for seed in seeds:
            with Run.create(root, config={"lr": lr, "model": "mlp", **(extra or {})}, seed=seed) as run:
                for step in range(1, 5):
                    run.log(step=10 * step, loss=1.0, **{metric: lr * step + seed})
    return root


def test_records(tmp_path):
    records(tmp_path, seeds=(0, 1))
    failed = Run.create(tmp_path, config={"lr": 0.8, "model": "mlp"})
    failed.log(step=10, val_accuracy=0.9)
    failed.fail("out of memory")
    stopped = Run.create(tmp_path, config={"lr": 0.4, "model": "mlp"}, tags=["pruned"])
    stopped.log(step=10, val_accuracy=0.1)
    stopped.finish()
    running = Run.create(tmp_path, config={"lr": 1.6, "model": "mlp"})
    running.log(step=40, val_accuracy=0.9)
    (task,) = to_tasks(tmp_path)
    assert task.space == Space(lr=[0.1, 0.2, 0.4, 0.8]) and task.metric == "val_accuracy"
    assert task.name == task.dataset == tmp_path.name
    np.testing.assert_allclose(task.curves[0], [0.6, 0.7, 0.8, 0.9])
    assert task.curves[3, :-1] == pytest.approx(0.9) and np.isnan(task.final[3])
    assert np.isfinite(task.seconds[:3]).all()
    given = task_of_runs(tmp_path, space=Space(lr=FloatRange(0.01, 2.0)), metric="loss", steps=80)
    assert (given.fractions.tolist(), given.direction) == ([0.125, 0.25, 0.375, 1.0], "minimize")
    running.finish()


def test_records_with_hyperparameters_of_their_own(tmp_path):
    records(tmp_path, extra={"hyperparameters": {"width": 3}})
    with pytest.raises(ValueError, match=r"no hyperparameter that differs between runs; give space=Space\(…\)"):
        task_of_runs(tmp_path)


def test_records_that_say_what_part_of_the_budget_they_are(tmp_path):
    for lr, parts in ((0.1, (0.5, 1.0)), (0.2, (0.25, 0.5, 1.0)), (0.3, (0.5,))):
        with Run.create(tmp_path, config={"hyperparameters": {"lr": lr}, "budget": parts[-1]}) as run:
            for step, fraction in enumerate(parts, 1):
                run.log(step=step, accuracy=lr * fraction, fraction=fraction, seconds=60 * fraction)
    task = task_of_runs(tmp_path)
    assert [config["lr"] for config in task.configs] == [0.1, 0.2] and task.fractions.tolist() == [0.25, 0.5, 1.0]
    np.testing.assert_allclose(task.curves, [[0.05, 0.05, 0.1], [0.05, 0.1, 0.2]])
    assert task.seconds.tolist() == [60.0, 60.0] and task.metric == "accuracy"


def test_records_that_teach_nothing(tmp_path):
    with pytest.raises(ValueError, match="is no folder of run records"):
        to_tasks(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has 0 runs, none of which has finished or failed"):
        task_of_runs(tmp_path)
    records(tmp_path, metric="val_score")
    assert task_of_runs(tmp_path).metric == "loss"
    with pytest.raises(ValueError, match=r"which way round is 'val_score'\? give direction='maximize'"):
        task_of_runs(tmp_path, metric="val_score")
    assert task_of_runs(tmp_path, metric="val_score", direction="maximize").direction == "maximize"
    with pytest.raises(ValueError, match=r"has no metric 'acc'; logged: \['loss', 'val_score'\]"):
        task_of_runs(tmp_path, metric="acc")
    with pytest.raises(ValueError, match=r"run '.*' is of another space: the configuration has no 'width'"):
        task_of_runs(tmp_path, space=Space(width=[1, 2]))
    with pytest.raises(TypeError, match="expected a folder of run records or a list of them, got dict"):
        task_of_runs({})


TABLE = """lr,optimizer,momentum,acc_5,accuracy,time,seed
0.1,sgd,0.9,0.3,0.6,10,0
0.1,adam,,0.4,0.7,11,0
0.1,adam,,0.2,0.9,13,1
0.2,sgd,0.0,0.1,nan,,0
0.2,adam,,,0.5,12,0
"""


def read(tmp_path, text=TABLE, **options):
    (tmp_path / "mine.csv").write_text(text)
    return task_of_table(tmp_path / "mine.csv", **{"score": "accuracy", "ignore": ["seed", "time", "acc_5"], **options})


def test_a_csv_table(tmp_path):
    task = read(tmp_path, ignore=["seed"], seconds="time", curve={"acc_5": 0.25}, dataset="digits")
    assert (task.name, task.dataset, task.metric, task.direction) == ("mine", "digits", "accuracy", "maximize")
    assert task.space == Space(
        lr=[0.1, 0.2], optimizer=["sgd", "adam"], momentum=[0.0, 0.9], conditions=[when("optimizer", "sgd", "momentum")]
    )
    assert task.configs[1] == {"lr": 0.1, "optimizer": "adam"}
    assert task.fractions.tolist() == [0.25, 1.0]
    np.testing.assert_allclose(task.curves, [[0.3, 0.6], [0.3, 0.8], [0.1, math.nan], [math.nan, 0.5]])
    np.testing.assert_allclose(task.seconds, [10, 12, math.nan, 12])


def test_a_table_with_a_space(tmp_path):
    space = Space(lr=FloatRange(0.01, 1.0), optimizer=["sgd", "adam"])
    assert read(tmp_path, space=space).space == space
    with pytest.raises(ValueError, match="table mine.csv: row 4 is of another space: lr must be FloatRange"):
        read(tmp_path, space=Space(lr=FloatRange(0.01, 0.15), optimizer=["sgd", "adam"]))
    optional = Space(size=[1, 2], norm=["batch", None])
    task = task_of_table({"size": [1.0, 2.0], "norm": ["batch", None], "loss": [1, 2]}, space=optional, score="loss")
    assert task.configs == [{"size": 1, "norm": "batch"}, {"size": 2, "norm": None}]


def test_a_parquet_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"lr": [0.1, 0.2], "nesterov": [True, False], "wer": [0.3, None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has 1 finished configurations"):
        task_of_table(tmp_path / "t.parquet", score="wer")
    parquet.write_table(table.set_column(2, "wer", [[0.3, 0.4]]), tmp_path / "t.parquet")
    task = task_of_table(tmp_path / "t.parquet", score="wer")
    assert task.direction == "minimize" and task.space == Space(lr=[0.1, 0.2], nesterov=[True, False])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "table mine.csv is empty"),
        ("lr,accuracy\n", {}, "table mine.csv is empty"),
        ("lr,lr,accuracy\n1,2,3\n", {}, r"table mine.csv has the columns \['lr'\] twice"),
        ("lr,accuracy\n1,2,3\n", {}, "table mine.csv: row 2 has 3 cells, the header has 2"),
        (TABLE, {"score": "acc"}, r"table mine.csv has no column \['acc'\]; it has \['lr', "),
        (TABLE, {"space": Space(width=[1])}, r"has no column \['width'\]"),
        (TABLE, {"ignore": ["accuracy"]}, r"columns \['accuracy'\] have two meanings"),
        (TABLE, {"score": "momentum"}, r"which way round is 'momentum'\?"),
        (TABLE, {"score": "optimizer", "direction": "maximize"}, "'optimizer' must hold numbers, got 'sgd' in row 1"),
        (TABLE, {"direction": "minimize"}, "metric 'accuracy' is to maximize, but the direction is 'minimize'"),
        (TABLE, {"curve": {"acc_5": 5}}, "fractions of the budget between 0 and 1, got 5"),
        ("lr,accuracy\n1,2\n1,3\n", {"ignore": []}, "no hyperparameter that differs"),
    ],
)
def test_bad_tables(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text, **({"ignore": []} if not text.startswith("lr,opt") else {}) | options)


def test_bad_sources(tmp_path):
    with pytest.raises(ValueError, match=r"must be a .csv or a .parquet file"):
        task_of_table(tmp_path / "a.xlsx", score="a")
    with pytest.raises(TypeError, match="source must be a .csv or .parquet file or columns by name, got list"):
        task_of_table([], score="a")
    with pytest.raises(ValueError, match=r"columns must be equally long, got {'a': 1, 'b': 2}"):
        task_of_table({"a": [1], "b": [1, 2]}, score="a")
    with pytest.raises(TypeError, match=r"must be told what its columns are: task_of_table\('a.csv', score=…\)"):
        to_tasks("a.csv")
    with pytest.raises(TypeError, match="expected MetaTasks, Optuna studies and folders of run records, got int"):
        to_tasks(3)


def test_tasks_pass_through(tmp_path):
    task = read(tmp_path)
    assert isinstance(task, MetaTask) and to_tasks(task) == [task]
    runs = [Run.open(path.parent) for path in records(tmp_path / "runs").glob("*/run.jsonl")]
    assert to_tasks(runs)[0].name == "runs"
