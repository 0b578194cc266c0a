"""Small text classifiers, on rows of token numbers or on word vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafast.models._small import _dropout, _seeded, _sizes


class TextMLP(nn.Module):
    """The mean of a text's embeddings, a layer norm, one hidden layer, then the classes.

    The compiled inner loop takes it. Word order counts as far as the tokens carry it (pairs of words, or words marked
    by their place beside the entities, as `metafast.data` makes them for FewRel).

    Args:
        buckets: rows of the embedding; row 0 is padding.
        classes: number of classes.
        dim: width of the embedding.
        hidden: width of the hidden layer.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1.

    Example:
        >>> TextMLP(100, 5, seed=0)(torch.tensor([[5, 7, 0], [9, 0, 0]])).shape
        torch.Size([2, 5])

    Source:
        M. Iyyer et al., Deep Unordered Composition Rivals Syntactic Methods for Text Classification, ACL 2015.
    """

    def __init__(
        self, buckets: int, classes: int, *, dim: int = 64, hidden: int = 128, seed: int | None = None
    ) -> None:
        super().__init__()
        buckets, classes, dim, hidden = _sizes(buckets=buckets, classes=classes, dim=dim, hidden=hidden)
        with _seeded(seed):
            self.embedding = nn.EmbeddingBag(buckets, dim, mode="mean", padding_idx=0)
            self.features = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU())
            self.classifier = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]` of token numbers `[N, length]`, 0 for padding."""
        logits: Tensor = self.classifier(self.features(self.embedding(tokens)))
        return logits


class SentenceCNN(nn.Module):
    """A convolution over words that are given as vectors, the largest response of each filter, then the classes.

    The compiled inner loop takes it: a sentence is a map one column wide. `metafast.data.episodes("few_rel_vectors")`
    makes such sentences.

    Args:
        channels: numbers per word.
        classes: number of classes.
        length: words per sentence, padding included.
        filters: of the convolution.
        window: words that a filter sees, an odd number.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or an even window.

    Example:
        >>> SentenceCNN(56, 5, length=32, seed=0)(torch.zeros(2, 56, 32, 1)).shape
        torch.Size([2, 5])

    Source:
        D. Zeng et al., Relation Classification via Convolutional Deep Neural Network, COLING 2014.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        length: int = 32,
        filters: int = 128,
        window: int = 3,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        channels, classes, length = _sizes(channels=channels, classes=classes, length=length)
        filters, window = _sizes(filters=filters, window=window)
        if window % 2 == 0:
            raise ValueError(f"window must be odd, got {window}")
        with _seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(channels, filters, (window, 1), padding=(window // 2, 0)),
                nn.ReLU(),
                nn.MaxPool2d((length, 1)),
                nn.Flatten(),
            )
            self.classifier = nn.Linear(filters, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits `[N, classes]` of sentences `[N, channels, length, 1]`."""
        logits: Tensor = self.classifier(self.features(words))
        return logits


class TextCNN(nn.Module):
    """Embeddings, a convolution over neighbouring tokens, the largest response of each filter, then the classes.

    It runs on the generic inner loop, because it convolves over embeddings of single tokens.

    Args:
        buckets: rows of the embedding; row 0 is padding.
        classes: number of classes.
        dim: width of the embedding.
        filters: of the convolution.
        window: tokens that a filter sees, an odd number.
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below 1, or an even window.

    Example:
        >>> TextCNN(100, 5, seed=0)(torch.tensor([[5, 7, 0], [9, 0, 0]])).shape
        torch.Size([2, 5])

    Source:
        Y. Kim, Convolutional Neural Networks for Sentence Classification, EMNLP 2014.
    """

    def __init__(
        self,
        buckets: int,
        classes: int,
        *,
        dim: int = 64,
        filters: int = 128,
        window: int = 3,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        buckets, classes, dim = _sizes(buckets=buckets, classes=classes, dim=dim)
        filters, window = _sizes(filters=filters, window=window)
        if window % 2 == 0:
            raise ValueError(f"window must be odd, got {window}")
        with _seeded(seed):
            self.embedding = nn.Embedding(buckets, dim, padding_idx=0)
            self.convolution = nn.Conv1d(dim, filters, window, padding=window // 2)
            self.classifier = nn.Linear(filters, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]` of token numbers `[N, length]`, 0 for padding."""
        words = self.embedding(tokens).transpose(1, 2)  # [N, dim, length]
        found = torch.relu(self.convolution(words)) * (tokens != 0).unsqueeze(1)
        logits: Tensor = self.classifier(found.amax(2))
        return logits


class RNNClassifier(nn.Module):
    """Embeddings, an LSTM or GRU, the mean of its states or the last one, then the classes; padding does not count.

    Args:
        buckets: rows of the embedding; row 0 is padding, which stands at the end of a text.
        classes: number of classes.
        kind: "lstm" or "gru".
        dim: width of the embedding.
        hidden: units of each layer.
        layers: of the LSTM or GRU.
        pool: "mean" over the words' states, or "last", the state of the last word.
        dropout: of what is pooled, and between layers, in [0, 1).
        seed: of the initial weights; None draws from the global generator.

    Raises:
        TypeError: a size that is no integer, a dropout that is no number.
        ValueError: a size below 1, a dropout outside [0, 1), an unknown kind or pool.

    Example:
        >>> RNNClassifier(100, 5, kind="gru", seed=0)(torch.tensor([[5, 7, 0], [9, 0, 0]])).shape
        torch.Size([2, 5])

    Source:
        S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, Neural Computation 1997; K. Cho et al., Learning Phrase
        Representations using RNN Encoder-Decoder, EMNLP 2014.
    """

    def __init__(
        self,
        buckets: int,
        classes: int,
        *,
        kind: str = "lstm",
        dim: int = 64,
        hidden: int = 64,
        layers: int = 1,
        pool: str = "mean",
        dropout: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        buckets, classes, dim = _sizes(buckets=buckets, classes=classes, dim=dim)
        hidden, layers = _sizes(hidden=hidden, layers=layers)
        dropout = _dropout(dropout)
        if kind not in ("lstm", "gru"):
            raise ValueError(f"kind must be 'lstm' or 'gru', got {kind!r}")
        if pool not in ("mean", "last"):
            raise ValueError(f"pool must be 'mean' or 'last', got {pool!r}")
        self.pool = pool
        with _seeded(seed):
            self.embedding = nn.Embedding(buckets, dim, padding_idx=0)
            cell = nn.LSTM if kind == "lstm" else nn.GRU
            self.recurrent = cell(dim, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
            self.dropout = nn.Dropout(dropout)
            self.classifier = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]` of token numbers `[N, length]`, 0 for padding."""
        states, _ = self.recurrent(self.embedding(tokens))  # [N, length, hidden]; padding comes after the words
        words = tokens != 0
        counts = words.sum(1, keepdim=True).clamp(min=1)
        if self.pool == "mean":
            text = (states * words.unsqueeze(2)).sum(1) / counts
        else:
            text = states[torch.arange(len(states), device=states.device), counts.squeeze(1) - 1]
        logits: Tensor = self.classifier(self.dropout(text))
        return logits
