"""Which modules of a frozen model adapt, and how: `"lora:r=4"`, `{"*.query": "lora:r=8", "*Norm": "norm"}`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from metafast.adapt._sites import (
    CONVOLUTIONS,
    NORMS,
    Bias,
    FiLM,
    FullConv2d,
    FullEmbedding,
    FullLinear,
    LoRAConv2d,
    LoRALinear,
    Norm,
    Site,
)

Adapt = str | Mapping[str, str]
KINDS = ("lora", "film", "bias", "norm", "head", "last", "all")
# the projections that LoRA's paper adapts, under the names that transformers' models give them
PROJECTIONS = ("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "qkv", "c_attn")


def sites(model: nn.Module, adapt: Adapt) -> list[Site]:
    """The sites that `adapt` asks for, in the order of the model's modules.

    Args:
        model: the frozen model without its head.
        adapt: one kind for the modules that it is meant for, or name patterns and their kinds, of which the first that
            matches a module counts.

    Raises:
        TypeError: neither.
        ValueError: an unknown kind or option, or a pattern that matches nothing that the kind can adapt.
    """
    if isinstance(adapt, str):
        kind, options = parse(adapt)
        chosen = {} if kind == "head" else DEFAULTS[kind](model)
        if kind != "head" and not chosen:
            raise ValueError(f"adapt={adapt!r} finds no module to adapt; the model has {_listed(_leaves(model))}")
        return [_site(kind, options, name, module) for name, module in chosen.items()]
    if not isinstance(adapt, Mapping) or not adapt:
        raise TypeError(
            f'adapt must be a kind such as "lora:r=4" or a mapping from name patterns to kinds, got {adapt!r}'
        )
    found: dict[str, Site] = {}
    parsed = {pattern: parse(text) for pattern, text in adapt.items()}
    for pattern, (kind, options) in parsed.items():
        if kind in ("head", "last"):
            raise ValueError(f"adapt[{pattern!r}] must be one of lora, film, bias, norm or all, got {adapt[pattern]!r}")
        fits = {name: module for name, module in _leaves(model) if fnmatchcase(name, pattern)}
        able = {name: module for name, module in fits.items() if ABLE[kind](module)}
        if not able:
            what = f"matches {_listed(fits.items())}, none of which {kind} adapts" if fits else "matches no module"
            raise ValueError(f"adapt: the pattern {pattern!r} {what}; the model has {_listed(_leaves(model))}")
        for name, module in able.items():
            if name not in found:
                found[name] = _site(kind, options, name, module)
    return [found[name] for name, _ in _leaves(model) if name in found]


def parse(text: Any) -> tuple[str, dict[str, Any]]:
    """`"lora:r=8,alpha=16"` as a kind and its options."""
    if not isinstance(text, str):
        raise TypeError(f"adapt must name kinds by text, got {text!r}")
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"adapt must be one of {', '.join(KINDS)}, got {text!r}")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if kind != "lora" or name not in ("r", "alpha"):
            raise ValueError(f"adapt={text!r}: {kind} has no option {name!r}; lora has r and alpha")
        try:
            options[name] = int(value) if name == "r" else float(value)
        except ValueError:
            raise ValueError(f"adapt={text!r}: {name} must be a number, got {value!r}") from None
        if not options[name] > 0:
            raise ValueError(f"adapt={text!r}: {name} must be above 0, got {value}")
    return kind, options


# ---- what each kind can adapt, and what it adapts where no pattern says so


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and module.weight is not None and module.weight.dim() == 1


def _has_bias(module: nn.Module) -> bool:
    """A normalization that has a place for a shift, so that FiLM can be merged into it."""
    return _is_norm(module) and not isinstance(module, nn.RMSNorm)


def _is_full(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) or _is_norm(module)


ABLE: dict[str, Callable[[nn.Module], bool]] = {
    "lora": lambda module: isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "groups", 1) == 1,
    "film": lambda module: isinstance(module, (nn.Linear, *CONVOLUTIONS)) or _has_bias(module),
    "bias": lambda module: isinstance(module, (nn.Linear, *CONVOLUTIONS)) or _is_norm(module),
    "norm": _is_norm,
    "all": _is_full,
}


def _where(model: nn.Module, fits: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    return {name: module for name, module in _leaves(model) if fits(module)}


def _lora(model: nn.Module) -> dict[str, nn.Module]:
    able = _where(model, ABLE["lora"])
    attention = {name: module for name, module in able.items() if name.rpartition(".")[2] in PROJECTIONS}
    return attention or able


def _film(model: nn.Module) -> dict[str, nn.Module]:
    return _where(model, _has_bias) or _where(model, ABLE["film"])


def _bias(model: nn.Module) -> dict[str, nn.Module]:
    """Biases and normalizations."""
    return _where(model, lambda module: _is_norm(module) or ABLE["bias"](module) and module.bias is not None)


def _norm(model: nn.Module) -> dict[str, nn.Module]:
    return _where(model, _is_norm)


def _all(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    found = {name: module for name, module in _leaves(model) if name.startswith(prefix)}
    other = [name for name, module in found.items() if not _is_full(module)]
    if other:
        module = found[other[0]]
        raise ValueError(
            f"adapt: {other[0]!r} is a {type(module).__name__}, which cannot have weights of its own for every task; "
            'choose what adapts by name patterns, or use "lora", "bias" or "film"'
        )
    return found


def _last(model: nn.Module) -> dict[str, nn.Module]:
    """The last of the repeated blocks, or the last layer with a matrix and what comes after it."""
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            blocks = [child for child, block in module.named_children() if len(list(_leaves(block))) > 1]
            if len(blocks) > 1:
                return _all(model, f"{name}.{blocks[-1]}." if name else f"{blocks[-1]}.")
    leaves = list(_leaves(model))
    place = max((i for i, (_, module) in enumerate(leaves) if isinstance(module, nn.Linear | nn.Conv2d)), default=None)
    if place is None:
        return {}
    kept = {name for name, _ in leaves[place:]}
    return {name: module for name, module in _all(model).items() if name in kept}


DEFAULTS: dict[str, Callable[[nn.Module], dict[str, nn.Module]]] = {
    "lora": _lora,
    "film": _film,
    "bias": _bias,
    "norm": _norm,
    "last": _last,
    "all": _all,
}


def _site(kind: str, options: dict[str, Any], name: str, module: nn.Module) -> Site:
    if kind == "lora":
        made: Callable[..., Site] = LoRALinear if isinstance(module, nn.Linear) else LoRAConv2d
        return made(name, module, **options)
    if kind == "film":
        return FiLM(name, module)
    if kind == "bias":
        return Norm(name, module) if _is_norm(module) else Bias(name, module)
    if _is_norm(module):
        return Norm(name, module)
    if isinstance(module, nn.Linear):
        return FullLinear(name, module)
    return FullConv2d(name, module) if isinstance(module, nn.Conv2d) else FullEmbedding(name, module)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with parameters of their own, each once, by name."""
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name, module


def _listed(modules: Any) -> str:
    names = [name for name, _ in modules]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
