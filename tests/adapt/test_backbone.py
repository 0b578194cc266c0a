"""Backbones: any model without its head, frozen, on the same memory, with errors before a layer's own."""

import pytest
import torch
import transformers
from torch import nn

from metafast import models
from metafast.adapt import Backbone, freeze
from metafast.adapt._share import share

PICTURES, TOKENS = torch.randn(3, 3, 32, 32), torch.randint(1, 100, (3, 12))
TOKENS[0, 5:] = 0
CLASSIFIERS = {
    "conv4": (lambda: models.Conv4(3, 5, 32, channels=8, track_running_stats=True), PICTURES, 8),
    "conv4-pool": (
        lambda: models.Conv4(3, 5, 32, channels=8, downsample="max_pool", track_running_stats=True), PICTURES, 32),
    "resnet12": (lambda: models.ResNet12(3, 5, widths=(4, 4, 8, 8), track_running_stats=True), PICTURES, 8),
    "resnet18": (lambda: models.ResNet18(3, 5, width=4), PICTURES, 32),
    "vit": (lambda: models.ViT(3, 5, 32, patch=8, dim=16, layers=1, heads=2), PICTURES, 16),
    "sequence": (lambda: models.SequenceTransformer(5, 12, buckets=100, dim=16, layers=1), TOKENS, 16),
    "cnn": (lambda: models.SentenceCNN(6, 5, length=12, filters=8), torch.randn(3, 6, 12, 1), 8),
    "mlp": (lambda: models.TextMLP(100, 5, dim=8, hidden=16), TOKENS, 16),
    "rnn": (lambda: models.RNNClassifier(100, 5, dim=8, hidden=16), TOKENS, 16),
}  # fmt: skip
SIZES = {
    "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip


def bert(kind: str = "BertModel", **more: int) -> nn.Module:
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **more)).eval()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gives_what_goes_into_its_head(name: str) -> None:
    make, x, width = CLASSIFIERS[name]
    model = make().eval()
    base = freeze(model)
    features = base(x)
    head = list(model.modules())[-1] if not hasattr(model, "classifier") else model.classifier
    assert features.shape == (3, width) and base.width == width
    torch.testing.assert_close(head(features), model(x))


@pytest.mark.parametrize("kind", [models.BertClassifier, models.RobertaClassifier])
def test_wrapped_encoders_give_mean_states_without_padding(kind: type[nn.Module]) -> None:
    model = kind(2, dim=16, layers=2, heads=2, length=12, buckets=100, seed=0)
    base = freeze(model)
    x = model.encode(["a very good film", "bad"])
    cut = base(x[1:, :2])  # the mark of the beginning and one word
    torch.testing.assert_close(base(x)[1:], cut)
    assert (base.width, base.length, base.vocabulary, base.padding) == (16, 12, 101, 0)
    with pytest.raises(ValueError, match="13 tokens per text, and the base has positions for 12"):
        base(torch.ones(1, 13, dtype=torch.int64))


def test_the_users_model_keeps_its_head_gradients_and_memory() -> None:
    model = models.Conv4(1, 5, 28, track_running_stats=True)
    base = freeze(model)
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in base.parameters())
    assert isinstance(model.classifier, nn.Linear) and model.training
    memory = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    assert {p.data_ptr() for p in (*base.parameters(), *base.buffers())} <= memory
    assert freeze(base) is base


def test_shared_copies_have_the_same_parameters_and_modules_of_their_own() -> None:
    base = freeze(models.RNNClassifier(100, 5))
    twin = share(base)
    assert all(a is b for a, b in zip(base.parameters(), twin.parameters(), strict=True))
    twin.model.embedding = nn.Embedding(100, 64)
    assert base.model.embedding is not twin.model.embedding
    torch.testing.assert_close(share(base)(TOKENS), base(TOKENS))


def test_it_stays_in_evaluation_mode_so_that_batches_do_not_matter() -> None:
    base = freeze(models.ResNet12(3, 5, widths=(4, 4, 8, 8), track_running_stats=True))
    base.train()
    assert not any(module.training for module in base.modules())
    torch.testing.assert_close(base(PICTURES)[:1], base(PICTURES[:1]))
    x = PICTURES.clone().requires_grad_()
    base(x).sum().backward()
    assert x.grad is not None and x.grad.any()


