"""Progress bars for work that takes more than a few seconds."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

# Names of classes and folders are no markup.
console = Console(stderr=True, markup=False, emoji=False)


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s")


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False, table_column=Column(no_wrap=True))


class Bar:
    """A bar on standard error; where that is no terminal, one line when it ends.

    Args:
        name: What is being done.
        total: How many units there are.
        unit: What one unit is called.
        show: Whether to show anything at all.
    """

    def __init__(self, name: str, total: int, *, unit: str, show: bool) -> None:
        self._progress = Progress(
            _text("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
            TextColumn(
                "{task.completed:,.0f}/{task.total:,.0f}", table_column=Column(no_wrap=True)
            ),
            _Speed(unit),
            _text("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not show or total == 0,
        )
        self._task = self._progress.add_task(name, total=total, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, units: int, note: str | None = None) -> None:
        """Moves on by ``units``; ``note`` replaces the text beside the bar."""
        if note is None:
            self._progress.advance(self._task, units)
        else:
            self._progress.update(self._task, advance=units, note=note)

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._progress.disable:
            self._progress.console.print(text, highlight=False, soft_wrap=True)
