"""A searcher for Ray Tune that asks a predictor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search import Searcher

from metafast.hpo._asking import ask_predictor
from metafast.hpo._metrics import check_direction
from metafast.hpo._optuna_arguments import Arguments
from metafast.hpo._space import Space
from metafast.hpo._space_ray import flat, nested
from metafast.hpo._types import Config, Observation
from metafast.runs._checkpoint import replace_file

if TYPE_CHECKING:
    from metafast.hpo._predictor import Predictor

DIRECTIONS = {"max": "maximize", "min": "minimize"}


class PredictorSearcher(Searcher):
    """Trials of Ray Tune that a `Predictor` suggests: `TuneConfig(search_alg=PredictorSearcher(...))`.

    Running trials count with what they have reported, and nothing is suggested twice in a finite space, which is
    searched until all of it has been tried. A trial that a scheduler stopped early counts as far as it came. The
    searcher's state is JSON.

    Args:
        predictor: a `Predictor`, "default", or the path of one.
        space: what is searched, with conditions where there are any; names with a slash become nested configurations.
            None: the `param_space` of the `Tuner`.
        metric: of the results. None: that of the `TuneConfig`, which Ray tells only searchers without a space.
        mode: "max" or "min". None: likewise.
        task: features of data set and architecture by name.
        reference: score of a predictor that has learned nothing.
        n_steps: of a whole training. None: as many as the longest finished trial has.
        time_attr: what steps are called in results.
        seed: of everything random.

    Raises:
        TypeError, ValueError: as `PredictorSampler`.
    """

    def __init__(
        self,
        predictor: Predictor | str = "default",
        space: Space | None = None,
        *,
        metric: str | None = None,
        mode: str | None = None,
        task: Mapping[str, float] | None = None,
        reference: float | None = None,
        n_steps: int | None = None,
        time_attr: str = "training_iteration",
        seed: int | None = None,
    ) -> None:
        if mode is not None and mode not in DIRECTIONS:
            raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
        super().__init__(metric=metric, mode=mode)
        self._metric, self._mode = metric, mode
        self._arguments = Arguments(predictor, task, space, metric, reference, n_steps)
        self._space, self._time = space, time_attr
        self._rng = np.random.default_rng(seed)
        self._trials: dict[str, dict[str, Any]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Takes what Ray's `Tuner` was given; False where the searcher has a space of its own already."""
        if self._space is not None and config:
            return False
        if config:
            self._space = Space.from_ray(config)
        self._metric, self._mode = metric or self._metric, mode or self._mode
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of a new trial; "FINISHED" once all of a finite space has been tried."""
        if self._space is None or self._metric is None or self._mode is None:
            raise RuntimeError(
                "PredictorSearcher needs a space, a metric and a mode: give it all three, or param_space to the Tuner "
                "and the others to its TuneConfig"
            )
        direction = DIRECTIONS[self._mode]
        check_direction(self._metric, direction, "give the other mode")
        tried = {self._space.key(trial["config"]) for trial in self._trials.values()}
        if self._space.size is not None and len(tried) >= self._space.size:
            finished: str = self.FINISHED
            return finished
        observed, pending = self._told()
        scores = [one.score for one in observed if one.fraction == 1.0 and not one.failed]
        pick = max if self._mode == "max" else min
        suggestion = ask_predictor(
            self._arguments.predictor,
            self._space,
            observed,
            pending,
            self._rng,
            best=pick(scores) if scores else None,
            keywords={
                "features": self._arguments.task,
                "metric": self._metric,
                "direction": direction,
                "reference": self._arguments.reference,
            },
        )
        expected = suggestion.expected if math.isfinite(suggestion.expected) else None
        self._trials[trial_id] = _trial(suggestion.config, expected=expected)
        return nested(suggestion.config)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remembers a point of a curve."""
        if trial_id in self._trials:
            self._add(self._trials[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Remembers an end."""
        if trial_id in self._trials:
            trial = self._trials[trial_id]
            if result:
                self._add(trial, result)
            trial["state"] = "failed" if error or not trial["curve"] else "finished"

    def add_evaluated_point(
        self,
        parameters: dict[str, Any],
        value: float,
        error: bool = False,
        pruned: bool = False,
        intermediate_values: Sequence[float] | None = None,
    ) -> None:
        """Tells the searcher of a training that it did not suggest."""
        if self._space is None:
            raise RuntimeError("PredictorSearcher needs its space before points are added: PredictorSearcher(space=…)")
        config = flat(parameters)
        self._space.check(config)
        curve: list[list[Any]] = [[step, float(value)] for step, value in enumerate(intermediate_values or [], start=1)]
        if not pruned and not error:
            curve.append([None, float(value)])
        state = "failed" if error or not curve else "finished"
        self._trials[f"added-{len(self._trials)}"] = _trial(config, state=state, curve=curve)

    def save(self, checkpoint_path: str) -> None:
        """Writes the searcher's state as JSON."""
        state = {
            "trials": self._trials,
            "rng": self._rng.bit_generator.state,
            "space": None if self._space is None else self._space.describe(),
            "metric": self._metric,
            "mode": self._mode,
        }
        replace_file(Path(checkpoint_path), lambda file: file.write_text(json.dumps(state), encoding="utf-8"))

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote; ValueError for anything else."""
        try:
            state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
            space = None if state["space"] is None else Space.of(state["space"])
            trials, metric, mode = dict(state["trials"]), state["metric"], state["mode"]
            self._rng.bit_generator.state = state["rng"]
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{checkpoint_path} is no state of a PredictorSearcher: {error!r}") from error
        self._space, self._trials, self._metric, self._mode = space, trials, metric, mode

    def _add(self, trial: dict[str, Any], result: Mapping[str, Any]) -> None:
        value, step = result.get(self._metric or ""), result.get(self._time)
        if isinstance(value, int | float) and (not trial["curve"] or trial["curve"][-1][0] != step):
            trial["curve"].append([step, float(value)])
            trial["seconds"] = result.get("time_total_s")

    def _told(self) -> tuple[list[Observation], list[tuple[Config, float | None]]]:
        """Observations, and what is being tried."""
        ends = [trial["curve"][-1][0] or 0 for trial in self._trials.values() if trial["state"] == "finished"]
        total = self._arguments.n_steps or max(ends, default=0)
        observed, pending = [], []
        for trial in self._trials.values():
            config, curve = trial["config"], trial["curve"]
            step, value = curve[-1] if curve else (None, math.nan)
            passed = min(max(step, 1) / total, 1.0) if step and total else 1.0
            if trial["state"] == "running":
                pending.append((config, trial["expected"]))
            if trial["state"] == "failed":
                observed.append(Observation(config, math.nan, passed))
            elif trial["state"] == "finished" or (curve and passed < 1):
                observed.append(Observation(config, value, passed, trial["seconds"]))
        return observed, pending


def _trial(
    config: Mapping[str, Any],
    *,
    state: str = "running",
    expected: float | None = None,
    curve: list[list[Any]] | None = None,
) -> dict[str, Any]:
    return {"config": dict(config), "state": state, "expected": expected, "curve": curve or [], "seconds": None}
