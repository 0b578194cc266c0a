"""Which suites are searched, by which methods and how often: the settings at three sizes."""

from __future__ import annotations

from dataclasses import dataclass, field

from metafast.experiments.hp_prediction._methods import METHODS


@dataclass(frozen=True)
class Suite:
    """How a suite is searched.

    Args:
        folds: groups of data sets that are left out together; None: each data set on its own.
        tasks: that are searched at most; None: all.
        without: methods that are left out.
    """

    folds: int | None = None
    tasks: int | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """All suites at one size.

    Args:
        name: of the recipe.
        seeds: of each method that draws.
        runs: of each search.
        suites: by name.
        about: what a reader should know about its size.
        more: seeds of some methods that have others.
        tune: whether the settings of the predictor's model are found anew without each fold.
    """

    name: str
    seeds: int
    runs: int
    suites: dict[str, Suite]
    about: str
    more: dict[str, int] = field(default_factory=dict)
    tune: bool = False

    def seeds_of(self, method: str, wanted: int | None = None) -> int:
        """Seeds of a method; `wanted` where it draws and a number was asked for."""
        if not METHODS[method].drawn:
            return 1
        return wanted or self.more.get(method, self.seeds)


_CHEAP = {"random": 10, "tpe": 5, "cma_es": 5}

FULL = Recipe(
    name="full",
    seeds=10,
    runs=25,
    suites={"collected": Suite(), "taskset": Suite(), "svm": Suite(folds=10)},
    more={"random": 50},
    tune=True,
    about="every task of all three suites, ten seeds of each method. Hours on two cores.",
)
REDUCED = Recipe(
    name="reduced",
    seeds=3,
    runs=25,
    suites={
        "collected": Suite(),
        "taskset": Suite(without=("meta_tpe",)),
        "svm": Suite(folds=5, without=("ours_cost", "ours_short", "meta_tpe")),
    },
    more={**_CHEAP, "meta_tpe": 1},
    about="every task of all three suites; three seeds of the slow methods, five or ten of the quick ones, one of "
    "those that draw nothing and of Meta-Learn TPE, which is run on the collected tasks alone.",
)
SMOKE = Recipe(
    name="smoke",
    seeds=2,
    runs=5,
    suites={"made": Suite()},
    about="eight made-up tasks with 24 configurations. It shows that everything works; the numbers are no result.",
)
RECIPES = {recipe.name: recipe for recipe in (SMOKE, REDUCED, FULL)}
