"""What a search has found: members, their legs, and how values changed over the best one's past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metafast.runs import _checkpoint
from metafast.tune.population._member import Leg


@dataclass(frozen=True)
class Found:
    """One member at the end of a search.

    Attributes:
        id: its number.
        config: values of its last leg that did not fail; of its last leg if all did.
        value: reported at the end of that leg; None if all failed.
        step: steps trained then.
        error: of its last leg, where that failed.
        path: folder of its `metafast.runs.Run`.
    """

    id: int
    config: dict[str, Any]
    value: float | None
    step: int
    error: str | None
    path: Path

    def state_dict(self, name: str = "model") -> dict[str, Any]:
        """What was saved by that name in its last checkpoint; `model.load_state_dict(result.best.state_dict())`.

        Raises:
            KeyError: nothing was saved by that name.
            ValueError: the checkpoint is missing or damaged.
        """
        objects = _checkpoint.read(self.path / "checkpoints", self.step)["objects"]
        if name not in objects:
            raise KeyError(f"no {name!r} in the checkpoint of {self.path}; saved: {sorted(objects)}")
        state: dict[str, Any] = objects[name]
        return state


class PopulationResult:
    """What a search has found.

    Attributes:
        path: folder of the population's record.
        legs: all that were trained, in the order in which they ended.
        members: one `Found` for each training, by number.
        best: the member with the best value at the end of its training.

    Example:
        >>> legs = [Leg(0, 0, 0, 10, {"batch_size": 32}, 0, value=0.5)]
        >>> legs += [Leg(1, 0, 0, 10, {"batch_size": 64}, 0, value=0.9)]
        >>> legs += [Leg(1, 1, 10, 20, {"batch_size": 128}, 0, source=0, value=0.3)]
        >>> result = PopulationResult(Path("runs/pb2"), legs, "min")
        >>> result.best.id, result.schedule()
        (1, {'batch_size': [(0, 32), (10, 128)]})
    """

    def __init__(self, path: Path, legs: Sequence[Leg], mode: str) -> None:
        self.path, self.legs, self.mode = path, list(legs), mode
        self.members = [self._member(number) for number in sorted({leg.member for leg in legs})]

    @property
    def best(self) -> Found:
        """The member with the best value."""
        good = [member for member in self.members if member.value is not None]
        sign = 1 if self.mode == "min" else -1
        return min(good, key=lambda member: (sign * (member.value or 0.0), member.id))

    def table(self) -> list[dict[str, Any]]:
        """One row for each member, the best first: number, value, step, error, and values of the hyperparameters."""
        sign = 1 if self.mode == "min" else -1
        rows = [{"member": m.id, "value": m.value, "step": m.step, "error": m.error, **m.config} for m in self.members]
        return sorted(rows, key=lambda row: (row["value"] is None, sign * (row["value"] or 0.0), row["member"]))

    def lineage(self, member: int | None = None) -> list[Leg]:
        """The legs that led to a member's weights, from the beginning on, through members that it took over.

        Args:
            member: its number. Default: the best.

        Raises:
            ValueError: no such member.
        """
        found = self.best if member is None else next((m for m in self.members if m.id == member), None)
        if found is None:
            raise ValueError(f"member must be one of 0 to {len(self.members) - 1}, got {member!r}")
        legs = {(leg.member, leg.stop): leg for leg in self.legs if leg.value is not None}
        past: list[Leg] = []
        number, step = found.id, found.step
        while (number, step) in legs:
            leg = legs[number, step]
            past.append(leg)
            number, step = leg.member if leg.source is None else leg.source, leg.start
        return past[::-1]

    def schedule(self, member: int | None = None) -> dict[str, list[tuple[int, Any]]]:
        """How each hyperparameter changed over the lineage of a member: pairs of the step from which on, and a value.

        Args:
            member: its number. Default: the best.
        """
        found: dict[str, list[tuple[int, Any]]] = {}
        for leg in self.lineage(member):
            for name, value in leg.config.items():
                changes = found.setdefault(name, [])
                if not changes or changes[-1][1] != value:
                    changes.append((leg.start, value))
        return found

    def __repr__(self) -> str:
        best = self.best
        return f"PopulationResult({len(self.members)} members; best: member {best.id}, {best.value:.4g}, {best.config})"

    def _member(self, number: int) -> Found:
        legs = sorted((leg for leg in self.legs if leg.member == number), key=lambda leg: leg.number)
        good = [leg for leg in legs if leg.value is not None]
        last = good[-1] if good else legs[-1]
        step = last.stop if good else last.start
        return Found(number, last.config, last.value, step, legs[-1].error, self.path / last.name)
