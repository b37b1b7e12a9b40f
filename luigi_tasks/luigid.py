"""The central scheduler that a `luigi` command works under: whether it answers, and what it must forget.

Luigi itself tries a luigid that does not answer for a minute or more, with a traceback each time. A luigid
takes a step that was done within its cooldown (`[scheduler] stable_done_cooldown_secs`, 10 s) for done, also
where the result is gone or the channel points elsewhere by now: the run would end with exit code 25 or 30.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.error import HTTPError

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.interface import core
from luigi.rpc import RemoteScheduler, RPCError, URLLibFetcher

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A luigid that is just started again is waited for so long; a minute later, in the middle of a run, Luigi's
# own [core] rpc_retry_attempts count.
START_LIMIT_S = 5.0
_PAUSE_S = 0.5
_DONE, _UNKNOWN = "DONE", "UNKNOWN"
# A look of a page that is open: it is repeated.
_LOOK_S = 2.0
# Luigi warns about its own setting, with the password that is in it.
warnings.filterwarnings("ignore", message="The configuration contains the parameter 'default_scheduler_url'")
# As in luigi.cfg; Luigi's own are 0 for most, so that a cron job would fail unseen.
EXIT_CODES = {
    "already_running": 10,
    "missing_data": 20,
    "not_run": 25,
    "task_failed": 30,
    "scheduling_error": 35,
    "unhandled_exception": 40,
}


class Reschedulable(luigi.Task):
    """A task whose result may be gone again within seconds of its end."""

    def deps(self) -> list[Any]:
        """Return the requirements; Luigi asks for those of what is not complete, before it tells luigid."""
        forget_done(str(self.task_id))
        return list(super().deps())  # type: ignore[no-untyped-call]


def scheduler_url(options: Mapping[str, Any]) -> str:
    """Return the address of luigid as Luigi composes it; "" for the scheduler of the process itself.

    Args:
        options: Options of section [core] that the command line gives.
    """
    given = core(**options)
    if given.local_scheduler:
        return ""
    return str(given.scheduler_url) or f"http://{given.scheduler_host}:{given.scheduler_port}/"


def is_named() -> bool:
    """Whether the settings name a scheduler; else Luigi takes its default, localhost:8082."""
    configuration: Any = luigi.configuration.get_config()
    names = ("scheduler-host", "scheduler-port", "scheduler-url")
    written = (f"{prefix}{name}" for name in names for prefix in ("", "default-"))
    known = {form for one in written for form in (one, one.replace("-", "_"))}
    return any(
        configuration.has_option("core", one) for one in (*known, "local-scheduler", "local_scheduler")
    )


def fault_of(url: str) -> str | None:
    """Return why luigid does not answer now; None if it does, or is Luigi's alone to open."""
    if "://" not in url or url.startswith("http+unix:"):
        return None
    return _ask(url, _LOOK_S)


def given_scheduler() -> str:
    """Return the address of the luigid that a program is to run tasks under; "": no luigid, their own.

    Where the settings name none, Luigi's default counts if it answers.
    """
    url = scheduler_url({})
    return url if is_named() or (url and fault_of(url) is None) else ""


def command_codes() -> dict[int, str]:
    """Return the exit codes of a `luigi --module luigi_tasks` command with their names in [retcode]."""
    configuration: Any = luigi.configuration.get_config()
    given = {name: configuration.getint("retcode", name, code) for name, code in EXIT_CODES.items()}
    return {code: name for name, code in given.items() if code}


def check_answers(url: str) -> None:
    """Wait for luigid to answer, a few seconds.

    Raises: TransportError.
    """
    if "://" not in url or url.startswith("http+unix:"):
        return  # Luigi's to open
    deadline = time.monotonic() + START_LIMIT_S
    while (fault := _ask(url, max(0.1, deadline - time.monotonic()))) is not None:
        if time.monotonic() + _PAUSE_S > deadline:
            msg = (
                f"luigid at {shown_address(url)} does not answer ({fault}): start it (luigid --address "
                "127.0.0.1 --port 8082), name another with --scheduler-host and --scheduler-port, or give "
                "--local-scheduler, with which no two runs may overlap"
            )
            raise TransportError(msg)
        time.sleep(_PAUSE_S)


def _ask(url: str, timeout_s: float) -> str | None:
    """Return why luigid does not answer; None if it does."""
    try:
        answer = URLLibFetcher().fetch(f"{url.rstrip('/')}/api/is_paused", {"data": "{}"}, timeout_s)
        json.loads(answer)["response"]
    except HTTPError as e:
        return f"something else listens there: {e.code} {e.reason}"
    except (OSError, ValueError) as e:  # refused, silent, no such name, not HTTP
        return str(getattr(e, "reason", e) or type(e).__name__)
    except (KeyError, TypeError):
        return "something else listens there"
    return None


def forget_done(task_id: str) -> None:
    """Let luigid take a task that it knows as done, and that is not, as a new one.

    Only where luigid says that it is done: a step that another run is doing, or is about to do, stays that
    run's. Without this, luigid would ignore the task for its cooldown.
    """
    command = CmdlineParser.get_instance()
    url = "" if command is None else scheduler_url({})
    if not url:
        return
    try:
        scheduler = _open(url)
        # Tells the status; a failed task is forgiven, which asking for it again does anyway.
        if scheduler.forgive_failures(task_id=task_id)["status"] == _DONE:
            worker = f"forgets what is undone ({os.uname().nodename}, {os.getpid()})"
            scheduler.add_task(
                worker=worker, task_id=task_id, status=_UNKNOWN, runnable=False, assistant=True
            )
    except RPCError:
        return  # Luigi asks next, and tells


@functools.cache
def _open(url: str) -> Any:  # noqa: ANN401 - Luigi adds its methods at run time
    return RemoteScheduler(url)


@contextlib.contextmanager
def stay_known(task: luigi.Task) -> Iterator[None]:
    """Let another process tell luigid that this worker lives, while a task loads what holds the interpreter.

    Luigi's thread tells it each second, but not while TensorFlow's libraries are loaded: from a slow disk
    longer than `[scheduler] worker_disconnect_delay`. luigid then takes the worker for lost, and the run ends
    with 25.
    """
    reporter = getattr(task.set_tracking_url, "__self__", None)
    worker = getattr(reporter, "_worker_id", "")
    url = getattr(getattr(reporter, "_scheduler", None), "_url", "")
    if not worker or "://" not in url or url.startswith("http+unix:"):
        yield  # no luigid, or none that is asked by HTTP
        return
    # -I: modules of this folder are none of its own. Another session: Ctrl-C is this process's to take.
    command = [sys.executable, "-I", str(Path(__file__).with_name("heartbeat.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True) as process:
        orders = cast("IO[str]", process.stdin)
        orders.write(json.dumps({"url": url, "worker": worker}) + "\n")
        orders.flush()
        try:
            yield
        finally:
            orders.close()  # ends it
