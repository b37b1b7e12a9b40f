"""Colours of states, as classes of the style sheet (`state-good` and so on): the same on all pages."""

from __future__ import annotations

from luigi_tasks.fleet import records
from luigi_tasks.fleet.view import HEARD, NEVER, QUIET

UNKNOWN = "unknown"
_ROLLOUTS = {
    records.PLANNED: "info",
    records.APPROVAL: "warn",
    records.OPEN: "busy",
    records.SOAKING: "busy",
    records.DONE: "good",
    records.PAUSED: "warn",
    records.HALTED: "bad",
    records.GOING_BACK: "bad",
    records.BACK: "bad",
    records.SUPERSEDED: "off",
    records.ABORTED: "off",
}
_DEVICES = {
    records.UNSEEN: "unknown",
    records.WAITING: "off",
    records.OFFERED: "info",
    records.HELD: "info",
    records.FETCHING: "busy",
    records.SHADOW: "busy",
    records.PROBATION: "busy",
    records.PASSED: "good",
    records.SENT_BACK: "bad",
    records.REFUSED: "bad",
    records.SILENT: "bad",
}
_RESULTS = {records.PASS: "good", records.HALT: "bad", records.INCONCLUSIVE: "unknown"}
_HEARD = {HEARD: "good", QUIET: "warn", NEVER: "off"}


def of_rollout(state: str) -> str:
    """Return the colour of a rollout's state."""
    return _ROLLOUTS.get(state, UNKNOWN)


def of_device(state: str) -> str:
    """Return the colour of a device's state in a rollout."""
    return _DEVICES.get(state, UNKNOWN)


def of_result(result: str) -> str:
    """Return the colour of what a check or a verdict says."""
    return _RESULTS.get(result, UNKNOWN)


def of_heard(heard: str) -> str:
    """Return the colour of how a device is heard of."""
    return _HEARD.get(heard, UNKNOWN)
