"""Runs of the pipeline that the board starts: they outlive it, and a board that starts anew finds them again.

A run is `luigi --module luigi_tasks TASK` of this installation, with the settings of the board, below a
process of its own session (`process.py`) that keeps its log and its exit code. No shell, and no argument
that is not in the table of `kinds.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client import children
from edge_client.contract.addresses import without_passwords
from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.text import one_line
from edge_client.disk import write_durably
from luigi_tasks.board.kept_values import KeptValues
from luigi_tasks.board.runs.kinds import check_arguments
from luigi_tasks.luigid import command_codes, given_scheduler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from luigi_tasks.board.access.rights import Person

logger = logging.getLogger("edge-fleet")

RUNS_KEPT = 50
# Two runs of one machine share its memory; a Deploy takes 3 GiB.
AT_ONCE = 4
TAIL_BYTES = 32768
_LIMIT_BYTES = 65536

RUNNING, DONE, ELSEWHERE, FAILED, STOPPED, LOST = "running", "done", "elsewhere", "failed", "stopped", "lost"
# By the name of the exit code in [retcode].
CODE_WORDS = {
    "already_running": "another run is doing it; nothing was started",
    "missing_data": "data that a task needs is missing",
    "not_run": "not run: what remains belongs to other workers, or waits for a step that failed elsewhere",
    "task_failed": "a step failed",
    "scheduling_error": "a target could not be checked: no store, broker, pictures or file of that name",
    "unhandled_exception": "could not begin: a wrong setting, option or task, or luigid does not answer",
}


class StartedRun(Document, frozen=True, kw_only=True):
    """`runs/<id>.json`: what was started.

    Attributes:
        id: Time and chance.
        task: The task.
        options: Its options.
        command: The whole command.
        started_at: Seconds since 1970.
        by: Who started it; empty: not known.
        scheduler: Address of the luigid that it runs under; empty: none, its own.
    """

    id: str
    task: str
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    started_at: float = 0.0
    by: str = ""
    scheduler: str = ""


class StoppedRun(Document, frozen=True, kw_only=True):
    """`runs/<id>.stop`: who stopped it."""

    by: str = ""


class EndedRun(Document, frozen=True, kw_only=True):
    """`runs/<id>.end.json`: how it ended.

    Attributes:
        code: Exit code; negative: the signal that ended it.
        ended_at: Seconds since 1970.
        signal: Signal by which something outside ended run and keeper; 0: none.
    """

    code: int
    ended_at: float = 0.0
    signal: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the board.

    Attributes:
        id: Its id.
        task: The task.
        options: Its options.
        by: Who started it; empty: not known.
        started_at: Seconds since 1970.
        ended_at: As `started_at`; None: it runs, or its end is not known.
        state: `running`, `done`, `elsewhere`, `failed`, `stopped` or `lost`.
        code: Exit code; None: there is none.
        words: The state in a sentence.
        pid: Process that luigid knows the worker by; 0: not known.
        has_scheduler: Whether it runs under a luigid.
    """

    id: str
    task: str
    options: tuple[str, ...]
    by: str
    started_at: float
    ended_at: float | None
    state: str
    code: int | None
    words: str
    pid: int
    has_scheduler: bool

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self.state == RUNNING


