"""What the page Pipeline shows: runs of the board and of others, the steps of the last one, how it ended."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import EdgeError
from luigi_tasks.board.runs import runs
from luigi_tasks.board.runs.kinds import KINDS, why_not
from luigi_tasks.board.runs.log import PUBLISHED, REFUSED, Outcome, outcome_of, steps_of_log
from luigi_tasks.board.runs.luigid import ANSWERS, GONE, LuigidAnswer, Seen
from luigi_tasks.board.runs.steps import DONE, FAILED, Step

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.board.runs.luigid import Luigid
    from luigi_tasks.board.runs.runs import Runs

_SHOWN_AT_MOST = 30
# Most runs of an hour find nothing new; so many are looked into for one that did something.
_LOOKED_INTO = 5
_LOG_BYTES = 256 << 10
_LIMIT_BYTES = 4 << 20
_STEPS = "steps.json"
_RELEASE = re.compile(r"\b[Rr]elease ([0-9a-f]{8,64})\b")
# States of luigid's tasks in words of runs.
_SEEN_STATES = {
    DONE: runs.DONE,
    FAILED: runs.FAILED,
    "disabled": runs.FAILED,
    GONE: runs.LOST,
    "unknown": "unknown",
}
_SEEN_WORDS = {
    runs.DONE: "done",
    runs.FAILED: "a step failed",
    runs.LOST: "its worker is gone: a step failed, or the worker was killed; its log says which",
    runs.RUNNING: "running",
}
# As in configs/crontab; a test compares.
CRON = (
    "17 * * * * edge-pipeline cd /opt/edge-pipeline && luigi --module luigi_tasks Deploy >>pipeline.log 2>&1 "
    "|| { [ $? -eq 10 ] || tail -n 40 pipeline.log; }"
)


@dataclasses.dataclass(frozen=True)
class ShownRun:
    """A run in the list.

    Attributes:
        id: Of the board's run; empty: somebody else's.
        task: What was started.
        options: Its options.
        state: `running`, `done`, `elsewhere`, `failed`, `stopped`, `lost` or `unknown`.
        words: The state in a sentence, or what the run said at its end.
        release: Release that it was about; empty: none is known.
        outcome: What came of it by its log: `published`, `refused` (or held), or as `state`.
        by: Who started it: a person of the board, or user@machine.
        started_at: Seconds since 1970.
        ended_at: As `started_at`; None: it runs, or nobody knows.
        code: Exit code; None: it has none, or is not known.
        is_of_board: Whether the board started it.
    """

    id: str
    task: str
    options: tuple[str, ...]
    state: str
    words: str
    release: str
    outcome: str
    by: str
    started_at: float
    ended_at: float | None
    code: int | None
    is_of_board: bool


@dataclasses.dataclass(frozen=True)
class ShownSteps:
    """The steps of one run.

    Attributes:
        task: What was started.
        steps: In their order.
        source: `luigid`, `log` (of a run of the board) or `kept` (as luigid told them before it forgot them).
        at: When they were so, seconds since 1970.
        is_running: Whether they change still.
        began_at: When the last step that is known to have begun did; of a log, when the run did: what luigid
            tells of a run is newer than its log, and a later run's log newer than that.
    """

    task: str
    steps: tuple[Step, ...]
    source: str
    at: float
    is_running: bool
    began_at: float = 0.0


@dataclasses.dataclass(frozen=True)
class Startable:
    """A task that may be started.

    Attributes:
        task: Its name.
        title: What it does.
        why_not: Why it cannot be started here, with the way out; empty: it can.
    """

    task: str
    title: str
    why_not: str


@dataclasses.dataclass(frozen=True)
class PipelineModel:
    """The page.

    Attributes:
        scheduler: `answers`, `down`, `none`, `hidden` or `older`: the state of luigid.
        address: Where it is.
        words: What is wrong with it, with the way out.
        command: The command that starts it.
        luigid_page: Address of its own page; empty: the browser does not reach it.
        steps: The steps of the run that is on, or was the last; None: nobody knows of one.
        outcome: How the last Deploy ended; None: nobody knows.
        runs: The last runs, the newest first.
        tasks: What may be started.
        crontab: The line that lets cron run it: what runs next is cron's to know.
    """

    scheduler: str
    address: str
    words: str
    command: str
    luigid_page: str
    steps: ShownSteps | None
    outcome: Outcome | None
    runs: tuple[ShownRun, ...]
    tasks: tuple[Startable, ...]
    crontab: str


def read_pipeline(board_runs: Runs, luigid: Luigid, luigid_page: str = "") -> PipelineModel:
    """Return the page; it blocks, for luigid and for files.

    Args:
        board_runs: Runs of the board.
        luigid: What is asked.
        luigid_page: Address of luigid's own page for browsers; empty: none.
    """
    look, own = luigid.look(), board_runs.all()
    shown = _all_runs(board_runs, own, look)
    steps = _steps(board_runs, own, look)
    return PipelineModel(
        scheduler=look.state,
        address=look.address,
        words=look.words,
        command=look.command,
        luigid_page=luigid_page if look.state == ANSWERS else "",
        steps=steps,
        outcome=_outcome(shown, steps),
        runs=tuple(shown),
        tasks=tuple(
            Startable(one.task, one.title, why_not(one) or "") for one in KINDS.values() if one.is_offered
        ),
        crontab=CRON,
    )


def version_of(board_runs: Runs, luigid: Luigid) -> str:
    """Return what changes whenever the page shows something else; keeps what luigid will forget."""
    look, own = luigid.look(), board_runs.all()
    keep_steps(board_runs, look)
    content = msgspec.json.encode([dataclasses.replace(look, at=0.0), own])
    return hashlib.sha256(content).hexdigest()[:16]


def shown_run(board_runs: Runs, one: runs.Run) -> ShownRun:
    """Return a run of the board as it is listed."""
    told = (
        _told(board_runs.folder, one.id, one.task, one.ended_at or 0.0) if not one.is_running else Outcome()
    )
    says_more = one.state in {runs.DONE, runs.FAILED} and told.words
    return ShownRun(
        id=one.id,
        task=one.task,
        options=one.options,
        state=one.state,
        words=told.words if says_more else one.words,
        release=told.release,
        outcome=told.state if one.state == runs.DONE else one.state,
        by=one.by,
        started_at=one.started_at,
        ended_at=one.ended_at,
        code=one.code,
        is_of_board=True,
    )


def steps_of_run(board_runs: Runs, one: runs.Run, look: LuigidAnswer) -> ShownSteps:
    """Return the steps of a run: as luigid tells them, else by its log."""
    if look.steps and one.pid and look.process == (os.uname().nodename, one.pid):
        return _of_look(look, is_running=one.is_running)
    steps = steps_of_log(board_runs.log_tail(one.id, _LOG_BYTES))
    return ShownSteps(one.task, steps, "log", one.ended_at or 0.0, one.is_running, one.started_at)


def _of_look(look: LuigidAnswer, *, is_running: bool, source: str = "luigid") -> ShownSteps:
    began_at = max((one.started_at or 0.0 for one in look.steps), default=0.0)
    return ShownSteps(look.task, look.steps, source, look.at, is_running, began_at)


def keep_steps(board_runs: Runs, look: LuigidAnswer) -> None:
    """Keep the steps of a Deploy beyond luigid's ten minutes; where the disk is full, they are lost then."""
    if look.task != "Deploy" or not look.steps or _is_alone(look.steps):
        return
    kept = _of_look(look, is_running=False, source="kept")
    path = board_runs.folder / _STEPS
    try:
        known = _kept(board_runs)
        if known is not None and known.steps == kept.steps:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(".steps.json")
        temporary.write_bytes(msgspec.json.encode(kept))
        temporary.replace(path)
    except OSError:
        return


