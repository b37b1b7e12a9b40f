"""A look at luigid: whether it answers, the steps of the run that it knows, and who else runs something.

luigid is asked over HTTP as its own page does, for a second or two at most. It has no password and believes
what workers tell it: names, parameters and messages are text from outside. A look is shared by all pages.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import msgspec

from edge_client.contract.addresses import shown_address, without_passwords
from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.text import one_line
from luigi_tasks.board.runs.steps import PENDING, RUNNING, WORKER, LuigiTask, Step, steps_of
from luigi_tasks.luigid import is_named, scheduler_url

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

ANSWERS, DOWN, NONE, HIDDEN, OLDER = "answers", "down", "none", "hidden", "older"
# A run that did not come to its end, and whose worker luigid has given up.
GONE = "gone"
_TIMEOUT_S = 2.0
# Of an answer: ten thousand tasks; one that is read takes several times as much memory.
_LIMIT_BYTES = 8 << 20
# What a person or cron starts.
ROOTS = ("Deploy", "DoubtfulLabels", "AdvanceRollout", "RefreshMetadata", "TakeLabelled")
# A Deploy names machine and process itself, also when luigid has forgotten its worker.
_RUN_ID = re.compile(r"-(?P<host>.+)-(?P<pid>\d{1,9})")
_ERROR_CHARACTERS = 8000
_PART_BYTES = 1 << 20
_OTHERS_AT_MOST = 20


class LuigiWorker(msgspec.Struct):
    """A worker as luigid serializes it."""

    name: str = ""
    first_task: str = ""
    started: Any = None
    host: str = ""
    username: str = ""
    pid: Any = 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run that luigid knows: of the board, of cron, of another machine.

    Attributes:
        task: What was started.
        state: As of a step, or `gone`.
        words: What it said last.
        started_at: Seconds since 1970.
        seen_at: When it last changed.
        host: Machine of its worker; empty: not known, as the next two.
        user: Who runs the worker.
        pid: Its process; 0: not known.
    """

    task: str
    state: str
    words: str
    started_at: float
    seen_at: float
    host: str
    user: str
    pid: int

    @property
    def is_running(self) -> bool:
        """Whether a step is being done, or waits for a worker that is there."""
        return self.state in {PENDING, RUNNING}


@dataclasses.dataclass(frozen=True)
class LuigidAnswer:
    """What luigid told.

    Attributes:
        state: `answers`, `down`, `none` (a run has a scheduler of its own), `hidden` (at a Unix socket, where
            the board does not ask) or `older`.
        address: Where it is, without what may be secret.
        words: What is wrong, with the way out; empty: nothing is.
        command: The command that starts it; empty: it runs, or is elsewhere.
        task: What the steps are of; empty: luigid knows no run.
        steps: Its steps, in order.
        is_running: Whether they change still.
        process: Machine and process of the worker that was started for them.
        seen: Runs that luigid knows, the newest first.
        at: When it was asked, seconds since 1970.
    """

    state: str
    address: str = ""
    words: str = ""
    command: str = ""
    task: str = ""
    steps: tuple[Step, ...] = ()
    is_running: bool = False
    process: tuple[str, int] = ("", 0)
    seen: tuple[Seen, ...] = ()
    at: float = 0.0


class Luigid:
    """luigid, looked at now and then; all pages that are open share a look.

    Args:
        url: Its address; None: as Luigi takes it from its settings, "" without one.
    """

    def __init__(self, url: str | None = None) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._last = LuigidAnswer(NONE)
        self._asked_at = -1e9

    def look(self, max_age_s: float = 0.5) -> LuigidAnswer:
        """Return what luigid tells, or told so short a time ago; it blocks, and never raises."""
        with self._lock:
            if time.monotonic() - self._asked_at > max_age_s:
                self._last = self._ask_all()
                self._asked_at = time.monotonic()
            return self._last

    @property
    def page(self) -> str:
        """Address of its own page without credentials; empty: it has none that a browser opens."""
        url = self._address()
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"}:
            return ""
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def _address(self) -> str:
        return scheduler_url({}) if self._url is None else self._url

    def _ask_all(self) -> LuigidAnswer:
        url, now = self._address(), time.time()
        if not url:
            return LuigidAnswer(NONE, at=now)
        shown = shown_address(url)
        if urlsplit(url).scheme not in {"http", "https"}:
            words = "luigid is at a Unix socket, where the board does not look; its steps are not shown"
            return LuigidAnswer(HIDDEN, "", words, at=now)
        try:
            return _look(url, shown, now)
        except InputError as e:
            return LuigidAnswer(OLDER, shown, str(e), at=now)
        except TransportError as e:
            if self._url is None and not is_named():
                return LuigidAnswer(NONE, shown, at=now)
            return LuigidAnswer(DOWN, shown, str(e), _command(url), at=now)


