"""Does it learn? Meta-training by the recipes in recipes/*.json: 600 test episodes, 95 % intervals, several seeds.

    python -m benchmarks.maml.learning sinusoid omniglot_fc
    python -m benchmarks.maml.learning omniglot_fc --methods MAML --seeds 0
    python -m benchmarks.maml.learning omniglot_fc --trial --set MAML.meta_lr=0.003 --output trial.json
    python -m benchmarks.maml.learning --report

A seed that was interrupted goes on bit for bit from its last checkpoint. Weights are chosen, and so are the steps of
adaptation where a recipe lists several, on the validation classes; test classes are seen once, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.convergence.study import RESULTS
from metafast import models
from metafast.data import episodes
from metafast.maml import ALGORITHMS, MetaLearner, ProtoNet, Trainer, evaluate
from metafast.maml.baselines import run_baselines
from metafast.runs import Run

from . import learning_report
from .learning_results import Results, made_by

RECIPES = Path(__file__).with_name("recipes")
# Never those of a training: a seed's episodes are a function of (seed, number).
VAL_SEED, TEST_SEED = 10_000, 20_000
TEST_EPISODES, VAL_EPISODES = 600, 200
Recipe = dict[str, Any]


def recipe_of(name: str, changes: Sequence[str] = ()) -> Recipe:
    """A recipe, with changes such as `MAML.meta_lr=0.003` or `defaults.iterations=10` (values are JSON)."""
    recipe: Recipe = json.loads((RECIPES / f"{name}.json").read_text(encoding="utf-8"))
    for change in changes:
        path, _, value = change.partition("=")
        first, _, key = path.rpartition(".")
        places = {"defaults": recipe["defaults"], "data": recipe["data"], "model": recipe["model"], **recipe["methods"]}
        if first not in places:
            raise SystemExit(f"--set {change}: must begin with one of {', '.join(places)}")
        places[first][key] = json.loads(value)
    return recipe


def settings_of(recipe: Recipe, method: str) -> dict[str, Any]:
    """Everything that a method's result depends on, beside the seed."""
    own = {**recipe["defaults"], **recipe["methods"][method]}
    for name in ("target", "target_minutes", "as_good_as"):
        own.pop(name, None)
    return {**own, "data": recipe["data"], "model": recipe["model"], "test_queries": recipe["test_queries"]}


def tasks_of(recipe: Recipe, split: str, seed: int) -> Any:
    """Episodes of a split. Every method sees the same test episodes."""
    options = dict(recipe["data"])
    source = options.pop("source")
    if split != "train":
        options["queries"] = recipe["test_queries"]
        options["tasks"] = 20
    offset = {"train": 0, "val": VAL_SEED, "test": TEST_SEED}[split]
    return episodes(source, split=split, seed=offset + seed, **options)


def model_of(recipe: Recipe, seed: int) -> nn.Module:
    """A model with the weights of a seed."""
    options = dict(recipe["model"])
    model: nn.Module = getattr(models, options.pop("kind"))(**options, seed=seed)
    return model


def learner_of(recipe: Recipe, settings: dict[str, Any], seed: int) -> MetaLearner:
    """The algorithm of a method."""
    model = model_of(recipe, seed)
    options: dict[str, Any] = {"on_nan": "drop", "seed": seed}
    if settings["algorithm"] == "protonet":
        return ProtoNet(model, **options)
    if recipe["metric"] == "mse":
        options["loss"] = "mse"
    options |= settings.get("options", {})
    return ALGORITHMS[settings["algorithm"]](model, settings["inner_lr"], settings["steps"], **options)