def _kept(board_runs: Runs) -> ShownSteps | None:
    try:
        with (board_runs.folder / _STEPS).open("rb") as file:
            return msgspec.json.decode(file.read(_LIMIT_BYTES), type=ShownSteps)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_alone(steps: tuple[Step, ...]) -> bool:
    """Whether a Deploy found all done: luigid knows of no step then."""
    return len(steps) == 1 and steps[0].state == DONE


def _steps(board_runs: Runs, own: list[runs.Run], look: LuigidAnswer) -> ShownSteps | None:
    """Return the steps that are worth a look: of what runs, else of the last Deploy."""
    host = os.uname().nodename
    # luigid takes half a minute to notice that a worker is gone; the board knows it of its own runs.
    of_look = next((one for one in own if one.pid and (host, one.pid) == look.process), None)
    if look.steps and look.is_running and (of_look is None or of_look.is_running):
        return _of_look(look, is_running=True)
    running = next((one for one in own if one.is_running), None)
    if running is not None:
        return steps_of_run(board_runs, running, look)
    found = [steps_of_run(board_runs, one, look) for one in own[:_LOOKED_INTO] if one.task == "Deploy"]
    if (kept := _kept(board_runs)) is not None:
        found.append(kept)
    if not look.is_running and look.task == "Deploy":
        found.append(_of_look(look, is_running=False))
    found = [one for one in found if one.steps and not _is_alone(one.steps)]
    return max(found, key=lambda one: (one.began_at, one.at), default=None)