@pytest.mark.parametrize("pool", ["auto", "mean", "cls", "pooler", None])
def test_encoders_of_transformers_pool_their_states(pool: str | None) -> None:
    model = bert()
    base = freeze(model, pool=pool)
    states = model(input_ids=TOKENS, attention_mask=(TOKENS != 0).long())
    words = (TOKENS != 0).unsqueeze(2)
    mean = (states.last_hidden_state * words).sum(1) / words.sum(1)
    cls = states.last_hidden_state[:, 0]
    wanted = {"auto": mean, "mean": mean, "cls": cls, "pooler": states.pooler_output, None: states.last_hidden_state}
    torch.testing.assert_close(base(TOKENS), wanted[pool])
    assert base.sequence == (pool is None)
    assert (base.model.pooler is not None) == (pool == "pooler") and model.pooler is not None


def test_heads_of_transformers_are_taken_off() -> None:
    model = bert("BertForSequenceClassification")
    torch.testing.assert_close(freeze(model, pool="pooler")(TOKENS), model.bert(TOKENS, (TOKENS != 0).long())[1])
    assert freeze(bert("BertForQuestionAnswering"))(TOKENS).shape == (3, 12, 16)
    with pytest.raises(ValueError, match="needs a pooler"):
        freeze(bert("BertForQuestionAnswering"), pool="pooler")


def test_segments_begin_behind_the_first_separator() -> None:
    model = bert()
    pairs = torch.tensor([[1, 5, 2, 7, 8, 2, 0], [1, 5, 6, 2, 0, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [0] * 7])
    wanted = model(pairs, (pairs != 0).long(), segments).last_hidden_state
    base = freeze(model, pool=None, separator=2)
    words = pairs != 0  # what stands in the padding's place is nobody's business
    torch.testing.assert_close(base(pairs)[words], wanted[words])
    assert freeze(model).separator is None and freeze(bert(type_vocab_size=1), separator=2).separator is None
    big = transformers.BertConfig(**(SIZES | {"vocab_size": 30522, "hidden_size": 2}))
    assert freeze(transformers.BertModel(big)).separator == 102  # BERT's own vocabulary


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_of_transformers() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    base = freeze(model)
    torch.testing.assert_close(base(PICTURES), model.resnet(PICTURES).pooler_output.flatten(1))
    assert base.width == 16 and base.vocabulary is None
    vit = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(vit).eval()
    torch.testing.assert_close(freeze(model)(PICTURES), model(PICTURES).last_hidden_state[:, 0])
    assert freeze(model, pool="mean")(PICTURES).shape == (3, 16)


def test_models_without_a_head_and_named_heads() -> None:
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    base = freeze(body, head=False)
    assert base.width == 6 and base(PICTURES).shape == (3, 6)
    with pytest.raises(ValueError, match=r"must be an nn.Linear.*head=False"):
        freeze(body)
    two = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert freeze(two, head="2")(torch.zeros(5, 4)).shape == (5, 3)
    with pytest.raises(ValueError, match="head must name a layer"):
        freeze(two, head="9")
    with pytest.raises(ValueError, match="cannot be told"):
        freeze(nn.Sequential(nn.LayerNorm(4)), head=False)


def test_what_cannot_be_frozen_says_why() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        freeze("bert-base-uncased")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no running statistics.*track_running_stats=True"):
        freeze(models.Conv4(3, 5, 32))
    with pytest.raises(ValueError, match="pool must be one of"):
        freeze(bert(), pool="max")
    with pytest.raises(ValueError, match="for models of transformers"):
        freeze(models.TextMLP(100, 5), pool="pooler")


def test_inputs_that_do_not_fit_say_what_would() -> None:
    text, pictures = freeze(bert()), freeze(models.Conv4(3, 5, 32, track_running_stats=True))
    cases = [
        (text, TOKENS.float(), TypeError, "token numbers of int64"),
        (text, TOKENS[0], ValueError, r"\[N, L\], got shape \[12\]"),
        (text, torch.ones(1, 21, dtype=torch.int64), ValueError, "21 tokens per text.*positions for 20"),
        (text, torch.full((1, 3), 100), ValueError, "from 0 to 99, got 100"),
        (text, [1, 2], TypeError, "x must be a torch.Tensor, got list"),
        (pictures, torch.zeros(2, 1, 32, 32), ValueError, r"\[N, 3, H, W\].*\[2, 1, 32, 32\]"),
        (pictures, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "floating point"),
    ]
    for base, x, error, message in cases:
        with pytest.raises(error, match=message):
            base(x)


def test_it_shows_what_it_is() -> None:
    base = freeze(bert())
    assert isinstance(base, Backbone) and "width=16, pool='mean'" in repr(base)
