"""Progress bars for work that takes more than a few seconds, and the time that is left in all."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
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

# Characters in a line that hold all columns.
_WIDE = 120
# Names of classes and folders are no markup.
console = Console(stderr=True, markup=False, emoji=False)


class Plan:
    """The steps of a job, and roughly what each costs: for the time that is left of all of it.

    A step whose result is there already is not begun, and does not count.

    Args:
        costs: By step, in the order in which they are done, in whatever unit.
    """

    def __init__(self, costs: Mapping[str, float]) -> None:
        self._costs = dict(costs)
        self._left = dict(costs)
        self._now: tuple[str, float] | None = None
        self._cost = self._seconds = self._resumed = 0.0

    def __contains__(self, step: object) -> bool:
        return step in self._left

    def leave_out(self, step: str) -> None:
        """A step that need not be done; one that is none of the plan's is nothing to it."""
        self._left.pop(step, None)

    @contextlib.contextmanager
    def doing(self, step: str) -> Iterator[None]:
        """While a step is done, bars say how much is left of it and of all that follow.

        One that is none of the plan's is a part of another.
        """
        if step not in self._left:
            yield
            return
        started, before = time.perf_counter(), _PLAN.set(self)
        self._left.pop(step)
        self._now, self._resumed = (step, started), 0.0
        try:
            yield
        finally:
            _PLAN.reset(before)
            self._now = None
        self._cost += self._costs[step] * (1 - self._resumed)
        self._seconds += time.perf_counter() - started

    def resume(self, share: float) -> None:
        """A share of the step at work was done before it was interrupted."""
        self._resumed = share

    def seconds_left(self, of_bar: float | None, speed: float | None) -> float | None:
        """Of the step that is done now, and of those that follow; ``None`` if nothing is known.

        Args:
            of_bar: Seconds that the bar of the step says are left, where it says any.
            speed: Share of the bar that is done in a second, where that is known.
        """
        if self._now is None:
            return of_bar
        step, started = self._now
        cost = self._costs[step]
        if self._seconds:
            a_second = self._cost / self._seconds
        elif speed:
            a_second = cost * speed
        else:
            return None
        # A step may have several bars.
        by_cost = cost * (1 - self._resumed) / a_second - (time.perf_counter() - started)
        return max(of_bar or 0.0, by_cost, 0.0) + sum(self._left.values()) / a_second


_PLAN: ContextVar[Plan | None] = ContextVar("plan", default=None)


class _LeftOfAll(ProgressColumn):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        share = task.speed / task.total if task.speed and task.total else None
        seconds = self.plan.seconds_left(task.time_remaining, share)
        if seconds is None:
            return Text("in all -:--:--")
        return Text(f"in all {datetime.timedelta(seconds=round(seconds))}")


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self.unit}/s")


def _columns(unit: str, plan: Plan | None) -> Iterator[ProgressColumn]:
    """What a bar shows: on a narrow terminal less; in a log, where it has ended, no time left."""
    narrow = console.is_terminal and console.width < _WIDE
    yield _text("{task.description}")
    if console.is_terminal:
        yield BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6))
    if narrow:
        yield _text("{task.percentage:>3.0f} %")
    else:
        yield _text("{task.completed:,.0f}/{task.total:,.0f}")
        yield _Speed(unit)
    yield _text("{task.fields[note]}")
    if not narrow:
        yield TimeElapsedColumn()
    if console.is_terminal:
        yield _text("left")
        yield TimeRemainingColumn()
    if plan is not None:
        yield _LeftOfAll(plan)


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
        self._plan = _PLAN.get()
        self._progress = Progress(
            *_columns(unit, self._plan),
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

    def resume(self, units: int) -> None:
        """Moves on by what was done before an interruption."""
        if self._plan is not None:
            self._plan.resume(units / max(1.0, self._progress.tasks[0].total or 0.0))
        self.advance(units)

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
