"""Modules without a compiled form: attention, recurrent layers, BERT; what the loop and vmap make of them, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafast.innerloop import InnerLoop
from tests.innerloop.cases import gradients, make_batch, worst
from tests.innerloop.test_inner_loop import plain_loop


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True)
        self.lift, self.head = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.lift(x)).mean(1))


class Quantized(nn.Module):
    """A straight-through estimator: its own backward is not what its forward says."""

    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.round(x)

        @staticmethod
        def backward(ctx, grad):
            return grad

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.Round.apply(self.first(x.flatten(1))))


class Counting(nn.Module):
    """Writes a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(x.flatten(1))


class Branching(nn.Module):
    """Looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.layer(-x if x.sum() > 1e9 else x)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x.flatten(1))).detach())


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=8, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


MODULES: dict[str, Callable[[], nn.Module]] = {"lstm": Recurrent, "attention": Attention, "bert": bert}


class Logits(nn.Module):
    """The plain loop's view of a model that returns an object."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return getattr(output := self.model(x), "logits", output)


@pytest.mark.parametrize("engine", ["loop", "vmap", "auto"])
@pytest.mark.parametrize("name", MODULES)
def test_any_module_equals_a_plain_loop(name: str, engine: str) -> None:
    torch.manual_seed(0)
    model = MODULES[name]().double()
    batch = make_batch((4,) if name == "bert" else (4, 3), tokens=name == "bert")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = plain_loop(Logits(model), batch, 0.2, 2)
    inner = InnerLoop(model, steps=2, engine=engine)
    found = gradients(inner, batch, rates=0.2)[1]
    error, where = worst({f"model.{n}": g for n, g in found.items()}, expected)
    assert error < 1e-10, (where, error)
    explanation = inner.explain()
    assert explanation.engine in ("loop", "vmap")
    if engine == "auto":
        assert "no compiled form" in explanation.reason
        assert set(explanation.seconds) == {"loop", "vmap"} or "vmap cannot" in explanation.reason


def test_auto_measures_once() -> None:
    inner = InnerLoop(Attention(), steps=1)
    batch = make_batch((4, 3), dtype=torch.float32)
    inner(batch)
    first = inner.explain()
    assert set(first.seconds) == {"loop", "vmap"}
    inner(batch)
    assert inner.explain() is first
    assert "ms for a meta-gradient" in str(first)


def test_a_large_model_is_not_tried_under_vmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metafast.innerloop._engines.VMAP_BYTES", 1000)
    inner = InnerLoop(Attention(), steps=1)
    inner(make_batch((4, 3), dtype=torch.float32))
    assert inner.explain().engine == "loop" and "vmap cannot: the weights of all tasks" in inner.explain().reason


def test_random_layers_go_to_the_loop_with_a_seed() -> None:
    model = Attention(dropout=0.3)
    batch = make_batch((4, 3), dtype=torch.float32)
    inner = InnerLoop(model, steps=2)
    first, again, other = (inner(batch, rates=0.1, seed=s).task_losses for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert inner.explain().engine == "loop"
    assert "vmap cannot" in inner.explain().reason and "random" in inner.explain().reason
    alone = inner(batch[1], rates=0.1, seed=1, first_task=1).task_losses
    torch.testing.assert_close(alone[0], first[1])


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "stateful": (Counting, (6,), r"layer model \(Counting\): stateful: it writes its buffer 'seen'"),
    "values": (Branching, (6,), r"layer model \(Branching\): .*sum has no compiled form"),
    "detach": (Detached, (6,), r"layer model \(Detached\): detach is not differentiable"),
    "custom function": (Quantized, (6,), r"layer model \(Quantized\): round"),
    "lstm": (Recurrent, (4, 3), r"layer lstm \(LSTM\): .*lstm has no compiled form"),
    "softmax": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), (6,), r"layer 1 \(Softmax\): .*softmax"),
    "dilation": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2, dilation=2), nn.Flatten(), nn.LazyLinear(3)), (2, 4, 4),
                 r"layer 0 \(Conv2d\): dilation"),
    "pool window": (lambda: nn.Sequential(nn.MaxPool2d((17, 16)), nn.Flatten(), nn.Linear(2, 3)), (2, 17, 16),
                    r"layer 0 \(MaxPool2d\): max-pooling over windows of 17x16; at most 256"),
    "global pool": (lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (2, 16, 18),
                    r"layer 0 \(AdaptiveMaxPool2d\): max-pooling over windows of 16x18"),
    "padding": (lambda: nn.Sequential(nn.Conv2d(2, 1, (2, 3), padding=(2, 0)), nn.Flatten(), nn.Linear(14, 3)),
                (2, 4, 4), r"layer 0 \(Conv2d\): padding \(2, 0\) as large as the kernel \(2, 3\)"),
    "two strides": (lambda: TwoStrides(), (2, 6, 6), r"it shares its weight with layer first \(Conv2d\), which is of"),
    "map": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2)), (2, 4, 4), r"its output must be computed logits \[N, C\]"),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))), (6,), "layer 0"),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))), (6,),
                    r"layer 0 .*weight is computed"),
    "dropout2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.Dropout2d(), nn.Flatten(), nn.Linear(27, 3)), (2, 4, 4),
                  r"layer 1 \(Dropout2d\): dropout of whole channels"),
    "constant": (lambda: Plus(), (6,), "constant|one shape"),
    "number of examples": (lambda: Counted(), (6,), "depend on the number of examples|reshaping"),
    "layer drop": (lambda: LayerDrop(), (6,), r"layer model \(LayerDrop\): it draws random numbers"),
    "half": (lambda: nn.Linear(6, 3).bfloat16(), (6,), "bfloat16"),
}  # fmt: skip


