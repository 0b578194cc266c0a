"""Small backbones, pre-trained on real data where no pretrained weights are at hand."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from metafast._checks import integer
from metafast._files import Kind
from metafast.adapt._backbone import Backbone, freeze
from metafast.adapt._pretrain_check import quality
from metafast.adapt._pretrain_recipes import OBJECTIVES, RECIPES, Examples, Recipe
from metafast.models._small import _seeded
from metafast.runs import Run

FILE = Kind(
    format="backbone",
    version=1,
    noun="pre-trained backbone",
    where="`metafast adapt pretrain omniglot --output FILE` makes one (or cifar, or text)",
    maker="`metafast adapt pretrain`",
    anew="pre-train it anew",
)
PER_CLASS = 5  # of an episode: one example is the prototype, four are told apart
WARM_UP = 50  # steps until the rate is at its highest
SAVES = 10  # checkpoints of a training, and rows of its record


@dataclass(frozen=True)
class Settings:
    """What makes two trainings the same."""

    name: str
    seed: int
    steps: int
    objective: str


def pretrain(
    name: str,
    output: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    objective: str | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    episodes: int = 200,
) -> Backbone:
    """Train a small backbone on the training classes of a data set, judge it on the validation classes, and keep it.

    | name | network | learns on | judged on |
    |---|---|---|---|
    | `omniglot` | `Conv4`, 64 channels, strided | 25 background alphabets, turned characters too | 5 others |
    | `cifar` | `Conv4`, 64 channels, pooled | 64 classes of CIFAR-FS | its 16 validation classes |
    | `text` | one layer of BERT, 256 filters | 50 relations of FewRel | 14 other relations; intents |

    The record is in the folder `<output without its ending>-run`; a training that was interrupted goes on there, to the
    same weights. What is there already is read.

    Args:
        name: "omniglot", "cifar" or "text".
        output: a safetensors file; default: the user's cache folder.
        seed: of weights and batches.
        steps: of AdamW; default: the recipe's, some minutes on a CPU.
        objective: "classes", which tells all training classes apart, or "episodes": nearest prototypes of single
            examples. Default: the recipe's.
        device: "cpu" or "cuda".
        progress: called with the steps done.
        episodes: that it is judged on, for each data set and number of shots.

    Returns:
        The backbone; its `about` has the settings and the accuracy on the validation classes.

    Raises:
        DatasetNotFoundError: (a FileNotFoundError) no place has the data.
        ValueError: an unknown name or objective, or a file with other settings.

    Source:
        J. Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017 ("episodes").
    """
    if name not in RECIPES:
        raise ValueError(f"name must be one of {list(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    if objective is not None and objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {list(OBJECTIVES)}, got {objective!r}")
    steps = recipe.steps if steps is None else integer("steps", steps, minimum=1)
    settings = Settings(name, integer("seed", seed, minimum=0), steps, objective or recipe.objective)
    recipe = replace(recipe, steps=steps, objective=settings.objective)
    file = default_file(name) if output is None else Path(output)
    if file.is_file():
        found = pretrained(name, file)
        _check_same(settings, found.about, file)
        if progress is not None:
            progress(steps)
        return found
    file.parent.mkdir(parents=True, exist_ok=True)
    examples, val = recipe.data()
    network = recipe.network(seed=settings.seed, **recipe.sizes).to(device)
    _train(network, examples, recipe, settings, file, progress)
    base = freeze(network.cpu(), head=False)
    results = {
        f"{data}, {ways}-way {shots}-shot": {
            kind: [value.mean, value.half]
            for kind, value in quality(base, classes, ways=ways, shots=shots, n=episodes).items()
        }
        for data, classes in val.items()
        for ways, shots in recipe.checks
    }
    base.about = {**vars(settings), "title": recipe.title, "sizes": dict(recipe.sizes), "validation": results}
    state = {key: value.contiguous() for key, value in base.model.state_dict().items()}
    FILE.write(save_file, state, base.about, file)
    return base


def pretrained(source: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Backbone:
    """A backbone that `pretrain` or `metafast adapt pretrain` made, frozen.

    Args:
        source: its name ("omniglot", "cifar", "text"), or its file.
        path: the file, where `source` is the name; default: the user's cache folder.

    Returns:
        The backbone; its `about` has the settings and the accuracy on the validation classes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of something else, of another name, or a damaged one.
    """
    named = str(source) in RECIPES
    if path is not None and not named:
        raise ValueError(f"the name must be one of {list(RECIPES)}, got {str(source)!r}")
    file = Path(path) if path is not None else default_file(str(source)) if named else Path(source)
    about, tensors = FILE.read(file, "pt")
    if about.get("name") not in RECIPES or (named and about["name"] != str(source)):
        raise ValueError(f"{file} holds the backbone {about.get('name')!r}, not {str(source)!r}")
    recipe = RECIPES[about["name"]]
    base = freeze(recipe.network(**about["sizes"]), head=False)
    expected = base.model.state_dict()
    wrong = [
        key for key in expected.keys() | tensors.keys()
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    ]  # fmt: skip
    if wrong:
        raise ValueError(f"{file} does not fit the network of {about['name']!r}: {sorted(wrong)[:3]}; {FILE.anew}")
    base.model.load_state_dict(tensors)
    base.about = {key: value for key, value in about.items() if key not in ("format", "version")}
    return base


def default_file(name: str) -> Path:
    """Where a backbone is kept unless another file is named."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metafast" / "backbones"
    return folder / f"{name}.safetensors"


