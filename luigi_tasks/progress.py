"""Progress of a running step: on luigid's page and as a bar on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

# Called as progress(what, done, total) with 0 <= done <= total.
Progress = Callable[[str, int, int], None]

SCHEDULER_INTERVAL_S = 0.5


def ignore_progress(what: str, done: int, total: int) -> None:
    """Ignore progress."""


class TaskProgress:
    """Shows the progress of one running Luigi task."""

    def __init__(self, task: Any) -> None:  # noqa: ANN401 - Luigi sets the methods used here while it runs
        self._task = task
        self._told_at = 0.0
        self._what = ""
        self._started = time.monotonic()
        self._bars: Any = None
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take a report; luigid hears of it at most twice a second, each time it is an HTTP request."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._told_at = what, now, now
            self._open_bar(what, total)
        if self._bars is not None:
            rate = _rate(done, now - self._started)
            self._bars.update(self._bar, completed=done, total=total, rate=f"{rate:.0f}/s")
        if now - self._told_at < SCHEDULER_INTERVAL_S:
            return
        self._told_at = now
        self._task.set_status_message(_sentence(what, done, total, now - self._started))
        self._task.set_progress_percentage(int(100 * done / max(total, 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()

    def _open_bar(self, what: str, total: int) -> None:
        if not sys.stderr.isatty():
            return
        from rich import progress as rich_progress  # noqa: PLC0415 - only terminals pay for it
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
