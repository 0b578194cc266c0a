"""A pretrained model as a frozen maker of features, whatever it was built with."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from metafast.adapt._backbone_inputs import InputKind, inputs_of, most_tokens
from metafast.adapt._share import replace, share
from metafast.maml._modules import BATCH_NORMS, head_of
from metafast.models._encoders import _EncoderClassifier

POOLS = ("auto", "mean", "cls", "pooler", None)


class Backbone(nn.Module):
    """A frozen model without its head: inputs to features. `freeze` makes it.

    It stays in evaluation mode whatever `train()` says, so that an example's features do not depend on the other
    examples of a batch, and many tasks can go through it as one. Gradients flow through it; its weights take none.

    Args:
        model: the model without its head, as `freeze` left it; `named_modules()` of it are what patterns match.
        width: numbers per feature vector.
        inputs: what it takes.
        pool: how its last states become one vector: "mean" (over tokens that are no padding, or over positions),
            "cls" (the first token's), "pooler" (its own), or None: they stay `[N, L, D]`.
        separator: the token between a text and its second one, for models with segments; None: all in the first.
        transformers: whether it is called as a model of transformers.
        prefix: where `model` is in the model that was frozen, such as "bert."; nothing where it is all of it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        width: int,
        inputs: InputKind,
        pool: str | None,
        separator: int | None = None,
        transformers: bool = False,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.prefix = prefix
        self.width = width
        self.inputs = inputs
        self.pool = pool
        self.separator = separator
        self._transformers = transformers
        self.about: dict[str, Any] = {}  # where it is from, if this package made it
        self.eval()

    @property
    def length(self) -> int | None:
        """The most tokens of a text; None where there is no limit, or no text."""
        return self.inputs.length

    @property
    def vocabulary(self) -> int | None:
        """How many tokens there are; None where inputs are no tokens."""
        return self.inputs.vocabulary

    @property
    def padding(self) -> int | None:
        """The token that fills up texts, which counts for nothing; None where there is none."""
        return self.inputs.padding

    @property
    def sequence(self) -> bool:
        """Whether features are `[N, L, D]`, one vector per token."""
        return self.pool is None

    def train(self, mode: bool = True) -> Backbone:
        """Evaluation mode, always."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, D]` (or `[N, L, D]`, see `pool`) of token numbers `[N, L]` or pictures `[N, C, H, W]`.

        Raises:
            TypeError: inputs of another type of numbers.
            ValueError: inputs of another shape, more tokens than the model has positions for, unknown tokens.
        """
        self.inputs.check(x)
        words = self._words(x)
        if not self._transformers:
            found = self.model(x)
        elif self.inputs.vocabulary is None:
            found = self._of_outputs(self.model(x, return_dict=True))
        else:
            found = self._of_outputs(self.model(input_ids=x, return_dict=True, **self._masks(x, words)))
        return self._pooled(found, words)

    def extra_repr(self) -> str:
        """One line."""
        return f"width={self.width}, pool={self.pool!r}, {self.inputs}"

    def _words(self, x: Tensor) -> Tensor | None:
        """`[N, L]`, true for what is no padding; a text without words still has its first position."""
        if self.inputs.vocabulary is None or self.inputs.padding is None:
            return None
        words = x != self.inputs.padding
        words[:, 0] = True
        return words

    def _masks(self, x: Tensor, words: Tensor | None) -> dict[str, Tensor]:
        masks = {} if words is None else {"attention_mask": words.long()}
        if self.separator is not None:
            ends = (x == self.separator).long()
            second = ends.cumsum(1) - ends > 0
            masks["token_type_ids"] = (second if words is None else second & words).long()
        return masks

    def _of_outputs(self, outputs: Any) -> Tensor:
        if self.pool == "pooler":
            vector: Tensor = outputs.pooler_output
            return vector.flatten(1)
        states: Tensor = outputs.last_hidden_state
        return states

    def _pooled(self, states: Tensor, words: Tensor | None) -> Tensor:
        """`[N, D]` of `[N, D]`, tokens `[N, L, D]` or maps `[N, D, H, W]`."""
        if states.dim() == 2 or self.pool is None:
            return states
        if states.dim() > 3:
            return states.flatten(2).mean(2)
        if self.pool == "cls":
            return states[:, 0]
        if words is None or words.shape[1] != states.shape[1]:
            return states.mean(1)
        weight = words.to(states.dtype).unsqueeze(2)
        return (states * weight).sum(1) / weight.sum(1)


def freeze(
    model: nn.Module,
    *,
    head: str | Literal[False] | None = None,
    pool: str | None = "auto",
    tokenizer: Any = None,
    padding: int | None = None,
    separator: int | None = None,
) -> Backbone:
    """A pretrained model as a frozen backbone, without its head and without a copy of its weights.

    The model given is not changed: the backbone has modules of its own on the same memory.

    | model | features |
    |---|---|
    | of transformers, for text | last states, by `pool`; "auto": the mean over tokens |
    | `...ForQuestionAnswering` | likewise; "auto": `[N, L, D]` |
    | of transformers, for pictures | "auto": the pooler's if it has no weights (ResNet), or the first token's (ViT) |
    | `metafast.models.BertClassifier`, `RobertaClassifier` | as those of transformers |
    | any other classifier | what goes into its last layer, an `nn.Linear` |

    Args:
        model: the pretrained model, with or without its head.
        head: name of the last layer of a classifier that is not of transformers. Default: the last registered module
            that has parameters. False: it has none, its outputs are features.
        pool: "auto", "mean", "cls", "pooler" or None (`[N, L, D]`, for answers within a text).
        tokenizer: its tokenizer, which knows the padding and the separator.
        padding: the padding's token. Default: the tokenizer's, else the model's.
        separator: the token between two texts, for models with segments (BERT). Default: the tokenizer's, else the
            model's; 102 for BERT's own vocabularies.

    Returns:
        The backbone. Its `width` is what the head took, or the configuration's hidden size; without either, a pass
        of two blank examples tells.

    Raises:
        TypeError: no module, or a model of transformers that takes neither tokens nor pictures.
        ValueError: a batch norm without running statistics, a head that is no `nn.Linear`, an unknown pool.

    Example:
        >>> import torch
        >>> from metafast.models import SmallCNN
        >>> base = freeze(SmallCNN(1, 10, 28))
        >>> base(torch.zeros(2, 1, 28, 28)).shape[1] == base.width
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {list(POOLS)}, got {pool!r}")
    if isinstance(model, Backbone):
        return model
    if tokenizer is not None:
        padding = tokenizer.pad_token_id if padding is None else padding
        separator = tokenizer.sep_token_id if separator is None else separator
    prefix = ""
    if isinstance(model, _EncoderClassifier):
        padding = model.padding if padding is None else padding
        model, prefix = model.network, "network."
    _check_norms(model)
    if hasattr(model, "config") and hasattr(model, "base_model_prefix"):
        return _of_transformers(model, pool, padding, separator, prefix)
    return _of_module(model, head, pool, padding)


def _of_transformers(model: Any, pool: str | None, padding: int | None, separator: int | None, prefix: str) -> Backbone:
    if pool == "auto" and type(model).__name__.endswith("ForQuestionAnswering"):
        pool = None
    base = share(model.base_model, frozen=True)
    config = base.config
    if base.main_input_name not in ("input_ids", "pixel_values"):
        raise TypeError(
            f"model must take token numbers or pictures, {type(model).__name__} takes {base.main_input_name!r}; "
            "wrap it in an nn.Module of your own that takes one tensor, and freeze that with head=False"
        )
    text = base.main_input_name == "input_ids"
    pooler = getattr(base, "pooler", None)
    if pool == "auto":
        untrained = pooler is None or next(pooler.parameters(), None) is not None
        pool = "mean" if text else "cls" if untrained else "pooler"
    elif pool == "pooler" and pooler is None:
        raise ValueError(f"pool='pooler' needs a pooler, {type(base).__name__} was made without; use 'mean' or 'cls'")
    elif pool is None and not text:
        raise ValueError("pool=None is for text: a vector per token; leave it out for pictures")
    if pool != "pooler" and isinstance(pooler, nn.Module) and next(pooler.parameters(), None) is not None:
        base.pooler = None  # computed for nothing, and no place for an adapter
    if text:
        if padding is None:
            padding = getattr(config, "pad_token_id", None)
        inputs = InputKind(vocabulary=int(config.vocab_size), length=most_tokens(config), padding=padding)
        separator = _separator(config, separator)
    else:
        inputs, separator = InputKind(channels=int(config.num_channels)), None
    sizes = getattr(config, "hidden_sizes", None)
    width = int(config.hidden_size if not sizes else sizes[-1])
    prefix += "" if model.base_model is model else f"{model.base_model_prefix}."
    return Backbone(base, width=width, inputs=inputs, pool=pool, separator=separator, transformers=True, prefix=prefix)


def _of_module(model: nn.Module, head: str | Literal[False] | None, pool: str | None, padding: int | None) -> Backbone:
    if pool == "pooler":
        raise ValueError(f"pool='pooler' is for models of transformers, got {type(model).__name__}; use 'mean'")
    pool = "mean" if pool == "auto" else pool
    base = share(model, frozen=True)
    inputs = inputs_of(base, padding)
    if head is False:
        backbone = Backbone(base, width=0, inputs=inputs, pool=pool)
        backbone.width = _probed(backbone)
        return backbone
    name = head_of(base, head)
    layer = base.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"the head of model must be an nn.Linear, its last layer with parameters is {name!r}, "
            f"{type(layer).__name__}; name the head with head=, or give head=False if the outputs are features"
        )
    replace(base, name, nn.Identity())
    return Backbone(base, width=layer.in_features, inputs=inputs, pool=pool)


def _separator(config: Any, separator: int | None) -> int | None:
    if getattr(config, "type_vocab_size", 0) < 2:
        return None
    if separator is None:
        separator = getattr(config, "sep_token_id", None)
    if separator is None and config.model_type == "bert" and config.vocab_size in (30522, 28996):
        return 102
    return separator


def _probed(backbone: Backbone) -> int:
    blank = backbone.inputs.blank()
    if blank is None:
        raise ValueError(
            "the width of model's features cannot be told, because its first layer is neither an embedding, a "
            "convolution nor an nn.Linear; give the model with a last nn.Linear"
        )
    place = next(backbone.model.parameters())
    with torch.no_grad():
        found = backbone(blank.to(place.device) if blank.dtype == torch.int64 else blank.to(place))
    if found.dim() != (3 if backbone.sequence else 2):
        raise ValueError(f"model must give a vector per example, it gives {list(found.shape)} for {list(blank.shape)}")
    return int(found.shape[-1])


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise ValueError(
                f"batch norm {name!r} of model has no running statistics, so that an example's features would depend "
                "on the others of its batch; train the model with track_running_stats=True (metafast.models take it)"
            )


__all__ = ["Backbone", "freeze"]