def _check_same(settings: Settings, about: dict[str, Any], file: Path) -> None:
    wrong = [
        f"{key} {about.get(key)!r}, not {value!r}" for key, value in vars(settings).items() if about.get(key) != value
    ]
    if wrong:
        raise ValueError(f"{file} holds a backbone of {', '.join(wrong)}; give another output, or delete it")


def _train(
    network: nn.Module,
    examples: Examples,
    recipe: Recipe,
    settings: Settings,
    file: Path,
    progress: Callable[[int], None] | None,
) -> None:
    """Trains in place, from the record where there is one."""
    device = next(network.parameters()).device
    whole = nn.ModuleDict({"network": network})
    if recipe.objective == "classes":
        with _seeded(settings.seed):
            whole["head"] = nn.Linear(freeze(network, head=False).width, examples.outputs).to(device)
    trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.01)
    run, start = _record(settings, file, whole, optimizer)
    marks = {max(1, round(recipe.steps * part / SAVES)) for part in range(1, SAVES + 1)}
    network.train()
    losses: list[float] = []
    with run, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for step in range(start + 1, recipe.steps + 1):
            # a step is a function of the seed and its number: an interruption changes nothing
            random = np.random.default_rng([settings.seed, step])
            torch.manual_seed(int(random.integers(2**31)))
            loss = _loss(whole, examples, recipe, random)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * min(1.0, step / WARM_UP) * (1 + math.cos(math.pi * step / recipe.steps)) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if step in marks:
                run.log(step=step, loss=float(np.mean(losses)))
                losses = []
                run.save(step, whole, optimizer)
            if progress is not None:
                progress(step)


def _loss(whole: nn.ModuleDict, examples: Any, recipe: Recipe, random: np.random.Generator) -> Tensor:
    network, device = whole["network"], next(whole.parameters()).device
    per_class = 1 if recipe.objective == "classes" else PER_CLASS
    x, y = examples.batch(random, recipe.size, per_class)
    features = network(x.to(device))
    if recipe.objective == "classes":
        loss = F.cross_entropy(whole["head"](features), y.to(device))
    else:
        parted = features.unflatten(0, (-1, per_class))  # [ways, examples, D]
        loss = _nearest(parted[:, 1:], parted[:, 0])
    if random.random() < recipe.pairs:
        first, second = examples.pairs(random, recipe.size // 2)
        loss = loss + _nearest(network(first.to(device)).unsqueeze(1), network(second.to(device)))
    return loss


def _nearest(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Cross-entropy of each class's queries `[ways, n, D]` over the distances to prototypes `[ways, D]`."""
    # distances grow with the width: a fixed share of it is the temperature
    logits = -torch.cdist(queries.flatten(0, 1), prototypes).square() * (20 / prototypes.shape[1])
    return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device).repeat_interleave(queries.shape[1]))


def _record(settings: Settings, file: Path, whole: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Run, int]:
    folder = file.with_suffix("").with_name(f"{file.stem}-run")
    if not (folder / "run.jsonl").exists():
        return Run.create(
            folder.parent, name=folder.name, config=vars(settings), seed=settings.seed, tags=["pretrain"], keep=1
        ), 0
    _check_same(settings, Run.open(folder).config, folder)
    run = Run.resume(folder)
    back = run.restore(whole, optimizer, rng=False)
    return run, back.step if back else 0
