"""Report of a crash of the daemon, which its next start reads: was it inside a model, and of which release?

Python's fault handler writes the stacks of all threads into a file when the process crashes by a signal. A
process that is killed (SIGKILL, power) writes nothing, and that costs a release nothing. The file is opened
once and stays empty as long as all is well: no frame pays for it. Which channel's model it was is not in it.
Where several are followed, it counts for each release that is on probation then; it takes two crashes within
the few minutes of both.

Two signals say less than they seem to. SIGABRT comes from systemd's watchdog, too, whatever made the daemon
stop: the stack of a model counts then only if the daemon had noted that the model hangs, and the end counts
against no release if it had noted that the source hangs. SIGBUS is how a page that the disk cannot read ends,
in whichever code it is needed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import re
from typing import TYPE_CHECKING

from edge_client.daemon.watchdog import Hang
from edge_client.serving.probation import LastEnd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

logger = logging.getLogger(__name__)

CRASH_FILE = "crash.txt"
_LIMIT_BYTES = 1 << 20
_FRAME = re.compile(r'^  File "(?P<file>.*)", line \d+ in (?P<function>\S+)$')
# Module and function in which the runtime runs a model.
_IN_MODEL = {("classifier.py", "_infer"), ("runtime.py", "load_interpreter")}
# Who called it. A release that is being activated has no record yet: `slots.json` says that it was tried.
_CALLERS = {
    ("serving.py", "predict"): LastEnd.SERVING_MODEL,
    ("activation.py", "open_best_slot"): LastEnd.SERVING_MODEL,
    ("serving.py", "compare"): LastEnd.SHADOW_MODEL,
    ("serving.py", "_begin_shadow"): LastEnd.SHADOW_MODEL,
}


# First lines of a report once the daemon has found that something hangs.
_MODEL_HANGS, _SOURCE_HANGS = "The model hangs.\n", "The source hangs.\n"
_MARKS = {Hang.NONE: "", Hang.MODEL: _MODEL_HANGS, Hang.SOURCE: _SOURCE_HANGS}


class CrashReport:
    """The report of the last run, and the file for that of this one.

    Attributes:
        last_end: How the last run ended, as far as its report tells.
    """

    def __init__(self, last_end: LastEnd, file: BinaryIO | None) -> None:
        self.last_end = last_end
        self._file = file

    def note_hang(self, hang: Hang) -> None:
        """Note what hangs; never fails."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            self._file.truncate(0)
            self._file.seek(0)
            self._file.write(_MARKS[hang].encode())


@contextlib.contextmanager
def crash_report(state_dir: Path) -> Iterator[CrashReport]:
    """Read the report of the last run, and let a crash within the block write one; never fails."""
    path = state_dir / CRASH_FILE
    end = LastEnd.UNKNOWN
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            report = file.read(_LIMIT_BYTES).decode(errors="replace")
        if _unmarked(report):
            end = find_end(report)
            logger.error("the last run crashed: %s", describe(report, end))
    with contextlib.ExitStack() as stack:
        output: BinaryIO | None = None
        try:
            output = stack.enter_context(path.open("wb", buffering=0))
        except OSError:
            logger.warning("%s: cannot be written: a crash of a model would not be known as one", path)
        else:
            faulthandler.enable(output, all_threads=True)
            stack.callback(_end, path)
        yield CrashReport(end, output)


def _end(path: Path) -> None:
    """Stop reporting, at an end without a crash."""
    faulthandler.disable()
    with contextlib.suppress(OSError):
        path.unlink()


def find_end(report: str) -> LastEnd:
    """Return how a run ended that left this report.

    The thread that crashed comes first. It has no Python stack if it is one of the runtime's own; all stacks
    count then, and where a daemon was aborted whose model hangs.
    """
    threads = _unmarked(report).split("\n\n")
    aborted = "Aborted" in threads[0]
    if aborted and report.startswith(_SOURCE_HANGS):
        return LastEnd.SOURCE
    if "Bus error" in threads[0]:
        return LastEnd.UNKNOWN
    crashed = [thread for thread in threads if thread.startswith("Current thread")]
    hung = aborted and report.startswith(_MODEL_HANGS)
    for thread in threads if hung or not crashed else crashed:
        frames = _frames(thread)
        if _IN_MODEL.intersection(frames):
            return next((_CALLERS[frame] for frame in frames if frame in _CALLERS), LastEnd.UNKNOWN)
    return LastEnd.UNKNOWN


def describe(report: str, end: LastEnd) -> str:
    """Return a crash in one line, for the log."""
    report = _unmarked(report)
    where = _frames(report)[:1]
    place = f", in {where[0][1]} of {where[0][0]}" if where else ""
    inside = f"; {end.value}" if end is not LastEnd.UNKNOWN else ""
    return f"{report.splitlines()[0][:200]}{place}{inside}"


def _unmarked(report: str) -> str:
    """Return a report without the note of what hung."""
    return report.removeprefix(_MODEL_HANGS).removeprefix(_SOURCE_HANGS)


def _frames(thread: str) -> list[tuple[str, str]]:
    """Return file name and function of each frame, the innermost first."""
    found = (_FRAME.match(line) for line in thread.splitlines())
    return [(frame["file"].rpartition("/")[2], frame["function"]) for frame in found if frame]