class Plus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(6, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.shift


class TwoStrides(nn.Module):
    """One weight, used with two strides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.first(x), self.first.weight, stride=2, padding=1).flatten(1))


class Tied(nn.Module):
    """The table of its embedding is the weight of its last layer, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 5), nn.Linear(5, 9)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


class LayerDrop(nn.Module):
    """Leaves layers out at random, by numbers that do not come from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)]), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if torch.rand(()) < 0.5 else x
        return self.last(x)


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(9)])
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: len(x)]:
            x = layer(x)
        return self.last(x)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_compiled_names_the_layer(case: str) -> None:
    make, shape, message = UNSUPPORTED[case]
    model = make()
    if case == "dilation":
        model(torch.zeros(1, *shape))
    dtype = next(model.parameters()).dtype
    batch = make_batch(shape, dtype=dtype)
    with pytest.raises(ValueError, match=rf"engine='compiled' cannot run this model: .*({message})"):
        InnerLoop(model, engine="compiled")(batch)
    if case in ("map",):
        return
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    inner = InnerLoop(model, steps=1, engine="auto", adapted=["*"] if case != "detach" else ["last.*"])
    outcome = inner(batch, rates=0.1)
    assert inner.explain().engine in ("loop", "vmap")
    assert bool(outcome.loss.isfinite())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())


def test_a_weight_shared_by_layers_of_two_kinds() -> None:
    torch.manual_seed(0)
    model, batch = Tied().double(), make_batch((4,), tokens=True)
    inner = InnerLoop(model, steps=2)
    assert worst(gradients(inner, batch, rates=0.3)[1], plain_loop(model, batch, 0.3, 2))[0] < 1e-10
    assert r"layer head (Linear): it shares its weight with layer" in inner.explain().reason
    with pytest.raises(ValueError, match=r"cannot run this model: layer head \(Linear\): it shares its weight"):
        InnerLoop(model, engine="compiled")(batch)


def test_a_straight_through_gradient_is_kept() -> None:
    torch.manual_seed(0)
    model, batch = Quantized().double(), make_batch((6,))
    expected = plain_loop(model, batch, 0.3, 2)
    inner = InnerLoop(model, steps=2)
    assert worst(gradients(inner, batch, rates=0.3)[1], expected)[0] < 1e-10
    assert inner.explain().engine == "loop"


def test_a_loss_of_the_user() -> None:
    model, batch = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), make_batch((6,))

    def smooth(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y) + 0.01 * logits.square().mean()

    inner = InnerLoop(model, steps=2, loss=smooth)
    found = gradients(inner, batch)[1]
    assert "smooth" in inner.explain().reason
    assert worst(gradients(InnerLoop(model, steps=2, loss=smooth, engine="vmap"), batch)[1], found)[0] < 1e-12
    for known in (F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), F.mse_loss, nn.MSELoss()):
        inner = InnerLoop(model, steps=2, loss=known)
        y = (F.one_hot(batch.support_y, 3).double(), F.one_hot(batch.query_y, 3).double())
        squared = known is F.mse_loss or isinstance(known, nn.MSELoss)
        data = type(batch)(batch.support_x, y[0], batch.query_x, y[1]) if squared else batch
        found = gradients(inner, data)[1]
        assert inner.explain().engine == "compiled"
        assert worst(gradients(InnerLoop(model, steps=2, loss=known, engine="loop"), data)[1], found)[0] < 1e-10


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("name", MODULES)
def test_a_device_gives_what_the_cpu_gives(name: str, engine: str) -> None:
    """Fused attention and cuDNN's recurrent layers have no second derivative: the engines go around them."""
    torch.manual_seed(0)
    model = MODULES[name]().double()
    batch = make_batch((4,) if name == "bert" else (4, 3), tokens=name == "bert")
    expected = gradients(InnerLoop(model, steps=2, engine="loop"), batch, rates=0.2)[1]
    model.cuda()
    found = gradients(InnerLoop(model, steps=2, engine=engine), batch.to("cuda"), rates=0.2)[1]
    error, where = worst({n: g.cpu() for n, g in found.items()}, expected)
    assert error < 1e-9, (where, error)


@pytest.mark.gpu
def test_seeds_of_a_device() -> None:
    model = Attention(dropout=0.3).cuda()
    batch = make_batch((4, 3), dtype=torch.float32).to("cuda")
    inner = InnerLoop(model, steps=1, engine="loop")
    state = torch.cuda.get_rng_state()
    first, again = (inner(batch, seed=3).task_losses for _ in range(2))
    torch.testing.assert_close(first, again)
    assert torch.equal(state, torch.cuda.get_rng_state())
