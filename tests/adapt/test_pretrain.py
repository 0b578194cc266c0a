"""Own backbones: trained on real data, kept and read again, gone on with to the same weights, or refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("datasets", reason="needs the hf extra")
pytest.importorskip("transformers", reason="needs the hf extra")

from metafast.adapt import _pretrain, _pretrain_text, freeze, pretrain, pretrained
from metafast.adapt._pretrain_check import quality
from metafast.adapt._pretrain_pictures import Pictures
from metafast.adapt._pretrain_recipes import RECIPES
from metafast.adapt._pretrain_text import TextEncoder
from metafast.cli import build_app
from metafast.data import ClassSet, encode_relations
from metafast.runs import Run


@pytest.fixture
def small(monkeypatch):
    """Omniglot by three alphabets, in a few steps."""
    recipe = RECIPES["omniglot"]
    train, val = (ClassSet(np.random.default_rng(i).integers(0, 256, (120, 1, 28, 28), dtype=np.uint8),
                           np.arange(120) % 6, tuple(f"{i}-{k}" for k in range(6))) for i in range(2))  # fmt: skip
    small = replace(
        recipe, data=lambda: (Pictures(train, turned=True), {"toy": val}), size=20, sizes={"channels": 8},
        checks=((3, 1),),
    )  # fmt: skip
    monkeypatch.setitem(RECIPES, "omniglot", small)
    return small


@pytest.mark.parametrize("objective", ["classes", "episodes"])
def test_trained_kept_and_read_again(objective, small, tmp_path):
    steps: list[int] = []
    file = tmp_path / "own.safetensors"
    base = pretrain("omniglot", file, steps=6, objective=objective, episodes=10, progress=steps.append)
    assert steps == [1, 2, 3, 4, 5, 6] and base.width == 8
    assert set(base.about["validation"]["toy, 3-way 1-shot"]) == {"prototypes", "probe"}
    x = torch.randn(2, 1, 28, 28)
    for again in (
        pretrained("omniglot", file),
        pretrained(file),
        pretrain("omniglot", file, steps=6, objective=objective),
    ):
        assert torch.equal(again(x), base(x)) and again.about == base.about
    assert Run.open(tmp_path / "own-run").status == "finished"
    with pytest.raises(ValueError, match="holds a backbone of steps 6, not 7"):
        pretrain("omniglot", file, steps=7, objective=objective)
    with pytest.raises(ValueError, match="holds the backbone 'omniglot', not 'cifar'"):
        pretrained("cifar", file)


def test_an_interrupted_training_goes_on_to_the_same_weights(small, tmp_path):
    def stop(step):
        if step == 5:
            raise KeyboardInterrupt

    whole = pretrain("omniglot", tmp_path / "a.safetensors", steps=30, episodes=4)
    with pytest.raises(KeyboardInterrupt):
        pretrain("omniglot", tmp_path / "b.safetensors", steps=30, episodes=4, progress=stop)
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(ValueError, match="holds a backbone of seed 0, not 1"):
        pretrain("omniglot", tmp_path / "b.safetensors", steps=30, seed=1)
    steps: list[int] = []
    resumed = pretrain("omniglot", tmp_path / "b.safetensors", steps=30, episodes=4, progress=steps.append)
    assert steps == [*range(4, 31)]  # step 3 was the last one kept
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    (tmp_path / "b.safetensors").unlink()
    again = pretrain("omniglot", tmp_path / "b.safetensors", steps=30, episodes=4)
    assert torch.equal(next(again.parameters()), next(whole.parameters()))


def test_what_is_wrong_is_said(small, tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of \['omniglot', 'cifar', 'text'\], got 'mnist'"):
        pretrain("mnist", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="objective must be one of"):
        pretrain("omniglot", tmp_path / "a.safetensors", objective="proto")
    with pytest.raises(FileNotFoundError, match="metafast adapt pretrain omniglot"):
        pretrained(tmp_path / "none.safetensors")
    file = tmp_path / "own.safetensors"
    pretrain("omniglot", file, steps=1, episodes=4)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        pretrained(file)


def test_the_command_makes_it_once(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["adapt", "pretrain", "omniglot", "--steps", "2"]
    first = CliRunner().invoke(build_app("adapt"), command)
    assert first.exit_code == 0, first.output
    assert "Wrote" in first.output and "nearest prototypes" in first.output
    assert _pretrain.default_file("omniglot").is_file()
    assert "Found" in CliRunner().invoke(build_app("adapt"), command).output
    wrong = CliRunner().invoke(build_app("adapt"), [*command, "--output", "a.pt"])
    assert wrong.exit_code == 2 and ".safetensors" in wrong.output


@pytest.mark.parametrize("name", ["omniglot", "cifar"])
def test_real_pictures_are_of_training_classes(name, data_folder):
    data_folder({"cifar": "cifar100"}.get(name, name))
    examples, val = RECIPES[name].data()
    [held_out] = val.values()
    assert not set(examples.classes.names) & set(held_out.names)
    random = np.random.default_rng(0)
    x, y = examples.batch(random, 30, 5)
    assert x.shape[0] == 30 and y.view(-1, 5).eq(y.view(-1, 5)[:, :1]).all() and y.max() < examples.outputs
    x, y = examples.batch(random, 16, 1)
    assert torch.isfinite(freeze(RECIPES[name].network(), head=False)(x)).all()


def test_a_words_place_is_its_segment():
    head, tail = {"indices": [[1]]}, {"indices": [[4, 5]]}
    words = ["a", "rome", "b", "c", "italy", "s", "d"]
    both = encode_relations([words] * 2, [head, tail], [tail, head], style="sequence", length=13)
    encoder = TextEncoder(dim=8, layers=1, heads=2, filters=4)
    # a <h> rome </h> b c <t> italy s </t> d
    assert encoder.places(torch.from_numpy(both).long()).tolist() == [
        [1, 2, 2, 4, 4, 4, 3, 3, 3, 6, 6, 0, 0],
        [1, 3, 3, 5, 5, 5, 2, 2, 2, 6, 6, 0, 0],
    ]
    base = freeze(encoder, head=False)
    assert (base.width, base.length, base.padding) == (4, 48, 0)
    tokens = torch.from_numpy(both).long()
    torch.testing.assert_close(base(tokens), base(tokens[:, :11]))


def test_the_text_recipe_reads_real_text_and_its_words_stay(data_folder, monkeypatch):
    table = torch.nn.functional.normalize(torch.randn(2**14, 128), dim=1)  # the real one takes a while
    monkeypatch.setattr(_pretrain_text, "word_table", lambda dim: table)
    for name in ("few_rel", "ag_news", "imdb", "squad_v2", "clinc_oos"):
        data_folder(name)
    examples, val = RECIPES["text"].data()
    assert set(val) == {"few_rel_words", "clinc_words"}
    first, second = examples.pairs(np.random.default_rng(0), 6)
    assert len(first) == len(second) == 6 and first.shape[1] <= 48
    network = RECIPES["text"].network(seed=0)
    before = network.words.clone()
    whole = torch.nn.ModuleDict({"network": network})
    recipe = replace(RECIPES["text"], objective="episodes", pairs=1.0)
    _pretrain._loss(whole, examples, recipe, np.random.default_rng(0)).backward()
    assert network.words.grad is None and network.convolution.weight.grad.any()
    assert torch.equal(network.words, before) and before.norm(dim=1).max() < 1.01


def test_quality_is_that_of_the_features():
    points = torch.eye(4).repeat_interleave(30, 0) + 0.01 * torch.randn(120, 4)
    classes = ClassSet(points.numpy(), np.arange(120) // 30, tuple("abcd"))
    base = freeze(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Identity()), head=False)
    with torch.no_grad():
        base.model[0].weight.copy_(torch.eye(4))
        base.model[0].bias.zero_()
    found = quality(base, classes, ways=3, n=5)
    assert found["prototypes"].mean == found["probe"].mean == 1.0
