"""What a resumed training must know beyond its objects' own states."""

from __future__ import annotations

from typing import Any


class TrainingState:
    """What a resumed training must know beyond the objects' own states."""

    def __init__(self) -> None:
        self.step = 0
        self.score: float | None = None
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.waited = 0
        self.dropped = 0
        self.skipped = 0
        self.seconds = 0.0
        self.stopped: str | None = None
        self.window: dict[str, list[float]] = {}  # of the row that is not yet written

    def extras(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "step"}

    def load(self, step: int, extras: dict[str, Any]) -> None:
        vars(self).update(extras)
        self.step = step


class Window:
    """Means over the steps between two rows of the record."""

    def __init__(self, sums: dict[str, list[float]]) -> None:
        self.sums = sums

    def add(self, metrics: dict[str, Any], norm: float | None, seconds: float) -> None:
        losses = metrics["loss"]
        finite = losses.isfinite()
        found: dict[str, float] = {
            key: float(metrics[key][finite].mean()) for key in ("loss", "accuracy", "mse") if key in metrics
        }
        if norm is not None:
            found["grad_norm"] = norm
        for key, value in {**found, "seconds": seconds, "tasks": float(len(losses))}.items():
            self.sums.setdefault(key, []).append(value)

    def row(self) -> dict[str, float]:
        means = {key: sum(values) / len(values) for key, values in self.sums.items()}
        speed = means.pop("tasks") / max(means.pop("seconds"), 1e-9)
        return {**means, "tasks_per_second": speed}
