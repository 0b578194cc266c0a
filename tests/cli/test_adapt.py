"""`metafast adapt`: train, evaluate, adapt, export, report; twice, resumed, and with wrong options."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from metafast.adapt import MetaFineTuner
from metafast.cli import _adapt_train, build_app
from metafast.cli._adapt_setup import load_backbone, parse_adapt
from metafast.runs import Run

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'metafast[hf]'")
SMALL = (
    "--dataset digits --ways 3 --queries 2 --tasks 2 --iterations 4 --steps 2 --val-every 2 --val-episodes 4 "
    "--test-episodes 4 --order 1 --net alfa"
).split()


def call(*arguments):
    return CliRunner().invoke(build_app("adapt"), ["adapt", *map(str, arguments)])


def train_on(places):
    return ["train", "--backbone", places / "resnet", *SMALL, "--adapt", "*.convolution=lora:r=2"]


def words(result):
    """The output without colours and boxes, on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", result.output).replace("│", " ").split())


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A small ResNet as a folder of transformers, and pictures of three kinds of stripes as a data set."""
    from datasets import Dataset, DatasetDict
    from PIL import Image
    from transformers import ResNetConfig, ResNetModel

    root = tmp_path_factory.mktemp("adapt")
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).save_pretrained(
        root / "resnet"
    )
    generator = torch.Generator().manual_seed(0)

    def picture(label):
        noise = torch.rand(16, 16, generator=generator) * 80
        return Image.fromarray((noise + 150 * (torch.arange(16) % (label + 2) == 0)).to(torch.uint8).numpy())

    rows = [(picture(label), label) for label in range(20) for _ in range(4)]
    part = Dataset.from_dict({"image": [row[0] for row in rows], "label": [row[1] for row in rows]})
    folder = root / "data" / "digits"
    folder.mkdir(parents=True)
    for split, found in DatasetDict({"train": part, "test": part}).items():
        found.to_parquet(folder / f"{split}.parquet")
    for label in range(3):
        (root / "support" / f"kind{label}").mkdir(parents=True)
        picture(label).save(root / "support" / f"kind{label}" / "one.png")
    return root


@pytest.fixture
def _data(places, monkeypatch):
    monkeypatch.setenv("METAFAST_DATA", str(places / "data"))


@pytest.fixture(scope="module")
def trained(places):
    before = os.environ.get("METAFAST_DATA")
    os.environ["METAFAST_DATA"] = str(places / "data")
    try:
        result = call(
            "train",
            "--backbone",
            places / "resnet",
            *SMALL,
            "--output",
            places / "out",
            "--adapt",
            "*.convolution=lora:r=2",
        )
    finally:
        os.environ.pop("METAFAST_DATA")
        if before is not None:
            os.environ["METAFAST_DATA"] = before
    assert result.exit_code == 0, result.output
    return places / "out" / "runs" / "digits-3w1s-adapt-seed0-001", result


@pytest.mark.parametrize("command", ["", "train", "evaluate", "adapt", "export", "report"])
def test_help_of_each_command(command):
    result = call(*filter(None, [command]), "--help")
    assert result.exit_code == 0 and "--help" in words(result)


def test_help_does_not_load_torch():
    code = "import sys; from metafast.cli import main\ntry: main(['adapt', '--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["lora:r=4"], "lora:r=4"),
        (["film"], "film"),
        (["*.query=lora:r=4"], {"*.query": "lora:r=4"}),
        (["*.query=lora:r=8,alpha=2", "*Norm=norm"], {"*.query": "lora:r=8,alpha=2", "*Norm": "norm"}),
    ],
)
def test_adapt_is_read(given, expected):
    assert parse_adapt(given) == expected


def test_train_writes_a_record_and_what_it_reached(trained):
    run, result = trained
    for text in ("meta-network:", "4 meta-steps", "fine-tuning, the same adapters", "step 2"):
        assert text in words(result)
    results = json.loads((run / "results.json").read_text())
    assert set(results["test"]) == {"meta-network", "fine-tuning, the same adapters"}
    assert len(results["test"]["meta-network"]["per_step"]) == 3
    assert Run.open(run).status == "finished" and (run / "meta.safetensors").is_file()


@pytest.mark.usefixtures("_data")
def test_resume_goes_on_with_the_interrupted_run(trained, places, monkeypatch):
    run, _ = trained
    arguments = [*train_on(places), "--output", places / "again"]
    step = torch.optim.Adam.step
    count = iter(range(100))

    def interrupted(self, *args, **kwargs):
        if next(count) == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    result = call(*arguments, "--no-baseline")
    assert result.exit_code == 130 and "go on with the same command and --resume" in words(result)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    result = call(*arguments, "--no-baseline", "--resume")
    assert result.exit_code == 0, result.output
    first, second = (load_file(each / "meta.safetensors") for each in (run, places / "again" / "runs" / run.name))
    assert all(torch.equal(first[name], second[name]) for name in first)
    result = call(*arguments, "--resume")
    assert result.exit_code == 2 and "nothing to go on with" in words(result)


@pytest.mark.usefixtures("_data")
def test_evaluate(trained, tmp_path):
    result = call("evaluate", trained[0], "--episodes", 4, "--steps", 1, "--ways", 2, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "eval_digits_test.json").read_text())
    assert document["ways"] == 2 and len(document["per_step"]) == 2


@pytest.mark.usefixtures("_data")
def test_adapt_to_a_test_task(trained, tmp_path):
    result = call("adapt", trained[0], "--task", 1, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "3 support and 6 query examples" in words(result)
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predictions["predictions"]) == 6 and predictions["score_name"] == "accuracy"
    assert "head.weight" in load_file(tmp_path / "adapted.safetensors")


@pytest.mark.usefixtures("_data")
def test_adapt_to_a_folder(trained, places, tmp_path):
    support = places / "support"
    result = call("adapt", trained[0], "--support", support, "--query", support, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    predictions = json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    assert {row["class"] for row in predictions} <= {"kind0", "kind1", "kind2"}
    with safe_open(tmp_path / "adapted.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["classes"]) == ["kind0", "kind1", "kind2"]


@pytest.mark.usefixtures("_data")
def test_export_of_adapters_and_of_the_whole(trained, places, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'metafast[peft]'")
    from metafast.adapt import TaskModel

    base, _ = load_backbone(str(places / "resnet"))
    result = call("export", trained[0], "--output", tmp_path / "peft")
    assert result.exit_code == 0, result.output
    model, x = TaskModel.from_peft(base, tmp_path / "peft"), torch.randn(2, 1, 16, 16)
    result = call("export", trained[0], "--merged", "--output", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    merged, _ = load_backbone(str(tmp_path / "merged"))
    head = load_file(tmp_path / "peft" / "head.safetensors")
    assert torch.allclose(torch.nn.functional.linear(merged(x), **head), model(x), atol=1e-5)


def test_report(trained):
    result = call("report", trained[0])
    assert result.exit_code == 0, result.output
    assert "meta-network:" in words(result) and "lora" in words(result)


def test_the_file_loads_in_python(trained, places):
    base, _ = load_backbone(str(places / "resnet"))
    assert MetaFineTuner.load(trained[0] / "meta.safetensors", base).steps == 2


@pytest.mark.usefixtures("_data")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing option '--backbone'"),
        (["train", "--backbone", "/no/such/folder"], "/no/such/folder"),
        (["train", "--backbone", "RESNET", *SMALL, "--adapt", "*.query=lora"], "matches no module"),
        (
            ["train", "--backbone", "RESNET", *SMALL, "--adapt", "film", "--adapt", "x=norm"],
            "must be one kind, or pattern=kind",
        ),
        (["train", "--backbone", "RESNET", *SMALL, "--net", "alpha"], "net must be parts out of"),
        (["train", "--backbone", "RESNET", *SMALL, "--device", "tpu"], "device must be cpu or cuda"),
        (["evaluate", "nowhere"], "nowhere"),
        (["adapt", "RUN", "--query", "x"], "--query needs --support"),
        (["adapt", "RUN", "--support", "nowhere"], "nowhere is no folder"),
        (["export", "RUN"], "Missing option '--output'"),
    ],
)
def test_wrong_options(trained, places, arguments, message, tmp_path):
    known = {"RESNET": places / "resnet", "RUN": trained[0]}
    result = call(*[known.get(each, each) for each in arguments])
    assert result.exit_code == 2 and message in words(result), result.output


def test_every_rate_of_the_baseline_is_tried(trained):
    rate = json.loads((trained[0] / "results.json").read_text())["test"]["fine-tuning, the same adapters"]["rate"]
    assert rate in _adapt_train.RATES
