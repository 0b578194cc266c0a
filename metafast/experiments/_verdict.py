"""An aim of an experiment, and whether it was reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Verdict:
    """One aim.

    Args:
        aim: what was to be reached.
        reached: None where what decides it is missing.
        text: the numbers.
    """

    unjudged: ClassVar[str] = "not judged"

    aim: str
    reached: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "reached", False: "missed", None: self.unjudged}[self.reached]
        return f"{self.aim}: {word}. {self.text}"