def meta_train(name: str, recipe: Recipe, method: str, seed: int, runs: Path, trial: bool = False) -> dict[str, Any]:
    """Trains and tests a meta-learner; its row of the results. A trial is tested on validation episodes."""
    settings = settings_of(recipe, method)
    maml = learner_of(recipe, settings, seed)
    iterations = settings["iterations"]
    val = tasks_of(recipe, "val", seed)
    digest = zlib.crc32(json.dumps(settings, sort_keys=True).encode())  # a run of other settings is another run
    trainer = Trainer(
        maml,
        tasks_of(recipe, "train", seed),
        iterations,
        val=val,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=settings["meta_lr"]),
        schedule="cosine" if settings["cosine"] else None,
        clip=settings.get("clip"),
        val_every=max(1, iterations // 20),
        val_episodes=VAL_EPISODES,
        max_minutes=settings.get("max_minutes"),
        output=runs,
        name=f"{name}-{method.lower().replace('+', 'p')}-{seed}-{digest:08x}",
        seed=seed,
        config={"recipe": name, "settings": settings},
        tags=["benchmark", name],
        resume=True,
        progress=False,
    )
    ended = trainer.fit()
    choices = {steps: evaluate(maml, val, 600, steps=steps) for steps in settings["test_steps"]}
    sign = 1 if recipe["metric"] == "accuracy" else -1
    chosen = max(choices, key=lambda steps: sign * choices[steps].score.mean)
    test = choices[chosen]
    if not trial:
        test = evaluate(maml, tasks_of(recipe, "test", seed), TEST_EPISODES, steps=chosen)
    curve = Run.open(ended.path).curve(f"val_{recipe['metric']}")
    return {
        "test": test.summary(),
        "val": choices[chosen].summary(),
        "test_steps": chosen,
        "iterations": ended.steps,
        "best_iteration": ended.best_step,
        "minutes": round(ended.seconds / 60, 2),
        "dropped": ended.dropped,
        "engine": "" if settings["algorithm"] == "protonet" else str(maml.explain()).splitlines()[0],
        "curve": [[int(s), round(float(v), 6)] for s, v in zip(curve.steps, curve.values, strict=True)],
    }


def baseline(recipe: Recipe, method: str, seed: int, trial: bool = False) -> dict[str, Any]:
    """Trains, tunes on validation episodes and tests a baseline; its row of the results."""
    settings = settings_of(recipe, method)
    start = time.perf_counter()
    name = settings["baseline"]
    (result,) = run_baselines(
        model_of(recipe, seed),
        tasks_of(recipe, "train", seed),
        tasks_of(recipe, "val", seed),
        tasks_of(recipe, "val" if trial else "test", seed),
        steps=settings["steps"],
        training_steps=settings["iterations"],
        episodes=TEST_EPISODES,
        val_episodes=VAL_EPISODES,
        which=[name],
        seed=seed,
        **({"loss": "mse"} if recipe["metric"] == "mse" else {}),
    ).values()
    minutes = (time.perf_counter() - start) / 60
    return {"test": result.result.summary(), "chosen": result.settings, "minutes": round(minutes, 2)}


def run(args: argparse.Namespace, name: str, seeds: Sequence[int]) -> None:
    """Works off the rows that a recipe's results file lacks."""
    recipe = recipe_of(name, args.set)
    results = Results(args.output or RESULTS / f"maml_{name}.json", name, recipe)
    for seed in seeds:
        for method in args.methods or recipe["methods"]:
            settings = settings_of(recipe, method)
            if results.has(method, seed, settings):
                continue
            print(f"{name}: {method}, seed {seed}", flush=True)
            if "baseline" in settings:
                row = baseline(recipe, method, seed, args.trial)
            else:
                row = meta_train(name, recipe, method, seed, args.runs, args.trial)
            row = {**row, "settings": settings, "seed": seed, **made_by()}
            results.add(method, seed, row)
            print(f"  test {row['test']['mean']:.4f} ± {row['test']['half_width']:.4f}, {row['minutes']:.1f} minutes",
                  flush=True)  # fmt: skip
    learning_report.plot(results.content, results.path.with_suffix(".png"))
    print(learning_report.table(results.content), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names in recipes/; with several, seed 0 of all comes first")
    parser.add_argument("--methods", nargs="+", help="default: all of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE", help="a changed recipe, for trials")
    parser.add_argument("--trial", action="store_true", help="for choosing settings: the test classes stay unseen")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/maml"), help="folder of records and checkpoints")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/maml_RECIPE.json")
    parser.add_argument("--report", action="store_true", help="only print the tables of all results")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.report:
        for path in sorted(RESULTS.glob("maml_*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if "recipe" in content:
                print(learning_report.table(content) + "\n")
        return
    known = sorted(p.stem for p in RECIPES.glob("*.json"))
    if not args.recipes or set(args.recipes) - set(known):
        parser.error(f"recipes, got {args.recipes}: choose from {', '.join(known)}; or --report")
    if args.trial and args.output is None:
        parser.error("--trial needs --output: its rows are no results")
    if len(args.recipes) > 1 and (args.output or args.methods or args.set):
        parser.error("--output, --methods and --set are for one recipe")
    unknown = set(args.methods or ()) - set(recipe_of(args.recipes[0])["methods"])
    if unknown:
        parser.error(f"--methods {', '.join(sorted(unknown))}: not in the recipe")
    for seed in args.seeds:
        for name in args.recipes:
            run(args, name, [seed])


if __name__ == "__main__":
    main()
