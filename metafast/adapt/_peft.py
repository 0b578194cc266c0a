"""LoRA adapters of one task in the files of peft, there and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metafast.adapt._sites import LoRAConv2d, LoRALinear, Site
from metafast.maml._modules import head_of
from metafast.runs._checkpoint import replace_file

if TYPE_CHECKING:
    from metafast.adapt._backbone import Backbone
    from metafast.adapt._task_model import TaskModel

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."
LORA = {nn.Linear: LoRALinear, nn.Conv2d: LoRAConv2d}


# ---- writing


def export_adapters(task_model: TaskModel, folder: Path, model: nn.Module | None) -> list[Path]:
    """What `TaskModel.export` does."""
    base, adapted = task_model.base, task_model.adapted()
    sites = {name: module.site for name, module in adapted.items()}
    check_exportable(sites)
    prefix = base.prefix if model is None else prefix_in(model)
    names = {name: prefix + name for name in sites}
    if model is not None:
        check_same(model, {names[name]: site.module for name, site in sites.items()})
    targets = dict((base.model if model is None else model).named_modules())
    every = [name if model is not None else prefix + name for name, module in targets.items() if type(module) in LORA]
    tensors: dict[str, Tensor] = {}
    for name, module in adapted.items():
        a, b = module.values["A"].detach(), module.values["B"].detach()
        tensors[f"{PREFIX}{names[name]}.lora_A.weight"] = a
        tensors[f"{PREFIX}{names[name]}.lora_B.weight"] = b[..., None, None] if a.dim() == 4 else b
    head = task_model.head
    weights = {"weight": head.weight.detach(), "bias": head.bias.detach()}
    saved = None if model is None else head_in(model, task_model.frozen(), weights, list(names.values()))
    if saved is not None:
        tensors |= {f"{PREFIX}{saved}.{part}": value for part, value in weights.items()}
    ranks = {names[name]: (site.r, site.alpha) for name, site in sites.items()}
    config = configuration(ranks, every, saved, base.model if model is None else model)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    _save(tensors, folder / WEIGHTS)
    _save(weights, folder / HEAD)
    replace_file(folder / CONFIG, lambda file: file.write_text(text, encoding="utf-8"))
    return [folder / CONFIG, folder / WEIGHTS, folder / HEAD]


def check_exportable(sites: Mapping[str, Site]) -> None:
    """Errors for adapters that peft's LoRA format has no place for."""
    out = "merge() folds any adapter into the weights: save merge().base.model instead, and the head"
    if not sites:
        raise ValueError(f"adapters must be LoRA to be exported, this model has a head alone; {out}")
    for name, site in sites.items():
        if not isinstance(site, LoRALinear | LoRAConv2d):
            raise ValueError(f"adapters must be LoRA to be exported, {name!r} adapts by {site.kind!r}; {out}")
        if isinstance(site.module, nn.Conv2d):
            module = site.module
            if any(step != 1 for step in module.dilation) or module.padding_mode != "zeros":
                raise ValueError(
                    f"{name!r} must be a convolution without dilation and padded with zeros to be exported, as peft "
                    f"makes its LoRA so; it has dilation {module.dilation}, padding mode {module.padding_mode!r}; {out}"
                )


def configuration(
    ranks: Mapping[str, tuple[int, float]], every: Sequence[str], head: str | None, model: nn.Module
) -> dict[str, Any]:
    """The content of adapter_config.json.

    Args:
        ranks: rank and alpha by the module's name.
        every: names of all modules of the kinds that adapt, among which peft looks for targets.
        head: a module that is saved as a whole.
        model: that the adapters are for.
    """
    r, alpha = max(ranks.values(), key=list(ranks.values()).count)
    differ = len(set(ranks.values())) > 1
    names = sorted(ranks, key=len, reverse=True)  # the first match counts, and a name matches longer ones that end so
    others = [name for name in every if name not in ranks]
    targets: list[str] | str = sorted(ranks)
    if any(other.endswith("." + name) for other in others for name in ranks):
        targets = "|".join(re.escape(name) for name in sorted(ranks))
    config = getattr(model, "config", None)
    classifies = head is not None and type(model).__name__.endswith("ForSequenceClassification")
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if classifies else None,
        "base_model_name_or_path": getattr(config, "_name_or_path", None) or None,
        "r": r,
        "lora_alpha": _whole(alpha),
        "target_modules": targets,
        "rank_pattern": {name: ranks[name][0] for name in names} if differ else {},
        "alpha_pattern": {name: _whole(ranks[name][1]) for name in names} if differ else {},
        "modules_to_save": None if head is None else [head],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def prefix_in(model: Any) -> str:
    """Where the part of a model that makes features is, with the dot; nothing where it is the model."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def check_same(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Errors for a model that does not have the adapted modules."""
    found = dict(model.named_modules())
    module: Any
    for name, module in modules.items():
        other: Any = found.get(name)
        shape = list(module.weight.shape)
        if other is None or list(other.weight.shape) != shape:
            got = "none" if other is None else f"{list(other.weight.shape)}"
            raise ValueError(
                f"model must have a module {name!r} with a weight {shape}, as the frozen one has, got {got}; "
                "give the model that was frozen, or one of the same architecture"
            )