def _command(url: str) -> str:
    """Return the command that starts luigid, where it would be on this machine."""
    parts = urlsplit(url)
    if parts.hostname not in {"localhost", "127.0.0.1", "::1", os.uname().nodename}:
        return ""
    return f"luigid --address 127.0.0.1 --port {parts.port or 80}"


def _look(url: str, shown: str, now: float) -> LuigidAnswer:
    tasks: dict[str, LuigiTask] = {}
    for root in ROOTS:
        tasks.update(_tasks(_ask(url, shown, "task_list", status="", search=f"{root}("), shown))
    tasks = {name: one for name, one in tasks.items() if one.name in ROOTS and not one.params.get("listing")}
    workers = _decode(_ask(url, shown, "worker_list", include_running=False), list[LuigiWorker], shown)
    seen = sorted(
        (_seen(name, one, workers) for name, one in tasks.items()),
        key=lambda one: (one[1].started_at, one[0]),
        reverse=True,
    )
    chosen = _choose(seen)
    if not chosen:
        return LuigidAnswer(ANSWERS, shown, seen=tuple(one for _, one in seen[:_OTHERS_AT_MOST]), at=now)
    graph = _tasks(_ask(url, shown, "dep_graph", task_id=chosen), shown)
    if not dict(seen)[chosen].is_running:
        graph = {name: one.as_failed() for name, one in graph.items()}
    told = {name: _words_of(name, one, graph) for name, one in seen}
    return LuigidAnswer(
        state=ANSWERS,
        address=shown,
        task=tasks[chosen].name,
        steps=tuple(_with_errors(url, shown, one) for one in steps_of(graph)),
        is_running=dict(seen)[chosen].is_running,
        seen=tuple(dataclasses.replace(one, words=told[name]) for name, one in seen[:_OTHERS_AT_MOST]),
        process=(dict(seen)[chosen].host, dict(seen)[chosen].pid),
        at=now,
    )


def _choose(seen: list[tuple[str, Seen]]) -> str:
    """Return the task whose steps are shown: the Deploy that runs, else what runs, else the last Deploy."""

    def order(item: tuple[str, Seen]) -> tuple[bool, bool, float]:
        one = item[1]
        return (one.is_running and one.task == "Deploy", one.is_running, one.started_at)

    known = [one for one in seen if one[1].task == "Deploy" or one[1].is_running]
    return max(known, key=order)[0] if known else ""


def _seen(name: str, task: LuigiTask, workers: list[LuigiWorker]) -> tuple[str, Seen]:
    worker = next((one for one in workers if one.first_task == name), None)
    is_left = task.state == PENDING and not {one.name for one in workers} & {*task.workers}
    began = task.time_running if task.name not in {"Deploy", "DoubtfulLabels"} else task.start_time
    host, user, pid = _process(task, worker)
    return name, Seen(
        task=task.name,
        state=GONE if is_left else task.state,
        words=str(task.status_message or ""),
        started_at=_seconds(worker.started if worker else began) or _seconds(task.start_time),
        seen_at=_seconds(task.last_updated),
        host=host,
        user=user,
        pid=pid,
    )


def _process(task: LuigiTask, worker: LuigiWorker | None) -> tuple[str, str, int]:
    """Return machine, user and process of a run; empty and 0 where luigid has forgotten them."""
    if worker is not None and str(worker.pid).isdigit():
        return worker.host, worker.username, int(worker.pid)
    if found := WORKER.search(task.worker_running or next(iter(task.workers), "")):
        return found["host"], found["user"], int(found["pid"])
    if found := _RUN_ID.search(str(task.params.get("run_id", ""))):
        return found["host"], "", int(found["pid"])
    return "", "", 0


