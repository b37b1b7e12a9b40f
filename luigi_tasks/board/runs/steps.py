"""Steps of a run as luigid tells them: in the order in which they depend on each other, one for each kind."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# luigid's words for the state of a task; others (a newer luigid's) are shown as unknown.
PENDING, RUNNING, DONE, FAILED, DISABLED, UNKNOWN = (
    "pending",
    "running",
    "done",
    "failed",
    "disabled",
    "unknown",
)
_STATES = {
    "PENDING": PENDING,
    "RUNNING": RUNNING,
    "BATCH_RUNNING": RUNNING,
    "DONE": DONE,
    "FAILED": FAILED,
    "DISABLED": DISABLED,
}
# The first of these that a task has is the state of all tasks of its kind.
_WORST_FIRST = (FAILED, DISABLED, RUNNING, PENDING, UNKNOWN, DONE)
TITLES = {
    "ReadShard": "Read pictures that are new",
    "DatasetSnapshot": "List the pictures, set the hold-out apart",
    "TuneBackbone": "Train the network",
    "ConvertBackbone": "Convert the network to TFLite",
    "BackboneFeatures": "Compute features of all pictures",
    "TrainModel": "Train the head",
    "QuantizeModel": "Put the candidate together",
    "EvaluateModel": "Measure it at the gate",
    "PublishRelease": "Sign and publish",
    "AnnounceRelease": "Announce to devices",
    "Deploy": "Deploy",
    "DoubtfulLabels": "List doubtful labels",
    "TakeLabelled": "Take labelled pictures",
    "ListInbox": "List the inbox",
    "AdvanceRollout": "Look at the rollout",
    "RefreshMetadata": "Renew signatures",
    "RollBack": "Point the channel back",
    "Rollout": "Start a rollout",
    "Approve": "Approve a stage",
    "Back": "Send a rollout back",
}
# What Deploy asks for only after the gate: named from the start, so that a reader sees what is to come.
_AFTER_THE_GATE = ("PublishRelease", "AnnounceRelease")
_MESSAGE_CHARACTERS = 1000
WORKER = re.compile(r"host=(?P<host>[^,)]*), username=(?P<user>[^,)]*), pid=(?P<pid>\d{1,9})")


class LuigiTask(msgspec.Struct):
    """A task as luigid serializes it; a field that is missing or of another kind is unknown."""

    name: str = ""
    status: str = ""
    params: dict[str, Any] = {}
    workers: list[str] = []
    worker_running: str | None = None
    time_running: Any = None
    start_time: Any = None
    last_updated: Any = None
    status_message: Any = None
    progress_percentage: Any = None
    deps: list[str] = []

    @property
    def state(self) -> str:
        """State in words of this page."""
        return _STATES.get(self.status, UNKNOWN)

    @property
    def failed_before(self) -> bool:
        """Whether it was begun and is to be begun again: luigid gives a failed task back after seconds."""
        return self.state == PENDING and _number(self.time_running) is not None

    def as_failed(self) -> LuigiTask:
        """Return it as it ended, where nobody is left who would begin it again."""
        return msgspec.structs.replace(self, status="FAILED") if self.failed_before else self


@dataclasses.dataclass(frozen=True)
class Step:
    """All tasks of one kind in a run.

    Attributes:
        task: The kind, such as `ReadShard`.
        title: What it does.
        state: The worst state of its tasks.
        total: Number of tasks; 0: it comes after the gate, if the candidate passes.
        done: Those that are done.
        running: Those that run.
        percent: How far it is, 0 to 100; None: not told.
        message: What it said last.
        workers: Who is doing it.
        started_at: Seconds since 1970; None: it did not begin, or was done before this run.
        ended_at: As `started_at`; None: it did not end.
        after: Kinds that come before it.
        failed: Ids of the tasks that failed, some of them.
        errors: What failed, text from the worker, as far as it was asked for.
    """

    task: str
    title: str
    state: str
    total: int
    done: int
    running: int
    percent: float | None
    message: str
    workers: tuple[str, ...]
    started_at: float | None
    ended_at: float | None
    after: tuple[str, ...]
    failed: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def steps_of(graph: Mapping[str, LuigiTask]) -> tuple[Step, ...]:
    """Return the steps of a graph of tasks, each after those that it needs."""
    kinds: dict[str, list[tuple[str, LuigiTask]]] = collections.defaultdict(list)
    for name, task in graph.items():
        kinds[task.name].append((name, task))
    needs = {
        kind: {graph[one].name for _, task in tasks for one in task.deps if one in graph} - {kind}
        for kind, tasks in kinds.items()
    }
    steps = [_step(kind, kinds[kind], _direct(kind, needs)) for kind in _in_order(needs)]
    return tuple(_with_what_may_come(steps))


def _in_order(needs: Mapping[str, set[str]]) -> list[str]:
    """Return kinds so that each comes after what it needs; a circle, which luigid should not have, is cut."""
    rank = {kind: number for number, kind in enumerate(TITLES)}
    order: list[str] = []
    left = dict(needs)
    while left:
        free = [one for one, needed in left.items() if not needed & left.keys()] or [*left]
        order.append(min(free, key=lambda one: (rank.get(one, len(rank)), one)))
        del left[order[-1]]
    return order


def _direct(kind: str, needs: Mapping[str, set[str]]) -> list[str]:
    """Return the kinds that a kind needs, without those that come before one of them anyway."""
    implied: set[str] = set()
    left = [*needs[kind]]
    while left:
        earlier = needs.get(left.pop(), set()) - implied
        implied |= earlier
        left += earlier
    return sorted(needs[kind] - implied) or sorted(needs[kind])


def _step(kind: str, tasks: Iterable[tuple[str, LuigiTask]], after: list[str]) -> Step:
    named = list(tasks)
    all_ = [task for _, task in named]
    counts = collections.Counter(task.state for task in all_)
    state = next(one for one in _WORST_FIRST if counts[one])
    if state == PENDING and counts[DONE] and len(all_) > 1 and kind != "Deploy":
        state = RUNNING  # some of its tasks are done, and others wait for a worker
    began = [at for task in all_ if (at := _number(task.time_running)) is not None]
    ended = [at for task in all_ if task.state in {DONE, FAILED} and (at := _number(task.last_updated))]
    running = [task for task in all_ if task.state == RUNNING]
    speakers = running or (all_ if len(all_) == 1 or kind == "Deploy" else [])
    spoke = max(
        speakers,
        key=lambda task: (bool(task.status_message), _number(task.last_updated) or 0.0),
        default=None,
    )
    return Step(
        task=kind,
        title=TITLES.get(kind, kind),
        state=state,
        total=len(all_),
        done=counts[DONE],
        running=len(running),
        percent=_percent(all_, running),
        message=str(spoke.status_message or "")[:_MESSAGE_CHARACTERS] if spoke is not None else "",
        workers=tuple(sorted({_who(task.worker_running) for task in running if task.worker_running})),
        started_at=min(began, default=None),
        ended_at=max(ended) if began and len(ended) == len(all_) else None,
        after=tuple(after),
        failed=tuple(name for name, task in named if task.state in {FAILED, DISABLED})[:3],
    )


def _who(worker: str) -> str:
    found = WORKER.search(worker)
    return f"{found['user']}@{found['host']}, process {found['pid']}" if found else worker


def _percent(tasks: list[LuigiTask], running: list[LuigiTask]) -> float | None:
    """Return how far tasks are: those that are done, and of those that run the part that they told."""
    if not running or (len(tasks) == 1 and running[0].progress_percentage is None):
        return None
    parts = sum(min(100.0, max(0.0, _number(task.progress_percentage) or 0.0)) for task in running)
    done = sum(task.state == DONE for task in tasks)
    return round((100.0 * done + parts) / len(tasks), 1)


def _with_what_may_come(steps: list[Step]) -> list[Step]:
    known = {one.task for one in steps}
    if not {"Deploy", "EvaluateModel"} <= known or next(
        one.state for one in steps if one.task == "Deploy"
    ) in {DONE, FAILED}:
        return steps
    missing = [one for one in _AFTER_THE_GATE if one not in known]
    place = next(number for number, one in enumerate(steps) if one.task == "Deploy")
    return [*steps[:place], *(_to_come(one) for one in missing), *steps[place:]]


def _to_come(kind: str) -> Step:
    message = "if the candidate passes the gate"
    return Step(kind, TITLES[kind], PENDING, 0, 0, 0, None, message, (), None, None, ("EvaluateModel",))


def _number(value: Any) -> float | None:  # noqa: ANN401 - of any JSON
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
