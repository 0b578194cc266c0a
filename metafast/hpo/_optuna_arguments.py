"""Arguments that the sampler and the pruner for Optuna have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metafast._checks import integer
from metafast.hpo._metrics import check_direction
from metafast.hpo._space import Space

if TYPE_CHECKING:
    from optuna.study import Study


class Arguments:
    """What a predictor is told about a study.

    Args:
        predictor: one with `suggest` and `belief`, or what `Predictor.load` takes.
        task: features by name, or None.
        space: with conditions, or None.
        metric: name of the objective, or None.
        reference: score without learning, or None.
        n_steps: of a whole training, or None.
    """

    def __init__(
        self, predictor: Any, task: Any, space: Any, metric: str | None, reference: float | None, n_steps: int | None
    ) -> None:
        if isinstance(predictor, str | os.PathLike):
            from metafast.hpo._predictor import Predictor

            predictor = Predictor.load(predictor)
        if not (hasattr(predictor, "suggest") and hasattr(predictor, "belief")):
            raise TypeError(
                f'predictor must be a Predictor, "default" or the path of one, got {type(predictor).__name__}'
            )
        if task is not None and not isinstance(task, Mapping):
            raise TypeError(
                f"task must be features by name, got {type(task).__name__}; task_features(train_dataset) makes them"
            )
        if space is not None and not isinstance(space, Space):
            raise TypeError(f"space must be a Space, got {type(space).__name__}")
        if metric is not None and not isinstance(metric, str):
            raise TypeError(f"metric must be a name such as 'accuracy', got {metric!r} ({type(metric).__name__})")
        self.predictor, self.task, self.space = predictor, task, space
        self.metric, self.reference = metric, reference
        self.n_steps = None if n_steps is None else integer("n_steps", n_steps, minimum=1)

    def told(self, study: Study) -> dict[str, Any]:
        """Keywords of the predictor's methods; ValueError where the metric is the wrong way round."""
        direction = study.direction.name.lower()
        names = _metric_names(study)
        metric = self.metric or (names[0] if names else "accuracy" if direction == "maximize" else "loss")
        check_direction(metric, direction, "create the study with the other direction, or name the metric: metric=…")
        return {"features": self.task, "metric": metric, "direction": direction, "reference": self.reference}


def _metric_names(study: Study) -> list[str] | None:
    try:
        return study.metric_names
    except AttributeError:  # the part of a study that Hyperband shows to samplers
        names: list[str] | None = study._storage.get_study_system_attrs(study._study_id).get("study:metric_names")
        return names