def _words_of(name: str, one: Seen, graph: Mapping[str, LuigiTask]) -> str:
    """Return what a run said last; a Deploy says it through the Deploy of the pictures as they were."""
    same = [graph[dep] for dep in graph[name].deps if dep in graph] if name in graph else []
    return one.words or next((str(dep.status_message) for dep in same if dep.status_message), "")


def _with_errors(url: str, shown: str, step: Step) -> Step:
    """Return a step with what its tasks failed of."""
    if not step.failed:
        return step
    answers = [
        _decode(_ask(url, shown, "fetch_error", task_id=one), dict[str, Any], shown) for one in step.failed
    ]
    errors = [_lines(str(one.get("error") or "")[-_ERROR_CHARACTERS:]) for one in answers]
    return dataclasses.replace(step, errors=tuple(one for one in errors if one))


def _lines(text: str) -> str:
    """Return a traceback without what a reader must not see, or a terminal obeys."""
    return "\n".join(one_line(without_passwords(line)) for line in text.split("\n"))


def _tasks(data: bytes, shown: str) -> dict[str, LuigiTask]:
    """Return tasks by their ids; a number stands in the place of too many."""
    found = _decode(data, dict[str, msgspec.Raw], shown)
    return {
        name: _decode_one(raw, LuigiTask, shown) for name, raw in found.items() if bytes(raw).startswith(b"{")
    }


def _decode(data: bytes, kind: type[T], shown: str) -> T:
    answer = _decode_one(data, dict[str, msgspec.Raw], shown)
    if "response" not in answer:
        raise InputError(_not_luigid(shown))
    return _decode_one(answer["response"], kind, shown)


def _decode_one(data: bytes | msgspec.Raw, kind: type[T], shown: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        msg = f"{_not_luigid(shown)} ({e})"
        raise InputError(msg) from e


def _not_luigid(shown: str) -> str:
    return (
        f"what answers at {shown} is no luigid, or one of a version that this page does not know: update it "
        "(pip install -U luigi), or name another in [core] default-scheduler-url"
    )


def _ask(url: str, shown: str, method: str, **arguments: object) -> bytes:
    """Return luigid's answer.

    Raises: TransportError if it does not answer; InputError if it does not know the question.
    """
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    address = parts._replace(netloc=host, path=f"{parts.path.rstrip('/')}/api/{method}").geturl()
    data = urlencode({"data": json.dumps(arguments)}).encode()
    request = urllib.request.Request(address, data)  # noqa: S310 - http or https
    if credentials:
        secret = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as answer:
            body = _read(answer)
    except urllib.error.HTTPError as e:
        e.close()
        msg = f"{_not_luigid(shown)} ({e.code} {e.reason})"
        raise InputError(msg) from e
    except (OSError, HTTPException, ValueError) as e:
        why = getattr(e, "reason", e) or type(e).__name__
        msg = (
            f"luigid at {shown} does not answer ({why}); runs wait for it 5 s, and then end with exit code 40"
        )
        raise TransportError(msg) from e
    if len(body) > _LIMIT_BYTES:
        msg = f"luigid at {shown} answers with more than {_LIMIT_BYTES >> 20} MiB; look at its own page"
        raise InputError(msg)
    return body


def _read(answer: HTTPResponse) -> bytes:
    """Return an answer, or its start where it is too long; raises TimeoutError where it drips."""
    until = time.monotonic() + _TIMEOUT_S
    body = bytearray()
    while len(body) <= _LIMIT_BYTES and (part := answer.read1(_PART_BYTES)):
        if time.monotonic() > until:
            msg = f"its answer takes over {_TIMEOUT_S:g} s"
            raise TimeoutError(msg)
        body += part
    return bytes(body)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: they could lead anywhere in this network, with luigid's password."""

    def redirect_request(self, *arguments: Any) -> None:  # noqa: ANN401 - urllib's
        """Refuse."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _seconds(value: Any) -> float:  # noqa: ANN401 - of any JSON
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
