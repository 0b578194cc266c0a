"""A learning rate that a controller sets, against fixed rates, schedules and adaptive optimizers.

`metafast run lr-adaptation` is its command; the parts are here for those who want to change a recipe.
"""

from metafast.experiments._running import OtherSettingsError
from metafast.experiments.lr_adaptation._methods import METHODS, missing
from metafast.experiments.lr_adaptation._pairs import MODELS, SOURCES, load_pair, title
from metafast.experiments.lr_adaptation._plan import Plan
from metafast.experiments.lr_adaptation._recipes import ADAPTED, HELD_OUT, RECIPES, SWEEP, Recipe, Setup
from metafast.experiments.lr_adaptation._report import table, write
from metafast.experiments.lr_adaptation._run import check_folder, results, run
from metafast.experiments.lr_adaptation._train import Training, train
from metafast.experiments.lr_adaptation._verdicts import Summary, Sweep, Verdict, summaries, sweeps, verdicts

__all__ = [
    "ADAPTED",
    "HELD_OUT",
    "METHODS",
    "MODELS",
    "RECIPES",
    "SOURCES",
    "SWEEP",
    "OtherSettingsError",
    "Plan",
    "Recipe",
    "Setup",
    "Summary",
    "Sweep",
    "Training",
    "Verdict",
    "check_folder",
    "load_pair",
    "missing",
    "results",
    "run",
    "summaries",
    "sweeps",
    "table",
    "title",
    "train",
    "verdicts",
    "write",
]
