"""What a search shows: a bar on a terminal, one line per leg elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from metafast.tune.population._member import Leg


class Progress:
    """Steps trained by all members, and the last value."""

    def __init__(self, title: str, total: int | None, *, shown: bool) -> None:
        self._console = Console(quiet=not shown)
        words = TextColumn("{task.description}"), TextColumn("{task.fields[last]}", markup=False)
        self._bar = Bar(words[0], BarColumn(), words[1], TimeElapsedColumn(), console=self._console)
        self._task = self._bar.add_task(title, total=total, last="")
        self._shown, self._steps, self._under_way = shown, 0, dict[tuple[int, int], int]()

    def __enter__(self) -> Progress:
        if self._shown and self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    def report(self, leg: Leg, step: int, value: float) -> None:
        """A member has reported."""
        self._under_way[leg.member, leg.number] = step - leg.start
        self._update(f"member {leg.member}, step {step}: {value:.4g}")

    def done(self, leg: Leg) -> None:
        """A leg has ended."""
        self._under_way.pop((leg.member, leg.number), None)
        self._steps += leg.stop - leg.start
        now = f"{leg.value:.4g}" if leg.error is None else f"failed: {leg.error}"
        text = f"member {leg.member}, step {leg.stop}: {now}"
        if not self._console.is_terminal:
            self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
        self._update(text)

    def _update(self, text: str) -> None:
        self._bar.update(self._task, completed=self._steps + sum(self._under_way.values()), last=text)
