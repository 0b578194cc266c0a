"""The lists of parameter shapes that steps are timed on, written out by construction."""

from __future__ import annotations

from collections.abc import Callable

Shapes = list[tuple[int, ...]]


def one() -> Shapes:
    """One tensor of 25 M elements: nothing but memory."""
    return [(25_000_000,)]


def resnet18() -> Shapes:
    """ResNet-18 for ImageNet (He et al. 2016): 62 tensors, 11.7 M elements."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for block in range(2):
            shapes += [(width, channels, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if block == 0 and stride != 1:
                shapes += [(width, channels, 1, 1), (width,), (width,)]
            channels = width
    return [*shapes, (1000, 512), (1000,)]


def bert_base() -> Shapes:
    """BERT-base, uncased (Devlin et al. 2019): 199 tensors, 109.5 M elements."""
    hidden, inner = 768, 3072
    norm: Shapes = [(768,), (768,)]
    shapes: Shapes = [(30522, hidden), (512, hidden), (2, hidden), *norm]
    for _ in range(12):
        shapes += [*([(hidden, hidden), (hidden,)] * 4), *norm]
        shapes += [(inner, hidden), (inner,), (hidden, inner), (hidden,), *norm]
    return [*shapes, (hidden, hidden), (hidden,)]


def tiny() -> Shapes:
    """1,000 tiny tensors, 2.1 M elements: weights and biases of very small layers. Overhead counts here."""
    return [(64, 64), (104,)] * 500


def smoke() -> Shapes:
    """A handful of elements, to see that the benchmark runs."""
    return [(33, 7), (33,), (1,), ()]


SIZES: dict[str, Callable[[], Shapes]] = {"one": one, "resnet18": resnet18, "bert": bert_base, "tiny": tiny}
TITLES = {
    "one": "one tensor of 25 M",
    "resnet18": "ResNet-18 (62 tensors, 11.7 M)",
    "bert": "BERT-base (199 tensors, 109.5 M)",
    "tiny": "1,000 tiny tensors (2.1 M)",
    "smoke": "smoke test",
}
