"""The experiment of rapid adaptation: its jobs, what they measure, what it says of it, and that it goes on."""

import dataclasses
import json
import math

import pytest
import torch

from metafast._trainings import StoppedError
from metafast.adapt import MetaFineTuner
from metafast.experiments import rapid_adaptation as adaptation
from metafast.experiments.rapid_adaptation import (
    _backbones,
    _cost,
    _jobs,
    _measure,
    _summaries,
    _tasks,
    _verdicts,
    _work,
)
from metafast.maml.trainer import BEST
from metafast.runs import Run
from tests.experiments import rapid_adaptation_cases as cases
from tests.experiments.rapid_adaptation_cases import TINY, use

PLAN = adaptation.Plan(TINY, ("omniglot", "fewrel"), seed=1, seeds=2)
CLOCK = ("seconds", "cpu_seconds")


def silent(jobs):
    return lambda job, step: None


def nothing(step):
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of it, once."""
    output = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        adaptation.run(PLAN, output, 1, silent)
    return output


@pytest.fixture
def tiny(monkeypatch):
    use(monkeypatch)


@pytest.fixture
def done(folder, tiny):
    return adaptation.run(PLAN, folder, 1, silent)


@pytest.fixture
def root(folder):
    return folder / "runs"


def test_the_whole_and_again(done, folder, monkeypatch):
    found = adaptation.results(PLAN, folder, done)
    json.dumps(found)
    titles = [PLAN.title(case) for name in PLAN.names for case in PLAN.cases(name)]
    assert titles == [
        "Letters, 3-way 1-shot",
        "Letters to Digits, 2-way 1-shot",
        "Relations, 2-way 1-shot",
        "Relations to Intents, 2-way 1-shot",
    ]
    assert [(each["case"], each["method"]) for each in found["summaries"]] == [
        (title, method) for title in titles for method in adaptation.METHODS
    ]
    assert all(0 <= each["accuracy"] <= 1 for each in found["summaries"])
    # before any adaptation there is the first point of courses, and nothing else to measure
    assert all(each["episodes"] == (4 if each["method"] == "none" else 6) for each in found["summaries"])
    assert [len(each["by_seed"]) for each in found["summaries"]] == [2] * 32
    monkeypatch.setattr(_work, "course", lambda *arguments, **options: pytest.fail("a finished job is not done"))
    assert adaptation.run(PLAN, folder, 1, silent) == done
    assert adaptation.results(PLAN, folder, done) == found


def test_meta_trainings_are_shared():
    names = [job.name for job in PLAN.metas()]
    assert len(names) == len(set(names)) == 2 * 3 * 2  # data sets, methods, seeds
    test = adaptation.Job("test", "fewrel", TINY, "ours", shots=2, seed=2)
    assert (test.name, _jobs.meta_job(test).name) == ("test-fewrel-2w2s-ours-s2", "meta-fewrel-2w1s-ours-s2")


def test_a_rate_is_chosen_on_validation_tasks_of_the_same_form(done):
    row = done["rates-omniglot-2w1s-finetune"]  # for the digits, which come two at a time
    assert row["rates"] == list(cases.RATES) and row["rate"] in cases.RATES
    best = max(zip(row["accuracy"], [-loss for loss in row["loss"]], row["rates"], strict=True), key=lambda r: r[:2])
    assert row["rate"] == best[2]
    assert PLAN.test(_plan_case("omniglot", 0, 2, 1), "finetune", 0, done).rate == row["rate"]


def test_courses_agree_with_ends_and_every_rate_is_there(done, root):
    for method in ("finetune", "ours", "maml", "lora"):
        values = _jobs.values_of(root, PLAN.test(_plan_case("omniglot", None, 3, 1), method, 0, done))
        assert values["loss"].shape == (6, 1) and values["course_loss"].shape == (4, 3)
        assert torch.equal(values["loss"][:4], values["course_loss"][:, -1:])
        others = [key for key in values if key.startswith("course_loss@")]
        assert len(others) == (4 if method == "finetune" else 0)
    assert values["course_loss"][:, 0].tolist() == pytest.approx([math.log(3)] * 4, rel=1e-5)  # a head of zeros


def test_the_rest_is_measured_as_the_first_were(tiny, done, root):
    """The end of tasks 4 to 6 is that of a course over all six."""
    job = PLAN.test(_plan_case("fewrel", None, 2, 1), "ours", 1, done)
    learner = _jobs.trained(job, root)
    tasks = _tasks.held_out_tasks(job.setup, 1, job.seed, None)
    whole = _measure.course(learner, tasks, 6, 2, steps=2)
    values = _jobs.values_of(root, job)
    torch.testing.assert_close(whole.end.loss, values["loss"])
    torch.testing.assert_close(whole.end.accuracy, values["accuracy"])


def test_fine_tuning_on_the_engine_is_that_of_the_fine_tuner(tiny, done, root):
    setup = TINY.setups["omniglot"]
    base = _backbones.backbone(setup, "omniglot", root)
    batch = next(iter(_tasks.held_out_tasks(setup, 1, 0, None)))
    fast = adaptation.learner("finetune", setup, base, 3, 3, rate=0.1)
    plain = MetaFineTuner(base, "all", None, steps=3, inner_lr=0.1)
    assert not isinstance(fast, MetaFineTuner)
    for mine, other in zip(fast.trajectory(batch, 3), plain.trajectory(batch, 3), strict=True):
        torch.testing.assert_close(mine["loss"], other["loss"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine["accuracy"], other["accuracy"].to(mine["accuracy"]))


def test_fine_tuning_by_hand_is_the_same_too(tiny, done, root):
    job = PLAN.cost(_plan_case("omniglot", None, 3, 1), done)
    base = _backbones.backbone(job.setup, "omniglot", root)
    batch = _tasks.validation_tasks(job.setup, 3, 1)[0]
    by_hand = _cost._by_hand(base, batch.support_x[0], batch.support_y[0], job)
    plain = MetaFineTuner(base, "all", None, steps=2, inner_lr=job.rate).adapt(batch.support_x[0], batch.support_y[0])
    torch.testing.assert_close(by_hand(batch.query_x[0]), plain(batch.query_x[0]), rtol=1e-4, atol=1e-5)


class Wild(torch.nn.Module):
    """A learner whose every task diverges."""

    def forward(self, batch, steps=None):
        raise ValueError("the losses of all tasks are not finite")

    def trajectory(self, batch, steps=None):
        tasks = len(batch)
        yield {"loss": torch.full((tasks,), 0.5), "accuracy": torch.full((tasks,), 0.25)}
        yield {"loss": torch.full((tasks,), math.nan), "accuracy": torch.ones(tasks)}


def test_a_learner_that_diverges_everywhere_is_worst(tiny, done, root):
    setup = TINY.setups["fewrel"]
    tasks = _tasks.validation_tasks(setup, 2, 1)
    tame = adaptation.learner("finetune", setup, _backbones.backbone(setup, "fewrel", root), 2, 2, rate=1e-3)
    found = [_measure.course(each, tasks, 4, 2, steps=None) for each in (Wild(), tame)]
    assert found[0].loss.tolist() == [[math.inf]] * 4 and found[0].accuracy.tolist() == [[0.0]] * 4
    assert _measure.better(found) == 1
    assert _measure.course(Wild(), tasks, 4, 2, steps=1).loss.tolist() == [[0.5, math.inf]] * 4


@pytest.mark.parametrize("name", ["omniglot", "fewrel"])
def test_a_rate_that_is_far_too_high_ends_no_choice(tiny, done, root, name):
    setup = TINY.setups[name]
    learner = adaptation.learner("finetune", setup, _backbones.backbone(setup, name, root), 2, 2, rate=1e30)
    tasks = _tasks.validation_tasks(setup, 2, 1)
    for steps in (None, 2):
        found = _measure.course(learner, tasks, 4, 2, steps=steps)
        assert found.loss[:, -1].mean() > 1e10


def test_padding_columns_are_left_out_and_change_nothing(tiny, done, root):
    setup = TINY.setups["fewrel"]
    given = next(iter(_tasks.validation_tasks(setup, 2, 1)))
    short = _tasks.prepared(given, 2)
    assert given.query_x.shape[-1] == 8 and short.query_x.shape[-1] == short.support_x.shape[-1] == 5
    learner = _jobs.trained(PLAN.test(_plan_case("fewrel", None, 2, 1), "ours", 0, done), root).eval()
    with torch.no_grad():
        torch.testing.assert_close(learner(short)[1]["loss"], learner(given)[1]["loss"], rtol=1e-5, atol=1e-6)


def test_a_target_has_the_form_of_the_backbones_pictures(tiny):
    setup = TINY.setups["omniglot"]
    batch = next(iter(_tasks.held_out_tasks(setup, 1, 0, setup.targets[0])))
    assert batch.query_x.shape == (3, 4, 1, 16, 16)


def test_a_model_of_transformers_gets_its_own_tokens_and_pictures(monkeypatch):
    asked = []

    def few_shot(name, **options):
        asked.append((name, options))
        found = cases.few_shot("letters")
        return type(found)(*(part.resized(channels=3) for part in found)) if "size" in options else found

    monkeypatch.setattr(_tasks, "few_shot", few_shot)
    monkeypatch.setattr(_tasks, "_tokenizer", lambda model: f"tokens of {model}")
    assert _tasks._splits("few_rel_words", "text") and _tasks._splits("clinc_words", "a/bert")
    pictures = _tasks._splits("cifar_fs", "a/resnet").test
    assert asked == [
        ("few_rel_words", {}),
        ("clinc_oos", {"tokenizer": "tokens of a/bert"}),
        ("cifar_fs", {"size": 224}),
    ]
    assert pictures.mean == (0.485, 0.456, 0.406)


def test_stopped_within_a_meta_training_it_goes_on_to_the_same(tiny, done, folder, tmp_path):
    job = next(job for job in PLAN.metas() if job.name == "meta-omniglot-3w1s-ours-s1")
    (tmp_path / "runs").mkdir()
    (tmp_path / "backbones").symlink_to(folder / "backbones")
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked in (3, 4)  # the second step, and the beginning of the next call

    for _ in range(2):
        with pytest.raises(StoppedError):
            adaptation.do(job, tmp_path / "runs", nothing, stop)
    seen = []
    adaptation.do(job, tmp_path / "runs", seen.append, stop)
    assert seen[-1] == job.steps and seen.count(job.steps) == 1
    before, after = (root / job.name / BEST for root in (folder / "runs", tmp_path / "runs"))
    assert before.read_bytes() == after.read_bytes()


def test_a_job_killed_before_its_first_word_is_begun_anew(tiny, done, folder, tmp_path):
    job = PLAN.test(_plan_case("omniglot", None, 3, 1), "probe", 0, done)
    (tmp_path / "backbones").symlink_to(folder / "backbones")
    (tmp_path / "runs" / job.name).mkdir(parents=True)
    adaptation.do(job, tmp_path / "runs", nothing, lambda: False)
    row = _jobs.row_of(Run.open(tmp_path / "runs" / job.name))
    assert {**row, **dict.fromkeys(CLOCK)} == {**done[job.name], **dict.fromkeys(CLOCK)}


def test_all_tasks_may_be_the_first_ones(tiny, done, folder, tmp_path):
    """As in the smallest and the largest recipe: the end of a course of one point is that course."""
    (tmp_path / "backbones").symlink_to(folder / "backbones")
    recipe = dataclasses.replace(TINY, hindsight=TINY.episodes)
    job = dataclasses.replace(PLAN.test(_plan_case("omniglot", None, 3, 1), "probe", 0, done), recipe=recipe)
    (tmp_path / "runs").mkdir()
    adaptation.do(job, tmp_path / "runs", nothing, lambda: False)
    values = _jobs.values_of(tmp_path / "runs", job)
    assert torch.equal(values["loss"], values["course_loss"]) and values["loss"].shape == (6, 1)


def test_the_clock_takes_every_method(done):
    row = done["cost-omniglot-3w1s"]
    assert set(row["methods"]) == {*adaptation.METHODS} - {"none"} | {_cost.HAND, _cost.ENGINE}
    assert all(each["seconds"] > 0 for each in row["methods"].values())
    assert set(row["ratios"]) == {"finetune", _cost.HAND, _cost.ENGINE}
    text = done["cost-fewrel-2w1s"]
    assert _cost.ENGINE not in text["methods"]  # there is none for texts
    assert text["network"] > 0 and text["backbone"] > text["network"]


def test_shares_count_tasks_below_the_best_of_all_rates():
    values = {
        "course_loss": torch.tensor([[1.0, 0.5], [1.0, 0.9]]),
        "course_loss@0.1": torch.tensor([[1.0, 0.7], [1.0, 0.2]]),
        "course_accuracy@0.1": torch.zeros(2, 2),
        "loss": torch.zeros(2, 1),
    }
    lowest = _summaries.lowest(values)
    assert lowest.tolist() == torch.tensor([[1.0, 0.5], [1.0, 0.2]]).tolist()
    assert _summaries.below(torch.tensor([0.4, 0.3]), lowest[:, 1]) == 0.5
    assert _summaries.below(torch.tensor([math.inf]), torch.tensor([math.inf])) == 0.0


@pytest.mark.parametrize(
    ("accuracies", "letters", "transfer"),
    [((0.90, 0.86, 0.90), True, True), ((0.88, 0.86, 0.70), False, True), ((0.9, 0.86, 0.91), False, True),
     ((0.5, 0.6, 0.4), False, False)],
)  # fmt: skip
def test_verdicts_follow_the_numbers(done, folder, accuracies, letters, transfer):
    found = _summaries.summaries(PLAN, done, folder / "runs")
    table = dict(zip(("ours", "finetune", "probe"), accuracies, strict=True))
    moved = [dataclasses.replace(each, accuracy=table.get(each.method, each.accuracy)) for each in found]
    shares = [
        dataclasses.replace(each, best={"1": 0.85, "2": 0.79})
        for each in _summaries.shares(PLAN, done, folder / "runs")
    ]
    made = _verdicts.verdicts(PLAN, moved, shares, done)
    reached = {each.aim.split(":")[0]: each.reached for each in made}
    first, last = (each.reached for each in made[:2])
    assert (first, last) == (True, False)
    assert reached["Omniglot 20-way 1-shot"] is letters
    assert reached["Transfer to data that meta-training never saw (images)"] is transfer
    assert made[2].text.startswith(f"{100 * accuracies[0]:.1f}")


def test_what_is_not_run_is_not_judged(done, folder):
    plan = dataclasses.replace(PLAN, names=("fewrel",))
    root = folder / "runs"
    made = _verdicts.verdicts(plan, _summaries.summaries(plan, done, root), _summaries.shares(plan, done, root), done)
    assert [each.reached for each in made if each.aim.startswith("Omniglot 20-way")] == [None]
    assert "not judged" in str(made[2])


def test_report_is_one_file_with_all_methods(done, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = adaptation.results(PLAN, folder, done)
    files = adaptation.write(found, tmp_path, "metafast run rapid-adaptation")
    text = files[0].read_text()
    assert text.count("data:image/svg+xml;base64,") == 6
    assert all(title in text for title in adaptation.METHODS.values())
    json.loads(files[1].read_text())
    assert adaptation.table(found, "fewrel").row_count == len(adaptation.METHODS)


def test_recipes_are_whole():
    assert list(adaptation.RECIPES) == ["smoke", "reduced", "full"]
    for recipe in adaptation.RECIPES.values():
        assert list(recipe.setups) == ["omniglot", "cifar", "fewrel"]
        assert recipe.hindsight <= recipe.episodes
        for setup in recipe.setups.values():
            assert len(setup.rates) == len(setup.probe_rates) == 5
    full = adaptation.RECIPES["full"]
    assert (full.steps, full.episodes, full.seeds) == (5, 600, 3)
    assert {(setup.tasks, setup.meta_steps) for setup in full.setups.values()} == {(32, 10_000)}


def _plan_case(setting, target, ways, shots):
    return adaptation.Case(setting, target, ways, shots)