def head_in(model: nn.Module, base: Backbone, weights: Mapping[str, Tensor], adapted: Sequence[str]) -> str | None:
    """The name of the model's head where it takes the backbone's features and has the shape of `weights`."""
    name = head_of(model)
    head: Any = model.get_submodule(name)
    fits = isinstance(head, nn.Linear) and head.bias is not None and head.weight.shape == weights["weight"].shape
    # peft goes by the ends of names
    unique = not any(other != name and f".{other}".endswith(f".{name}") for other, _ in model.named_modules())
    apart = not any(re.match(rf"(^|.*\.){name}($|\..*)", other) for other in adapted)
    return name if fits and unique and apart and takes_features(model, head, base) else None


def takes_features(model: Any, head: nn.Module, base: Backbone) -> bool:
    """Whether what goes into a model's head is what the backbone gives: tried with one input."""
    x = _sample(model, base)
    if x is None:
        return False
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    training = model.training
    try:
        with torch.no_grad():
            expected = base(x)
            model.eval()(x)
    except (TypeError, ValueError, RuntimeError):
        return False  # called in a way of its own: its head goes beside
    finally:
        hook.remove()
        model.train(training)
    return len(inputs) == 1 and inputs[0].shape == expected.shape and torch.allclose(inputs[0], expected, atol=1e-4)


def _sample(model: Any, base: Backbone) -> Tensor | None:
    """Two examples of random numbers; None where the backbone does not know what it takes."""
    x = base.inputs.blank()
    if x is None:
        return None
    generator = torch.Generator().manual_seed(0)
    place = next(base.parameters())
    if base.vocabulary is not None:
        plain = [token for token in range(min(base.vocabulary, 100)) if token not in (base.padding, base.separator)]
        chosen = torch.randint(len(plain), (2, min(8, x.shape[1])), generator=generator)
        return torch.tensor(plain)[chosen].to(place.device)
    side = getattr(getattr(model, "config", None), "image_size", None)
    shape = [*x.shape[:2], side, side] if isinstance(side, int) else x.shape
    return torch.randn(shape, generator=generator).to(place)


# ---- reading


def import_adapters(base: Backbone, folder: Path) -> TaskModel:
    """What `TaskModel.from_peft` does."""
    from metafast.adapt._task_model import TaskModel

    config, tensors = _read_config(folder), _load(folder / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if match is None:
            rest[key.removeprefix(PREFIX)] = value
        else:
            pairs.setdefault(match[1], {})[match[2]] = value
    sites: list[Site] = []
    values: dict[str, dict[str, Tensor]] = {}
    modules = dict(base.model.named_modules())
    for full, pair in pairs.items():
        name = full.removeprefix(base.prefix)
        module: Any = modules.get(name)
        if type(module) not in LORA or set(pair) != {"A", "B"}:
            raise ValueError(
                f"{folder / WEIGHTS} has LoRA for {full!r}, where the base has "
                f"{'no module' if module is None else type(module).__name__}; it was made for another model"
            )
        r = len(pair["A"])
        site = LORA[type(module)](name, module, r, alpha=_alpha(config, full, r))
        pair["B"] = pair["B"].flatten(1)
        got = {part: tuple(value.shape) for part, value in pair.items()}
        if got != site.shapes:
            raise ValueError(
                f"{folder / WEIGHTS}: LoRA of {full!r} must have the shapes {site.shapes}, as the base needs, got {got}"
            )
        sites.append(site)
        values[name] = pair
    if not sites:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights; one is made by TaskModel.export or peft")
    weight, bias = _head(folder, rest)
    return TaskModel(base, sites, values, weight, bias)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}; TaskModel.export and peft's save_pretrained write one")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{file} must be of peft_type 'LORA', got {config.get('peft_type')!r}")
    for option in ("use_dora", "use_rslora", "fan_in_fan_out"):
        if config.get(option):
            raise ValueError(f"{file} has {option}=true, which TaskModel has not; load it with peft and merge it")
    return config


def _alpha(config: dict[str, Any], name: str, r: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(alpha)
    return float(config.get("lora_alpha", r))


def _head(folder: Path, rest: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if (folder / HEAD).is_file():
        tensors = _load(folder / HEAD)
    else:
        tensors = {name.rpartition(".")[2]: value for name, value in rest.items()}
    if set(tensors) != {"weight", "bias"}:
        raise ValueError(f"{folder} must have a head, as {HEAD} or in {WEIGHTS}; it has {sorted(tensors)}")
    return tensors["weight"], tensors["bias"]


def _load(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {file.parent}; TaskModel.export writes one")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: {error}") from None
    bad = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(f"{file}: {bad[0]!r} has numbers that are not finite")
    return tensors


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    plain = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    replace_file(file, lambda part: save_file(plain, part, metadata={"format": "pt"}))


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number
