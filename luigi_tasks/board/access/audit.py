"""History of what was done on the board: who, with which role, from where, what, why, and how it ended.

`[board] state_dir`/audit.jsonl, one JSON object a line, written durably by a thread of its own: no act waits
for the disk. A full file becomes audit.jsonl.1, that one audit.jsonl.2, and so on. What cannot be written
stands in the log. Acts whose name begins with `board.` are told as events of the fleet too, once, as far as
broker and webhooks take them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, encode_compact
from edge_client.contract.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger("edge-fleet")

EVENT_PREFIX = "board."
DONE = "done"
FILE_BYTES, FILES = 8 << 20, 8
_WAITING = 10_000
_CHARACTERS = 500
_END_S = 3.0


class Act(Document, frozen=True, kw_only=True):
    """Something that a person did, or was refused.

    Attributes:
        at: Time, UTC, ISO 8601.
        who: Name of the person; empty: not known.
        role: Their role.
        by: How the board knew them: `token`, `sign-in`, `proxy`, or not at all.
        address: Address of their machine.
        what: The act, such as `board.run_started`.
        why: Their reason.
        result: `done`, or how it failed.
        facts: What it was done to: texts by name.
    """

    at: str
    who: str = ""
    role: str = ""
    by: str = ""
    address: str = ""
    what: str
    why: str = ""
    result: str = DONE
    facts: dict[str, str] = {}


class Audit:
    """Writes and reads the history.

    Args:
        folder: `[board] state_dir`.
        tell: Tells the fleet of an act; may block, its errors are logged.
    """

    def __init__(self, folder: Path, tell: Callable[[Act], object]) -> None:
        self._path = folder / "audit.jsonl"
        self._tell = tell
        self._acts: queue.Queue[Act | None] = queue.Queue(_WAITING)
        self._events: queue.Queue[Act | None] = queue.Queue(_WAITING)
        self._threads = [
            threading.Thread(target=self._run, args=(self._acts, self._write), daemon=True),
            threading.Thread(target=self._run, args=(self._events, tell), daemon=True),
        ]
        for one in self._threads:
            one.start()

    def add(self, act: Act) -> None:
        """Write an act, soon."""
        self._put(self._acts, act)
        if act.what.startswith(EVENT_PREFIX) and act.result == DONE:
            self._put(self._events, act)

    def last(self, number: int) -> tuple[Act, ...]:
        """Return the last acts, newest first, also what is just being written; reads files.

        Raises: OSError.
        """
        with self._acts.all_tasks_done:
            self._acts.all_tasks_done.wait_for(lambda: not self._acts.unfinished_tasks, _END_S)
        found: list[Act] = []
        for path in self._files():
            for line in reversed(path.read_bytes().splitlines()):
                with contextlib.suppress(msgspec.DecodeError):  # half a line, of a power cut
                    found.append(msgspec.json.decode(line, type=Act))
                if len(found) == number:
                    return tuple(found)
        return tuple(found)

    def close(self) -> None:
        """Write what waits."""
        for waiting in (self._acts, self._events):
            with contextlib.suppress(queue.Full):
                waiting.put_nowait(None)
        self._threads[0].join(_END_S)

    def _put(self, waiting: queue.Queue[Act | None], act: Act) -> None:
        try:
            waiting.put_nowait(act)
        except queue.Full:
            _say_lost(f"{self._path}: too many wait", act)

    @staticmethod
    def _run(waiting: queue.Queue[Act | None], work: Callable[[Act], object]) -> None:
        while (act := waiting.get()) is not None:
            try:
                work(act)
            except Exception as e:  # noqa: BLE001 - the next act is written all the same
                _say_lost(f"not told: {e}", act)
            finally:
                waiting.task_done()

    def _write(self, act: Act) -> None:
        line = _line(act) + b"\n"
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size + len(line) > FILE_BYTES:
                    self._rotate()
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # half a line, of a power cut or a full disk, is not ours
                if os.write(descriptor, line) != len(line):
                    _say_lost(f"{self._path}: no space", act)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as e:
            _say_lost(f"{self._path}: {e.strerror}", act)

    def _rotate(self) -> None:
        for number in range(FILES - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number - 1).replace(self._numbered(number))

    def _files(self) -> Iterator[Path]:
        yield from (one for one in map(self._numbered, range(FILES)) if one.exists())

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def short(value: object) -> str:
    """Return a text from outside as it is kept: one line, its start."""
    return one_line(str(value))[:_CHARACTERS]


def _say_lost(why: str, act: Act) -> None:
    logger.error("%s; this act stands here alone: %s", one_line(why), one_line(_line(act).decode()))


def _line(act: Act) -> bytes:
    return encode_compact(act)
