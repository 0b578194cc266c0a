"""Tuned while training against static hyperparameters and searches: ResNet-18, BERT and an LSTM.

`metafast run online-tuning` is its command; the parts are here for those who want to change a recipe.
"""

from metafast.experiments._running import OtherSettingsError
from metafast.experiments.online_tuning._plan import METHODS, Plan
from metafast.experiments.online_tuning._recipes import RECIPES, Range, Recipe, Setup, Tuning
from metafast.experiments.online_tuning._report import cost_figure, table, write
from metafast.experiments.online_tuning._run import check_folder, results, run
from metafast.experiments.online_tuning._tasks import TASKS
from metafast.experiments.online_tuning._train import Training, train
from metafast.experiments.online_tuning._verdicts import Summary, Verdict, summaries, verdicts

__all__ = [
    "METHODS",
    "RECIPES",
    "TASKS",
    "OtherSettingsError",
    "Plan",
    "Range",
    "Recipe",
    "Setup",
    "Summary",
    "Training",
    "Tuning",
    "Verdict",
    "check_folder",
    "cost_figure",
    "results",
    "run",
    "summaries",
    "table",
    "train",
    "verdicts",
    "write",
]
