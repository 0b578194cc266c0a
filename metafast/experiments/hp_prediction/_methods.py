"""The methods that are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metafast.experiments.hp_prediction import _optuna
from metafast.experiments.hp_prediction._ours import Predicted
from metafast.experiments.hp_prediction._searchers import RGPE, PlainGP, RandomSearch, ZeroShot

if TYPE_CHECKING:
    from metafast.experiments.hp_prediction._replay import Make
    from metafast.hpo import Predictor


@dataclass(frozen=True)
class Method:
    """One of them.

    Args:
        title: for tables.
        make: the search, from a table, its sources and a seed; of the predictor's own: with `predictor` too.
        predicts: whether it is a predictor's.
        drawn: whether it depends on the seed.
        settings: of the predictor, that are others than usual.
    """

    title: str
    make: Callable[..., Any]
    predicts: bool = False
    drawn: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, predictor: Predictor | None) -> Make:
        """What `replay` takes."""
        made: Make = functools.partial(self.make, predictor=predictor) if self.predicts else self.make
        return made


OURS = "ours"
METHODS = {
    OURS: Method("predictor", Predicted, predicts=True, drawn=False),
    "ours_cost": Method("predictor, cheap first", functools.partial(Predicted, per_cost=True), True, drawn=False),
    "ours_short": Method("predictor, short runs", functools.partial(Predicted, short=True), True, drawn=False),
    "ours_plain": Method("predictor, no features", functools.partial(Predicted, features=False), True, drawn=False),
    "portfolio": Method("predictor, all at once", Predicted, True, drawn=False, settings={"portfolio": 10**6}),
    "zero_shot": Method("zero-shot list", ZeroShot, drawn=False),
    "rgpe": Method("RGPE", RGPE),
    "meta_tpe": Method("Meta-Learn TPE", _optuna.meta_tpe),
    "gp": Method("GP (Optuna)", _optuna.gp),
    "gp_table": Method("GP over candidates", PlainGP),
    "tpe": Method("TPE (Optuna)", _optuna.tpe),
    "cma_es": Method("CMA-ES (Optuna)", _optuna.cma_es),
    "random": Method("random search", RandomSearch),
}
RIVALS = ("tpe", "gp", "gp_table", "rgpe", "meta_tpe")  # that regret is tested against


def missing() -> dict[str, str]:
    """Methods that cannot be run here, and why."""
    try:
        _optuna.load_meta_tpe()
    except ImportError as error:
        return {"meta_tpe": str(error).splitlines()[0]}
    return {}
