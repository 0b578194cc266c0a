"""Learning experiments run from their recipes, resume by seed, never choose on test classes, and say what missed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks.maml import learning, learning_report
from benchmarks.maml.learning_results import Results
from metafast import maml, models
from metafast.maml.baselines import BASELINES

RECIPES = sorted(path.stem for path in learning.RECIPES.glob("*.json"))
SHORT = [
    "--set",
    "defaults.iterations=4",
    "MAML.iterations=4",
    "pre-trained on all curves, fine-tuned.iterations=4",
    "data.tasks=4",
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(learning, "TEST_EPISODES", 20)
    monkeypatch.setattr(learning, "VAL_EPISODES", 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_what_exists(name: str) -> None:
    recipe = learning.recipe_of(name)
    assert hasattr(models, recipe["model"]["kind"])
    assert recipe["metric"] in ("accuracy", "mse")
    for method, options in recipe["methods"].items():
        assert options.get("baseline", "random") in BASELINES
        assert options.get("algorithm", "maml") in {*maml.ALGORITHMS, "protonet"}
        assert ("baseline" in options) != ("algorithm" in options)
        settings = learning.settings_of(recipe, method)
        assert settings["iterations"] >= 1
        assert "target" not in settings  # a target must not look like a setting
        if "algorithm" in settings:
            assert isinstance(learning.learner_of(recipe, settings, 0), maml.MetaLearner)
    assert set(recipe.get("margin", {}).get("over", ())) <= set(recipe["methods"])


def test_command_runs_resumes_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sinusoid.json"
    arguments = ["sinusoid", "--seeds", "0", "1", "--runs", str(tmp_path / "runs"), "--output", str(output)]
    learning.main([*arguments, *SHORT])
    content = json.loads(output.read_text(encoding="utf-8"))
    assert len(content["rows"]) == 2 * len(learning.recipe_of("sinusoid")["methods"])
    row = content["rows"]["MAML | 0"]
    assert row["test"]["episodes"] == 20
    assert row["curve"][-1][0] == 4
    assert {"minutes", "commit", "machine", "threads", "seed", "settings"} <= row.keys()
    assert output.with_suffix(".png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "≤ 0.85: **missed**" in printed

    monkeypatch.setattr(learning, "meta_train", lambda *_, **__: pytest.fail("everything is there"))
    learning.main([*arguments, *SHORT])
    with pytest.raises(SystemExit, match="other settings"):
        learning.main([*arguments, *SHORT, "MAML.meta_lr=0.01"])


def test_test_classes_are_seen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and every choice come before the first test episode, and methods share the test episodes."""
    order: list[tuple[str, int]] = []
    real_tasks, real_evaluate = learning.tasks_of, learning.evaluate

    def tasks(recipe: Any, split: str, seed: int) -> Any:
        made = real_tasks(recipe, split, seed)
        order.append((split, made.seed))
        return made

    def evaluate(learner: Any, episodes: Any, n: int, **options: Any) -> Any:
        order.append(("evaluated", episodes.seed))
        return real_evaluate(learner, episodes, n, **options)

    monkeypatch.setattr(learning, "tasks_of", tasks)
    monkeypatch.setattr(learning, "evaluate", evaluate)
    recipe = learning.recipe_of("sinusoid", [*SHORT[1:], "MAML.test_steps=[1, 2]"])
    learning.meta_train("sinusoid", recipe, "MAML", 3, tmp_path)
    test = ("test", learning.TEST_SEED + 3)
    assert order.count(test) == 1
    assert [what for what, _ in order[order.index(test) :]] == ["test", "evaluated"]
    assert order[-1] == ("evaluated", learning.TEST_SEED + 3)
    assert ("evaluated", learning.VAL_SEED + 3) in order


def test_two_processes_may_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first, second = (Results(path, "n", {"metric": "mse"}) for _ in range(2))
    first.add("A", 0, {"settings": {}, "seed": 0})
    second.add("B", 0, {"settings": {}, "seed": 0})
    assert set(Results(path, "n", {}).content["rows"]) == {"A | 0", "B | 0"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_report_compares_with_targets_and_baselines() -> None:
    def row(mean: float, seed: int, minutes: float = 10.0) -> dict[str, Any]:
        return {
            "test": {"mean": mean, "half_width": 0.01, "episodes": 600}, "seed": seed, "minutes": minutes, "threads": 1,
            "test_steps": 1, "iterations": 5, "settings": {"steps": 1}, "commit": "abc",
            "machine": {"cpu": "c", "torch": "t"},
        }  # fmt: skip

    recipe = {
        "title": "t", "source": "s", "metric": "accuracy",
        "methods": {"MAML": {"target": 88.0, "target_minutes": 30}, "tuned": {}},
        "margin": {"over": ["tuned"], "points": 8.0},
    }  # fmt: skip
    content = {
        "recipe": recipe,
        "rows": {"MAML | 0": row(0.88, 0), "MAML | 1": row(0.89, 1), "tuned | 0": row(0.81, 0)},
    }
    text = learning_report.table(content)
    assert "88.50 ± 0.71 | 88.00, 89.00" in text
    assert "≥ 88 in 30 minutes: reached" in text
    assert "MAML is +7.5 points over tuned (target: 8, **missed**)" in text
    content["rows"]["MAML | 1"] = row(0.89, 1, minutes=60)
    assert "in 30 minutes: **missed**" in learning_report.table(content)
