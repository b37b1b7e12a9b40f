"""What a run's log tells: how far each step is, and how the run ended, in the words of the run.

A run without a luigid, or of which luigid has forgotten the steps (ten minutes after their end), has its log
alone. Messages are text from outside: of stores, files and workers.
"""

from __future__ import annotations

import collections
import dataclasses
import re

from luigi_tasks.board.runs.steps import DONE, FAILED, PENDING, RUNNING, TITLES, Step

PUBLISHED, REFUSED = "published", "refused"

_SCHEDULED = re.compile(r"Informed scheduler that task\s+((\w+?)_\S*)\s+has status\s+(\w+)")
_WORKED = re.compile(r"Worker Worker\(.*?\) (running|done|failed)\s+(\w+)\(")
_SAID = re.compile(r"^INFO: (\w+): (.+)$")
_FAILED = re.compile(r"^ERROR: .*?\bfailed\s+(\w+)\(.*?\)(?:: (.*))?$")
# Of a candidate that the gate refused or held, and of a command that could not begin.
_REFUSED = re.compile(r"^WARNING: (Release [0-9a-f]{8,64} is (?:not published|held).*)$")
_COULD_NOT = re.compile(r"^(?:luigi: |ERROR: Uncaught exception in luigi: \w+: )(.+)$")
_UNSCHEDULED = re.compile(r"Will not run .+? due to error in \w+\(\) method: (.*)$")
_CANDIDATE = re.compile(r"^INFO: (?:AnnounceRelease: announced|QuantizeModel:) release ([0-9a-f]{8,64})\b")
# Of Luigi's summary, where each task was complete before.
_NOTHING = "Did not run any tasks"
_WORDS = 1000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        words: In the words of the run; empty: it said nothing.
        release: Release that it made or announced; empty: none is known.
        state: `published`, `refused` (or held, by the gate), or as of the run: `failed`, `done`, `lost`, ...
    """

    words: str = ""
    release: str = ""
    state: str = DONE


def outcome_of(task: str, log: str) -> Outcome:
    """Return how a run ended.

    Args:
        task: What was started.
        log: The end of its log.
    """
    said: dict[str, str] = {}
    last, release, state, did_something = "", "", DONE, False
    for line in log.split("\n"):
        if found := _SAID.match(line):
            said[found[1]] = found[2]
        if found := _CANDIDATE.match(line):
            release = found[1]
        did_something = did_something or _WORKED.search(line) is not None
        if found := _REFUSED.match(line):
            last, state = found[1], REFUSED
        elif found := _FAILED.match(line):
            last, state = f"{found[1]} failed: {found[2] or 'it told no reason'}", FAILED
        elif found := _COULD_NOT.match(line) or _UNSCHEDULED.search(line):
            last, state = found[1], FAILED
    published = said.get("PublishRelease", "")
    if published and state == DONE:
        state = PUBLISHED
    words = last or published or said.get(task, "")
    if not words and not did_something and _NOTHING in log:
        words = "nothing was new: all was done already"
    return Outcome(words[:_WORDS], release, state)


def steps_of_log(log: str) -> tuple[Step, ...]:
    """Return the steps of a run by its log, in the order of the pipeline; it knows no times."""
    wanted: dict[str, set[str]] = collections.defaultdict(set)
    ends: dict[str, set[str]] = collections.defaultdict(set)
    states: dict[str, str] = {}
    said: dict[str, str] = {}
    for line in log.split("\n"):
        if found := _SCHEDULED.search(line):
            name, kind, state = found.groups()
            wanted[kind].add(name)
            if state == "PENDING":
                states.setdefault(kind, PENDING)
            elif state == "DONE":
                ends[kind].add(name)
        elif found := _WORKED.search(line):
            states[found[2]] = {"running": RUNNING, "failed": FAILED}.get(found[1], states.get(found[2], ""))
        elif (found := _SAID.match(line)) and found[1] in TITLES:
            said[found[1]] = found[2]
        if found := _FAILED.match(line):
            said[found[1]] = found[2] or ""
    order = [one for one in TITLES if one in wanted] + sorted(wanted.keys() - TITLES.keys())
    return tuple(
        _step(kind, states.get(kind, ""), len(wanted[kind]), len(ends[kind]), said.get(kind, ""))
        for kind in order
    )


def _step(kind: str, state: str, total: int, done: int, message: str) -> Step:
    if state != FAILED and done >= total:
        state = DONE
    return Step(
        task=kind,
        title=TITLES.get(kind, kind),
        state=state or PENDING,
        total=total,
        done=done,
        running=int(state == RUNNING),
        percent=round(100 * done / total, 1) if total > 1 and state == RUNNING else None,
        message=message[:_WORDS] if total == 1 or kind == "Deploy" else "",
        workers=(),
        started_at=None,
        ended_at=None,
        after=(),
    )
