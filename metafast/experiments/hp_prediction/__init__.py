"""Predicted hyperparameters against grid, random search, Optuna's samplers and transfer, replayed on tables.

`metafast run hp-prediction` is its command; the parts are here for those who want to change a recipe.
"""

from metafast.experiments._running import OtherSettingsError
from metafast.experiments.hp_prediction._compare import USUAL, compare
from metafast.experiments.hp_prediction._methods import METHODS, OURS, Method, missing
from metafast.experiments.hp_prediction._plan import Plan, Search, search
from metafast.experiments.hp_prediction._recipes import RECIPES, Recipe, Suite
from metafast.experiments.hp_prediction._replay import LOOKS, replay
from metafast.experiments.hp_prediction._report import regret_figure, share_figure, table, write
from metafast.experiments.hp_prediction._run import check_folder, results, run
from metafast.experiments.hp_prediction._suites import TITLES, Fold, folds, split, tables
from metafast.experiments.hp_prediction._tables import Table
from metafast.experiments.hp_prediction._verdicts import Summary, Verdict, compared, summaries, verdicts

__all__ = [
    "LOOKS",
    "METHODS",
    "OURS",
    "RECIPES",
    "TITLES",
    "USUAL",
    "Fold",
    "Method",
    "OtherSettingsError",
    "Plan",
    "Recipe",
    "Search",
    "Suite",
    "Summary",
    "Table",
    "Verdict",
    "check_folder",
    "compare",
    "compared",
    "folds",
    "missing",
    "regret_figure",
    "replay",
    "results",
    "run",
    "search",
    "share_figure",
    "split",
    "summaries",
    "table",
    "tables",
    "verdicts",
    "write",
]
