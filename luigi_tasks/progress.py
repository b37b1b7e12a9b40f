"""Progress of a running step: on luigid's page and as a bar on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich import progress as rich_progress
    from typing_extensions import Self

# Called as progress(what, done, total) with 0 <= done <= total.
Progress = Callable[[str, int, int], None]

SCHEDULER_INTERVAL_S = 0.5


def ignore_progress(what: str, done: int, total: int) -> None:
    """Ignore progress."""


class ReportingTask(Protocol):
    """A Luigi task, to which a worker gives both methods while it runs."""

    @property
    def set_status_message(self) -> Callable[[str], object] | None:
        """Show a line on luigid's page."""

    @property
    def set_progress_percentage(self) -> Callable[[int], object] | None:
        """Move the bar on luigid's page."""


class TaskProgress:
    """Progress of one running Luigi task.

    Args:
        task: The task.
        clock: Monotonic seconds.
    """

    def __init__(self, task: ReportingTask, clock: Callable[[], float] = time.monotonic) -> None:
        self._task = task
        self._clock = clock
        self._reported_at = 0.0
        self._what = ""
        self._started = clock()
        self._bars: rich_progress.Progress | None = None
        self._bar: rich_progress.TaskID | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report progress; at most twice a second to luigid, since each report is an HTTP request."""
        now = self._clock()
        if what != self._what:
            self._what, self._started, self._reported_at = what, now, now
            self._open_bar(what, total)
        if self._bars is not None and self._bar is not None:
            rate = _rate(done, now - self._started)
            self._bars.update(self._bar, completed=done, total=total, rate=f"{rate:.0f}/s")
        if now - self._reported_at < SCHEDULER_INTERVAL_S:
            return
        self._reported_at = now
        if self._task.set_status_message is not None:
            self._task.set_status_message(_sentence(what, done, total, now - self._started))
        if self._task.set_progress_percentage is not None:
            self._task.set_progress_percentage(int(100 * done / max(total, 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bars is not None:
            self._bars.stop()

    def _open_bar(self, what: str, total: int) -> None:
        if not sys.stderr.isatty():
            return
        from rich import progress as rich_progress  # noqa: PLC0415 - only on a terminal
        from rich.console import Console  # noqa: PLC0415

        if self._bars is None:
            self._bars = rich_progress.Progress(
                rich_progress.TextColumn("{task.description:<32}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        self._bar = self._bars.add_task(what, total=total, rate="")


def _sentence(what: str, done: int, total: int, seconds: float) -> str:
    rate = _rate(done, seconds)
    left = f", {(total - done) / rate:.0f} s left" if 0 < done < total and rate > 0 else ""
    return f"{what}: {done} of {total} ({rate:.0f}/s{left})"


def _rate(done: int, seconds: float) -> float:
    return done / seconds if seconds > 0 else 0.0
