"""The convergence studies run, resume, and refuse to mix configurations; a few steps on the bundled digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.convergence import defaults, published_hd, robustness, study, tables
from benchmarks.convergence.pairs import PAIRS
from metafast import data, models

STEPS = ["--max-steps", "3", "--seeds", "1"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_robustness_runs_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "robustness.json"
    arguments = ["--pairs", "digits_cnn", *STEPS, "--output", str(output)]
    robustness.main(arguments)
    content = json.loads(output.read_text())
    summary = content["summary"]["digits_cnn"]
    assert set(summary["methods"]) == set(robustness.METHODS)
    assert 0 <= summary["methods"]["fixed"]["within_1_point"] <= 7
    assert content["machine"]["torch"] == torch.__version__
    assert output.with_suffix(".png").stat().st_size > 10_000

    removed = next(iter(content["rows"]))
    del content["rows"][removed]
    output.write_text(json.dumps(content))
    runs = []
    monkeypatch.setattr(robustness, "train", lambda *args, **options: runs.append(args) or summarised)
    summarised = next(iter(content["rows"].values()))
    robustness.main(arguments)
    assert len(runs) == 1
    with pytest.raises(SystemExit, match="another configuration"):
        robustness.main([*arguments, "--max-steps", "4"])


def test_defaults_never_sees_the_test_split(tmp_path: Path) -> None:
    output = tmp_path / "defaults.json"
    defaults.main(
        ["--pairs", "digits_cnn", "--methods", defaults.CHOSEN, "sign 0.02 global", *STEPS, "--output", str(output)]
    )
    content = json.loads(output.read_text())
    assert not any("test" in name for row in content["rows"].values() for name in row)
    assert content["summary"]["digits_cnn"]["methods"][defaults.CHOSEN]["within_1_point"] >= 0
    assert len(PAIRS) >= 5


def test_published_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.digits()
    monkeypatch.setattr(published_hd, "mnist", lambda split: digits.train if split == "train" else digits.test)
    monkeypatch.setitem(published_hd.MODELS, "logreg", lambda seed: models.LogisticRegression(64, 10, seed=seed))
    output = tmp_path / "published.json"
    published_hd.main(["--models", "logreg", *STEPS, "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert {key.split(" | ")[1] for key in rows} == set(published_hd.PUBLISHED["logreg"])
    assert rows["logreg | sgd_hd | 0"]["final_lr"] != 1e-3
    assert rows["logreg | sgd | 0"]["valid_loss"] > rows["logreg | sgd_hd | 0"]["valid_loss"]


@pytest.mark.parametrize("method", ["sgd_hd", "nesterov_hd", "adam_hd"])
def test_published_methods_follow_the_paper(method: str) -> None:
    """Against Algorithms 4 to 6 of Baydin et al. written out in float64."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3))
    opt = published_hd.optimizer(method, [weight])
    p, rate = weight.detach().double(), 1e-3
    u = m = v = buffer = torch.zeros_like(p)
    for step in range(1, 6):
        g = torch.randn(5, 3)
        weight.grad = g.clone()
        opt.step()
        grad = g.double() + 1e-4 * p
        rate += (1e-7 if method == "adam_hd" else 1e-3) * float((grad * u).sum())
        if method == "adam_hd":
            m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
            u = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        elif method == "nesterov_hd":
            buffer = 0.9 * buffer + grad
            u = grad + 0.9 * buffer
        else:
            u = grad
        p = p - rate * u
    torch.testing.assert_close(weight.detach().double(), p, rtol=1e-5, atol=1e-7)
    assert opt.learned_lr()[0] == pytest.approx(rate, rel=1e-5)


def test_means_keep_diverged_runs_visible() -> None:
    assert study.mean([1.0, 3.0]) == 2.0
    assert study.mean([1.0, None]) != study.mean([1.0, None])
    assert study.spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert study.rounded(float("inf")) is None


def test_readme_shows_the_results() -> None:
    text = tables.README.read_text(encoding="utf-8")
    assert tables.render(text) == text, "run python -m benchmarks.convergence.tables"
    with pytest.raises(ValueError, match="one block"):
        tables.render("")
