"""What a training shows: a bar on a terminal, one line per validation elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metafast.maml._evaluate import Evaluation


class Progress:
    """Progress of a meta-training, with loss and validation."""

    def __init__(self, steps: int, start: int = 0, *, shown: bool = True, title: str = "meta-training") -> None:
        self._steps, self._start, self._title = steps, start, title
        self._shown = shown
        self._bar: Any = None
        self._console: Any = None
        self._words = {"now": "", "val": ""}

    def __enter__(self) -> Progress:
        if not self._shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console()
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"),
                TextColumn("{task.fields[val]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Bar(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._steps, completed=self._start, **self._words)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: dict[str, float]) -> None:
        """A step is done; `row` has what was measured since the last one."""
        if row:
            self._words["now"] = f"loss {row.get('loss', float('nan')):.4f}"
            if "accuracy" in row:
                self._words["now"] += f", accuracy {100 * row['accuracy']:.1f} %"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, **self._words)

    def validated(self, step: int, result: Evaluation) -> None:
        """A validation is done."""
        self._words["val"] = f"validation {result}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, **self._words)
        elif self._console is not None:
            now = f", {self._words['now']}" if self._words["now"] else ""
            self._console.print(f"  step {step} of {self._steps}{now}, validation {result}", highlight=False)