def _all_runs(board_runs: Runs, own: list[runs.Run], look: LuigidAnswer) -> list[ShownRun]:
    host = os.uname().nodename
    pids = {(host, one.pid) for one in own if one.pid}
    others = [_other(one) for one in look.seen if (one.host, one.pid) not in pids]
    mine = [shown_run(board_runs, one) for one in own[:_SHOWN_AT_MOST]]
    everything = sorted([*mine, *others], key=lambda one: one.started_at, reverse=True)
    return everything[:_SHOWN_AT_MOST]


def _other(seen: Seen) -> ShownRun:
    state = _SEEN_STATES.get(seen.state, runs.RUNNING)
    found = _RELEASE.search(seen.words)
    return ShownRun(
        id="",
        task=seen.task,
        options=(),
        state=state,
        words=seen.words or _SEEN_WORDS.get(state, state),
        release=found[1] if found else "",
        outcome=state,
        by="@".join(filter(None, (seen.user, seen.host))),
        started_at=seen.started_at,
        ended_at=seen.seen_at if state in {runs.DONE, runs.FAILED} else None,
        code=None,
        is_of_board=False,
    )


def _outcome(shown: list[ShownRun], steps: ShownSteps | None) -> Outcome | None:
    """Return how the last Deploy that did something ended: by its steps, else by its run."""
    ended = [one for one in shown if one.task == "Deploy" and one.state != runs.RUNNING]
    failed = next((one for one in ended if one.state in {runs.FAILED, runs.STOPPED, runs.LOST}), None)
    if steps is None or steps.task != "Deploy" or steps.is_running or not ended:
        return Outcome(ended[0].words, ended[0].release, ended[0].outcome) if ended else None
    if failed is not None and failed.started_at > steps.began_at:  # it failed before its first step
        return Outcome(failed.words, failed.release, failed.state)
    return _outcome_of_steps(steps.steps)


def _outcome_of_steps(steps: tuple[Step, ...]) -> Outcome:
    by_task = {one.task: one for one in steps}
    failed = next((one for one in steps if one.state == FAILED), None)
    made, published = by_task.get("QuantizeModel"), by_task.get("PublishRelease")
    found = _RELEASE.search(made.message) if made is not None else None
    release = found[1] if found else ""
    if failed is not None:
        return Outcome(f"{failed.task} failed: {_last_line(failed)}", release, FAILED)
    if published is not None and published.state == DONE:
        return Outcome(published.message or "published", release, PUBLISHED)
    deploy, gate = by_task.get("Deploy"), by_task.get("EvaluateModel")
    words = (deploy.message if deploy else "") or (gate.message if gate else "")
    is_judged = deploy is not None and deploy.state == DONE and gate is not None
    return Outcome(words or "done; it said nothing", release, REFUSED if is_judged else DONE)


def _last_line(step: Step) -> str:
    lines = [one for text in step.errors for one in text.strip().split("\n") if one.strip()]
    return lines[-1].strip() if lines else step.message or "it told no reason"


@functools.lru_cache(maxsize=256)
def _told(folder: Path, name: str, task: str, ended_at: float) -> Outcome:  # noqa: ARG001 - names the file's state
    """Return how a run ended by its log, which changes no more."""
    try:
        return outcome_of(task, runs.read_tail(folder / f"{name}.log", _LOG_BYTES))
    except (OSError, EdgeError):
        return Outcome()
