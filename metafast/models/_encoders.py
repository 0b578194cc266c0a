"""BERT and RoBERTa for classification, through transformers: pretrained, or small with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metafast._checks import integer
from metafast.data import hash_tokens
from metafast.models._small import _seeded, _sizes


class _EncoderClassifier(nn.Module):
    """What the classifiers on transformers' encoders share; a subclass says which network it is."""

    def _config(self, transformers: Any, **sizes: int) -> Any:
        """The configuration of a network with random weights; `positions` tokens at most."""
        raise NotImplementedError

    def _network(self, transformers: Any, config: Any) -> nn.Module:
        raise NotImplementedError

    def __init__(
        self,
        classes: int,
        name: str | None = None,
        *,
        length: int = 128,
        buckets: int = 8192,
        dim: int = 64,
        layers: int = 2,
        heads: int = 2,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a text or None, got {type(name).__name__}")
        self.length = integer("length", length, minimum=2)
        classes, self.buckets = _sizes(classes=classes, buckets=buckets)
        transformers = _transformers(type(self).__name__)
        self._tokenizer: Any = None
        if name is not None:
            self._tokenizer, self.network = _pretrained(transformers, name, classes, seed)
            self.padding = int(self._tokenizer.pad_token_id or 0)
            most = _positions(self.network.config, self.length)
            if self.length > most:
                raise ValueError(f"length must be at most {most}, the positions of {name!r}, got {self.length}")
            return
        dim, layers, heads = _sizes(dim=dim, layers=layers, heads=heads)
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads={heads}, got {dim}")
        self.padding = 0
        config = self._config(
            transformers,
            vocab_size=self.buckets + 1,  # the last one begins each text
            hidden_size=dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * dim,
            num_labels=classes,
            pad_token_id=self.padding,
        )
        with _seeded(seed):
            self.network = self._network(transformers, config)

    def encode(self, texts: Iterable[str]) -> Tensor:
        """Token numbers `[N, length]` of texts, int64; longer texts are cut, shorter ones padded."""
        texts = list(texts)
        if self._tokenizer is not None:
            found = self._tokenizer(
                texts, truncation=True, padding="max_length", max_length=self.length, return_tensors="pt"
            )
            tokens: Tensor = found["input_ids"]
            return tokens
        words = hash_tokens(texts, self.buckets, self.length - 1)
        return torch.cat([torch.full((len(words), 1), self.buckets), words], 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[N, classes]` of token numbers `[N, length]`."""
        logits: Tensor = self.network(input_ids=tokens, attention_mask=(tokens != self.padding).long()).logits
        return logits


class BertClassifier(_EncoderClassifier):
    """BERT with a layer for classes; `encode` makes its inputs of texts, so that model and tokens always fit.

    With a `name`, weights and tokenizer are those of that model. Without one the network has random weights, and words
    become numbers by hashing (`metafast.data.hash_tokens`), which needs no download and no vocabulary.

    Args:
        classes: number of classes.
        name: a model on the Hugging Face hub such as "bert-base-uncased", or a folder; None: random weights.
        length: tokens per text, at least 2.
        buckets: size of the hashed vocabulary.
        dim: width of the network with random weights.
        layers: its layers.
        heads: its attention heads; `dim` must be a multiple.
        seed: of the random weights, which with a `name` are those of the last layer.

    Raises:
        ImportError: transformers is missing.
        OSError: no such model in the folder, in the cache or on the hub.
        TypeError: a size that is no integer, or a name that is no text.
        ValueError: a size below 1, or widths that do not fit.

    Example:
        >>> model = BertClassifier(2, dim=16, layers=1, heads=2, length=8, buckets=100, seed=0)
        >>> tokens = model.encode(["a very good film", "bad"])
        >>> tokens.shape, model(tokens).shape
        (torch.Size([2, 8]), torch.Size([2, 2]))

    Source:
        J. Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, NAACL 2019.
    """

    def _config(self, transformers: Any, **sizes: int) -> Any:
        return transformers.BertConfig(max_position_embeddings=self.length, **sizes)

    def _network(self, transformers: Any, config: Any) -> nn.Module:
        network: nn.Module = transformers.BertForSequenceClassification(config)
        return network


class RobertaClassifier(_EncoderClassifier):
    """RoBERTa with a layer for classes: as `BertClassifier`, with the network, positions and head of RoBERTa.

    Args:
        classes: number of classes.
        name: a model on the Hugging Face hub such as "roberta-base", or a folder; None: random weights.
        length: tokens per text, at least 2.
        buckets: size of the hashed vocabulary.
        dim: width of the network with random weights.
        layers: its layers.
        heads: its attention heads; `dim` must be a multiple.
        seed: of the random weights, which with a `name` are those of the last layers.

    Raises:
        ImportError: transformers is missing.
        OSError: no such model in the folder, in the cache or on the hub.
        TypeError: a size that is no integer, or a name that is no text.
        ValueError: a size below 1, or widths that do not fit.

    Example:
        >>> model = RobertaClassifier(2, dim=16, layers=1, heads=2, length=8, buckets=100, seed=0)
        >>> model(model.encode(["a very good film", "bad"])).shape
        torch.Size([2, 2])

    Source:
        Y. Liu et al., RoBERTa: A Robustly Optimized BERT Pretraining Approach, arXiv 1907.11692, 2019.
    """

    def _config(self, transformers: Any, **sizes: int) -> Any:
        # positions are numbered from behind the padding's number on
        return transformers.RobertaConfig(max_position_embeddings=self.length + self.padding + 1, **sizes)

    def _network(self, transformers: Any, config: Any) -> nn.Module:
        network: nn.Module = transformers.RobertaForSequenceClassification(config)
        return network


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"metafast.models.{name} needs the transformers package: pip install 'metafast[hf]'"
        ) from error
    return transformers


def _positions(config: Any, default: int) -> int:
    """Tokens that a network has positions for; RoBERTa and its relatives count them from behind the padding's."""
    most = int(getattr(config, "max_position_embeddings", default))
    return most - int(config.pad_token_id) - 1 if "roberta" in str(config.model_type) else most


def _pretrained(transformers: Any, name: str, classes: int, seed: int | None) -> tuple[Any, Any]:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        with _seeded(seed):
            model = transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=classes)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise OSError(
            f"the model {name!r} is neither a folder nor in the cache, and the hub did not give it: {first}. "
            "Give a folder with config.json, weights and tokenizer, go online once, or leave name out for a small "
            "network with random weights"
        ) from error
    return tokenizer, model
