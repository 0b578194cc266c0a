"""A meta-network that adapts a frozen model in a few steps, against fine-tuning, LoRA, ProtoNet, MAML and ANIL.

`metafast run rapid-adaptation` is its command; the parts are here for those who want to change a recipe.
"""

from metafast.experiments._running import OtherSettingsError
from metafast.experiments.rapid_adaptation._jobs import Job
from metafast.experiments.rapid_adaptation._methods import METHODS, learner
from metafast.experiments.rapid_adaptation._plan import Case, Plan
from metafast.experiments.rapid_adaptation._recipes import RECIPES, Initial, Ours, Recipe, Setup, Target
from metafast.experiments.rapid_adaptation._report import accuracy_figure, course_figure, table, time_figure, write
from metafast.experiments.rapid_adaptation._run import check_folder, results, run
from metafast.experiments.rapid_adaptation._summaries import Share, Summary, shares, summaries
from metafast.experiments.rapid_adaptation._verdicts import Verdict, verdicts
from metafast.experiments.rapid_adaptation._work import do

__all__ = [
    "METHODS",
    "RECIPES",
    "Case",
    "Initial",
    "Job",
    "OtherSettingsError",
    "Ours",
    "Plan",
    "Recipe",
    "Setup",
    "Share",
    "Summary",
    "Target",
    "Verdict",
    "accuracy_figure",
    "check_folder",
    "course_figure",
    "do",
    "learner",
    "results",
    "run",
    "shares",
    "summaries",
    "table",
    "time_figure",
    "verdicts",
    "write",
]
