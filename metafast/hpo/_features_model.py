"""Features of an architecture."""

from __future__ import annotations

import math

from torch import nn

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)
_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.modules.conv._ConvNd,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "linear": (nn.Linear, nn.Bilinear),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "norm": _NORMS,
    "dropout": (nn.modules.dropout._DropoutNd,),
}
_WEIGHTED = ("conv", "recurrent", "attention", "linear")


def architecture_features(model: nn.Module) -> dict[str, float]:
    """Features of a network; docs/hpo-features.md says what each is. Nothing is run, no weight is read.

    Args:
        model: the network, as it would be trained with usual hyperparameters.

    Returns:
        Name to finite number, in a fixed order; all names begin with `net_`.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> found = architecture_features(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
        >>> found["net_depth"], found["net_linear"], found["net_log10_width"]
        (2.0, 1.0, 1.20412)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    counts, sizes = dict.fromkeys(_KINDS, 0), dict.fromkeys(_KINDS, 0)
    widths: list[int] = []
    rates: list[float] = []
    inside: set[int] = set()  # the output projection of an attention layer is a part of it
    for module in model.modules():
        kind = next((name for name, types in _KINDS.items() if isinstance(module, types)), None)
        if kind is None or id(module) in inside:
            continue
        if kind == "attention":
            inside |= {id(each) for each in module.modules()}
        counts[kind] += int(getattr(module, "num_layers", 1))
        sizes[kind] += _size(module)
        if kind in _WEIGHTED:
            widths.append(_width(module))
        rate = getattr(module, "p", None) if kind == "dropout" else getattr(module, "dropout", None)
        if isinstance(rate, float | int) and not isinstance(rate, bool):
            rates.append(float(rate))
    total = _size(model)
    known = max(1, sum(sizes.values()))
    found = {
        "net_log10_parameters": math.log10(max(1, total)),
        "net_depth": float(sum(counts[kind] for kind in _WEIGHTED)),
        "net_log10_width": math.log10(max(1, *(widths[:-1] or widths), 1)),
        "net_log10_outputs": math.log10(max(1, widths[-1] if widths else 1)),
    }
    found |= {f"net_{kind}": sizes[kind] / known for kind in (*_WEIGHTED, "embedding")}
    found |= {f"net_layers_{kind}": math.log2(1 + count) for kind, count in counts.items()}
    found["net_dropout_rate"] = max(rates, default=0.0)
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    found["net_gated"] = float(any(not isinstance(module, nn.RNN) for module in recurrent))
    found["net_both_ways"] = float(any(module.bidirectional for module in recurrent))
    return {name: round(value, 6) for name, value in found.items()}


def _size(module: nn.Module) -> int:
    """Parameters; those of lazy layers are not there yet."""
    return sum(
        parameter.numel() for parameter in module.parameters() if not isinstance(parameter, nn.UninitializedParameter)
    )


def _width(module: nn.Module) -> int:
    for name in ("out_features", "out_channels", "hidden_size", "embed_dim"):
        if hasattr(module, name):
            return int(getattr(module, name))
    return 1
