"""The models of the experiments: sizes, seeds, learning, wrong arguments, and encoders from a folder."""

import pytest
import torch
from torch import nn

from metafast.models import (
    BertClassifier,
    DeepSpeech,
    LSTMForecaster,
    ResNet18,
    RNNClassifier,
    RobertaClassifier,
    SequenceTransformer,
    ViT,
)

TEXTS = ["a very good film", "bad", "good good", "so bad and dull"]


def small_bert(kind=BertClassifier, **options):
    return kind(2, **{"length": 8, "buckets": 100, "dim": 16, "layers": 1, "heads": 2, **options})


def small_vit(**options):
    return ViT(3, 5, 16, **{"dim": 16, "layers": 2, "heads": 2, **options})


BUILDERS = {
    "resnet18": (lambda **o: ResNet18(3, 5, width=4, **o), torch.randn(10, 3, 16, 16), 5),
    "lstm": (lambda **o: LSTMForecaster(3, hidden=8, layers=2, **o), torch.randn(10, 7), 3),
    "bert": (small_bert, torch.randint(1, 100, (10, 8)), 2),
    "roberta": (lambda **o: small_bert(RobertaClassifier, **o), torch.randint(1, 100, (10, 8)), 2),
    "vit": (small_vit, torch.randn(10, 3, 16, 16), 5),
    "tokens": (lambda **o: SequenceTransformer(3, 7, buckets=50, dim=8, **o), torch.randint(1, 50, (10, 7)), 3),
    "values": (lambda **o: SequenceTransformer(3, 7, dim=8, **o), torch.randn(10, 7), 3),
    "rnn": (lambda **o: RNNClassifier(50, 3, dim=8, hidden=8, layers=2, **o), torch.randint(1, 50, (10, 7)), 3),
    "gru": (lambda **o: RNNClassifier(50, 3, kind="gru", pool="last", **o), torch.randint(1, 50, (10, 7)), 3),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_shape_seed_and_gradient(name):
    build, x, width = BUILDERS[name]
    before = torch.get_rng_state()
    model, twin, other = build(seed=1).eval(), build(seed=1).eval(), build(seed=2).eval()
    assert torch.equal(before, torch.get_rng_state())
    out = model(x)
    assert out.shape == (10, width)
    assert torch.equal(out, twin(x)) and not torch.equal(out, other(x))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_resnet18_has_the_usual_size_and_fits_ten_pictures():
    count = sum(p.numel() for p in ResNet18(3, 10).parameters())
    assert count == 11_173_962
    model, x, y = ResNet18(3, 5, width=4, seed=0), torch.randn(10, 3, 16, 16), torch.arange(10) % 5
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert (model(x).argmax(1) == y).all()


def test_the_forecaster_learns_a_wave_and_takes_several_features():
    wave = torch.sin(torch.arange(80) / 3).unfold(0, 12, 1)
    model = LSTMForecaster(4, hidden=16, dropout=0.0, seed=0)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(wave[:, :8]), wave[:, 8:])
        loss.backward()
        opt.step()
    assert loss < 0.05
    assert LSTMForecaster(4, features=3)(torch.zeros(2, 8, 3)).shape == (2, 4)


@pytest.mark.parametrize("kind", [BertClassifier, RobertaClassifier])
def test_encoders_encode_what_they_read_and_ignore_padding(kind):
    model = small_bert(kind, seed=0).eval()
    tokens = model.encode(TEXTS)
    assert tokens.shape == (4, 8) and tokens[:, 0].eq(100).all() and tokens[1, 2:].eq(0).all()
    assert torch.equal(model.encode(["bad"]), model.encode(["BAD!"]))
    short = small_bert(kind, seed=0, length=8).eval()
    torch.testing.assert_close(model(tokens[1:2]), short(tokens[1:2, :2]))