class Runs:
    """Runs that the board starts, in files that outlive it.

    Args:
        folder: The board's.

    Attributes:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._board_folder, self.folder = folder, folder / "runs"
        self._lock = threading.Lock()
        # Processes that are not waited for yet; `subprocess` itself would warn about them.
        self._born: list[subprocess.Popen[bytes]] = []
        # Runs that have ended: they change no more, and open pages ask for all of them each second.
        self._ended: KeptValues[Run] = KeptValues(4 * RUNS_KEPT)

    def start(self, arguments: Sequence[str], person: Person) -> str:
        """Start a run; return its id. Where one that does the same is running, its id is returned. It blocks.

        Args:
            arguments: Task and options, see `run_kinds.check_arguments`.
            person: Who starts it.
        Raises: InputError for arguments that are not in the table, or if too many runs are on; SettingsError
            without TensorFlow, where the task needs it; DeviceError if it cannot be started.
        """
        kind, options = check_arguments(arguments, self._board_folder)
        self._make_folder()
        with _starting(self.folder):
            on = [one for one in self.all() if one.is_running]
            same = [one for one in on if one.task == kind.task and (kind.is_alone or one.options == options)]
            if same:
                return same[0].id
            if len(on) >= AT_ONCE:
                msg = (
                    f"{len(on)} runs are on, and this machine takes no more at once; wait for one, or stop it"
                )
                raise InputError(msg)
            _thin(self.folder)
            run = _describe_start(kind.task, options, person)
            self._keep(run)
        logger.info(
            "Run %s: %s %s, by %s", run.id, run.task, " ".join(run.options), one_line(person.name) or "?"
        )
        return run.id

    def stop(self, name: str, person: Person) -> Run:
        """Stop a run; one that ended stays as it ended. What it left half done, the next run finishes.

        Raises: InputError if there is no such run; DeviceError.
        """
        run = self.find(name)
        if run.is_running:
            write_durably(self.folder / f"{run.id}.stop", encode_document(StoppedRun(by=person.name)))
            logger.info("Run %s: stopped by %s", run.id, one_line(person.name) or "?")
        return run

    def all(self) -> list[Run]:
        """Return the runs of the board, the newest first."""
        names = sorted(
            (path.stem for path in self.folder.glob("2*-*.json") if "." not in path.stem), reverse=True
        )
        found = (self._read(name) for name in names)
        return [one for one in found if one is not None]

    def find(self, name: str) -> Run:
        """Return a run; raises InputError if there is no such run (it may have been thinned out)."""
        known = {path.stem for path in self.folder.glob("2*-*.json")}
        run = self._read(name) if name in known else None
        if run is None:
            msg = f"no such run; the board keeps the last {RUNS_KEPT}"
            raise InputError(msg)
        return run

    def log_tail(self, name: str, size: int = TAIL_BYTES) -> str:
        """Return the end of a run's log, whole lines of valid text.

        Args:
            name: Id of the run, which exists.
            size: Bytes at most.
        """
        return read_tail(self.folder / f"{name}.log", size)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            msg = f"{self.folder}: cannot be written ({e.strerror}); name another folder in [board] state_dir"
            raise DeviceError(msg) from e

    def _keep(self, run: StartedRun) -> None:
        """Start the process that keeps the run; it is born with the run's lock."""
        command = [
            *children.python_command("luigi_tasks.board.runs.process"),
            str(self.folder.resolve()),
            run.id,
        ]
        path = children.environment()["PYTHONPATH"]
        document = self.folder / f"{run.id}.json"
        with (self.folder / f"{run.id}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_durably(document, encode_document(run))
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                    env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                )
            except OSError as e:
                document.unlink()
                msg = f"the run could not be started: {e}"
                raise DeviceError(msg) from e
        with self._lock:
            self._born.append(process)

    def _read(self, name: str) -> Run | None:
        """Return a run; None if its document is gone or damaged."""
        with self._lock:
            self._born = [one for one in self._born if one.poll() is None]
        if (known := self._ended.get(name)) is not None:
            return known
        # Before its end is looked for: that is written while the lock is held.
        is_held = _is_held(self.folder / f"{name}.lock")
        started = _document(self.folder / f"{name}.json", StartedRun)
        if started is None:
            return None
        ended = None if is_held else _document(self.folder / f"{name}.end.json", EndedRun)
        stopped = _document(self.folder / f"{name}.stop", StoppedRun)
        state, words = _in_words(ended, stopped, is_held=is_held)
        run = Run(
            id=name,
            task=started.task,
            options=started.options,
            by=started.by,
            started_at=started.started_at,
            ended_at=None if ended is None else ended.ended_at,
            state=state,
            code=None if ended is None else ended.code,
            words=words,
            pid=_pid(self.folder / f"{name}.pid"),
            has_scheduler=bool(started.scheduler),
        )
        if not is_held:
            self._ended.put(name, run)
        return run


def _describe_start(task: str, options: tuple[str, ...], person: Person) -> StartedRun:
    """Return the document of a run that begins now."""
    scheduler = given_scheduler()
    place = () if scheduler else ("--local-scheduler",)
    return StartedRun(
        id=f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}",
        task=task,
        options=options,
        command=(*children.python_command("luigi"), "--module", "luigi_tasks", task, *options, *place),
        started_at=time.time(),
        by=person.name,
        scheduler=scheduler,
    )


def read_tail(path: Path, size: int) -> str:
    """Return the end of a log in two files, as `log_tail`; "" where there is none yet.

    Luigi and libraries write addresses with their passwords, and everybody who may see the board reads logs.
    """
    data = b""
    for part in (path, Path(f"{path}.1")):
        if len(data) < size and part.exists():
            with part.open("rb") as file:
                file.seek(-min(size - len(data), part.stat().st_size), os.SEEK_END)
                data = file.read(size) + data
    lines = data.decode("utf-8", "replace").split("\n")
    whole = lines[1:] if len(data) >= size else lines
    return "\n".join(one_line(without_passwords(line.rstrip("\r"))) for line in whole)


@contextlib.contextmanager
def _starting(folder: Path) -> Iterator[None]:
    """Let one at a time look and start, also of two boards over one folder."""
    with (folder / "start.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _in_words(ended: EndedRun | None, stopped: StoppedRun | None, *, is_held: bool) -> tuple[str, str]:
    by = f" by {stopped.by}" if stopped is not None and stopped.by else ""
    if is_held:
        return RUNNING, f"being stopped{by}" if stopped is not None else "running"
    if ended is None:
        return LOST, "its end is not known: the machine was restarted, or the run was killed with its keeper"
    if ended.code == 0:
        return DONE, "done"
    if stopped is not None:
        return STOPPED, f"stopped{by}; the next run finishes what is half done"
    if ended.signal:
        return STOPPED, "ended with the service of the board or the machine; the next run finishes it"
    return _of_code(ended.code)


def _of_code(code: int) -> tuple[str, str]:
    if code < 0:
        name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
        why = ": probably the memory of the machine was at an end" if name == "SIGKILL" else ""
        return FAILED, f"killed by {name}{why}"
    name = command_codes().get(code, "")
    state = ELSEWHERE if name == "already_running" else FAILED
    return state, CODE_WORDS.get(name, f"ended with exit code {code}, which Luigi does not use")


def _document(path: Path, kind: type[Any]) -> Any:  # noqa: ANN401 - of the kind given
    try:
        return decode_document(kind, path.read_bytes(), source=path.name, limit_bytes=_LIMIT_BYTES)
    except (OSError, EdgeError):
        return None


def _pid(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _is_held(path: Path) -> bool:
    """Whether a process holds a lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _thin(folder: Path) -> None:
    """Remove the files of all but the newest runs; those that run stay."""
    names = sorted({path.name.partition(".")[0] for path in folder.glob("2*-*.*")}, reverse=True)
    for name in names[RUNS_KEPT - 1 :]:
        if not _is_held(folder / f"{name}.lock"):
            for path in folder.glob(f"{name}.*"):
                path.unlink(missing_ok=True)