@pytest.mark.parametrize(
    ("kind", "name", "positions"), [(BertClassifier, "Bert", 12), (RobertaClassifier, "Roberta", 13)]
)
def test_encoders_from_a_folder(tmp_path, kind, name, positions):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"])
    )
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=positions, pad_token_id=0,
    )  # fmt: skip
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path)
    model = kind(3, str(tmp_path), length=6, seed=0).eval()
    tokens = model.encode(["good film", "bad"])
    assert tokens.shape == (2, 6) and tokens[1].tolist()[3:] == [0, 0, 0]
    assert model(tokens).shape == (2, 3)
    with pytest.raises(ValueError, match="length must be at most 12, the positions of"):
        kind(2, str(tmp_path), length=13)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_changes_nothing_for_recurrent_classifiers(kind, pool):
    model = RNNClassifier(50, 3, kind=kind, pool=pool, seed=0)
    tokens = torch.tensor([[5, 7, 9, 0, 0], [4, 0, 0, 0, 0]])
    torch.testing.assert_close(model(tokens[:1]), model(tokens[:1, :3]))
    torch.testing.assert_close(model(tokens)[1:], model(tokens[1:, :1]))
    assert model(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()
    assert not torch.equal(model(tokens[:1]), model(tokens[:1].flip(1)))  # order counts


def test_vit_has_the_size_of_the_tiny_one_and_fits_ten_pictures():
    count = sum(p.numel() for p in ViT(3, 1000, 224, patch=16, dim=192, layers=12, heads=3).parameters())
    assert count == 5_717_416 - 2 * 192  # DeiT-Tiny's without a class token and its position
    model, x, y = small_vit(seed=0), torch.randn(10, 3, 16, 16), torch.arange(10) % 5
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    assert (model(x).argmax(1) == y).all()


def test_bert_without_a_model_or_transformers(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"neither a folder nor in the cache(.|\n)*leave name out"):
        BertClassifier(2, str(tmp_path / "nothing"))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'metafast\[hf\]'"):
        BertClassifier(2)
    with pytest.raises(ImportError, match=r"models.RobertaClassifier needs the transformers package"):
        RobertaClassifier(2)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ResNet18(3, 10, width=0), ValueError, "width must be at least 1"),
        (lambda: ResNet18(3, 10.0), TypeError, "classes must be an integer"),
        (lambda: LSTMForecaster(0), ValueError, "horizon must be at least 1"),
        (lambda: LSTMForecaster(3, dropout=1.0), ValueError, "dropout must be at least 0 and below 1"),
        (lambda: LSTMForecaster(3, dropout="half"), TypeError, "dropout must be a number"),
        (lambda: LSTMForecaster(3, layers=0), ValueError, "layers must be at least 1"),
        (lambda: small_bert(length=1), ValueError, "length must be at least 2"),
        (lambda: small_bert(heads=3), ValueError, "dim must be a multiple of heads=3"),
        (lambda: BertClassifier(2, name=3), TypeError, "name must be a text or None"),
        (lambda: small_bert(RobertaClassifier, layers=0), ValueError, "layers must be at least 1"),
        (lambda: small_vit(patch=5), ValueError, "image_size must be a multiple of patch=5, got 16"),
        (lambda: small_vit(heads=3), ValueError, "dim must be a multiple of heads=3, got 16"),
        (lambda: small_vit(layers=0.5), TypeError, "layers must be an integer"),
        (lambda: RNNClassifier(50, 3, kind="rnn"), ValueError, "kind must be 'lstm' or 'gru', got 'rnn'"),
        (lambda: RNNClassifier(50, 3, pool="max"), ValueError, "pool must be 'mean' or 'last', got 'max'"),
        (lambda: RNNClassifier(0, 3), ValueError, "buckets must be at least 1"),
    ],
)
def test_wrong_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_deep_speech_learns_three_utterances_by_ctc():
    model = DeepSpeech(4, 5, channels=16, hidden=16, stride=2, seed=0)
    x, y = torch.randn(3, 24, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 2], [3, 4], [2, 2]])
    assert model(x).shape == (3, 12, 5)
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        opt.zero_grad()
        scores = model(x).log_softmax(2).transpose(0, 1)
        nn.functional.ctc_loss(scores, y, torch.full((3,), 12), torch.full((3,), 2)).backward()
        opt.step()
    from metafast.metrics import ctc_decode

    assert ctc_decode(model(x)) == y.tolist()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SequenceTransformer(3, 7, dim=9, heads=4), "multiple of heads"),
        (lambda: SequenceTransformer(3, 7, dropout=1.0), "dropout"),
        (lambda: DeepSpeech(4, 5, stride=0), "stride"),
        (lambda: RNNClassifier(50, 3, dropout=-0.1), "dropout"),
    ],
)
def test_sequence_models_refuse_wrong_sizes(build, message):
    with pytest.raises(ValueError, match=message):
        build()
