"""Failed tries of releases on this device: what counts, when the next try is due, and what lifts a refusal.

The theory is in `update/endings.py`. Pure: values in, values out; times are UTC, ISO 8601.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.documents import Document
from edge_client.contract.times import parse_time
from edge_client.update.endings import Blame, Ending, Retry

if TYPE_CHECKING:
    from collections.abc import Collection

# After the first, second and third failure.
RETRY_WAITS_S = (600.0, 3600.0, 21600.0)
# Between two crashes of the runtime that count as two.
A_WHILE_S = 600.0
REFUSED_S = 7 * 86400.0
# A try that is due in this time is due: timers of two processes differ.
_TOLERANCE_S = 2.0
# A channel points to one release at a time: enough for a bad month.
REFUSALS_KEPT = 50
# Characters; reasons are for people.
REASON_LIMIT = 2000

ValueT = TypeVar("ValueT")


class FailureRecord(Document, frozen=True, kw_only=True):
    """Failed tries of one release, in `slots.json`.

    Attributes:
        ending: Name of the last `Ending`.
        reason: Why, for people.
        tries: Failed tries that count.
        at: When the last one that counts failed, UTC, ISO 8601.
        crashed_at: When the runtime crashed for the first time; empty if it never did.
        final: Whether the release is refused.
    """

    ending: str
    reason: str
    tries: int = 1
    at: str = ""
    crashed_at: str = ""
    final: bool = False

    def is_hurried(self, retry: Retry) -> bool:
        """Whether the next try is made at once, though it is not due.

        A restart does not hurry a release under which the daemon restarts all the time.
        """
        if retry is Retry.RESTART:
            return self.ending != Ending.DAEMON_ENDED.name.lower()
        return retry is not Retry.DUE


def add_failure(
    known: FailureRecord | None, ending: Ending, reason: str, now: str, *, counts: bool = True
) -> FailureRecord:
    """Return the record of a release after one more try failed.

    Args:
        known: Record of the tries before; None if this is the first.
        ending: How the try ended.
        reason: Why, for people.
        now: Time, UTC, ISO 8601.
        counts: Whether the try takes one of those that the release has. The first one always does.
    """
    endless = ending.blame is Blame.ENDLESS
    if known is None or (_blame(known) is Blame.ENDLESS) != endless:
        before, counts = 0, True  # tries in which the model was not loaded say nothing about it
    else:
        before = known.tries
    tries = before + counts
    crashed_at = known.crashed_at if known else ""
    final = ending.blame is Blame.PROOF or (not endless and tries > len(RETRY_WAITS_S))
    if ending.blame is Blame.TWICE:
        final = final or (bool(crashed_at) and abs(_seconds_between(crashed_at, now)) >= A_WHILE_S)
        crashed_at = crashed_at or now
    return FailureRecord(
        ending=ending.name.lower(),
        reason=reason,
        tries=tries,
        at=now if counts or final or known is None else known.at,
        crashed_at=crashed_at,
        final=final,
    )


def next_try(record: FailureRecord) -> str | None:
    """Return when a release is tried again, UTC, ISO 8601; None if that needs a request or a new release."""
    if record.final:
        return _later(record.at, REFUSED_S) if _blame(record) is Blame.LIMITED else None
    return _later(record.at, RETRY_WAITS_S[min(record.tries, len(RETRY_WAITS_S)) - 1])


def is_due(record: FailureRecord, now: str) -> bool:
    """Return whether it is time to try a release again."""
    due = next_try(record)
    if due is None:
        return False
    return _seconds_between(now, due) <= _TOLERANCE_S or _seconds_between(now, record.at) > _TOLERANCE_S


@dataclasses.dataclass(frozen=True)
class Failures:
    """All failed releases of a channel.

    Attributes:
        refused: Reasons by release that is refused.
        records: Records by release, refused or not; a refused one without a record was refused by an older
            version.
    """

    refused: dict[str, str]
    records: dict[str, FailureRecord]

    @property
    def retry_at(self) -> str | None:
        """When the next release is tried again; None if none is."""
        times = (next_try(self.records[release]) for release in self.waiting())
        return min((at for at in times if at is not None), default=None)

    def waiting(self) -> set[str]:
        """Return the releases that failed and are not refused."""
        return {release for release, record in self.records.items() if not record.final}

    def is_postponed(self, release: str, now: str) -> bool:
        """Return whether a release waits for its next try."""
        record = self.records.get(release)
        return record is not None and not record.final and not is_due(record, now)

    def after(self, release: str, ending: Ending, reason: str, now: str, *, counts: bool = True) -> Failures:
        """Return the failures after one more try; see `add_failure`."""
        record = add_failure(self.records.get(release), ending, reason[:REASON_LIMIT], now, counts=counts)
        refused = _with_last(self.refused, release, record.reason) if record.final else self.refused
        return Failures(refused, _with_last(self.records, release, record))

    def without(self, releases: Collection[str | None]) -> Failures:
        """Return the failures without those of some releases."""
        return Failures(
            {release: reason for release, reason in self.refused.items() if release not in releases},
            {release: record for release, record in self.records.items() if release not in releases},
        )

    def outdated(self, now: str) -> set[str]:
        """Return the releases whose refusal was for a reason that passes, long ago."""
        return {release for release, record in self.records.items() if record.final and is_due(record, now)}


def describe_failure(record: FailureRecord) -> str:
    """Return what is done about a failed try, in a sentence for people."""
    due = next_try(record)
    if not record.final:
        return (
            f"{record.reason}; try {record.tries} failed, the next one is at {due} or on `edge-client update`"
        )
    until = f"refused until {due}" if due else "refused"
    return f"{record.reason}; {until}. `edge-client update --retry` tries it again now"


def _with_last(known: dict[str, ValueT], release: str, value: ValueT) -> dict[str, ValueT]:
    """Return the newest entries of a table, with this one as the last."""
    entries = {name: other for name, other in known.items() if name != release}
    return dict([*entries.items(), (release, value)][-REFUSALS_KEPT:])


def _blame(record: FailureRecord) -> Blame:
    """Return what the last ending says; one that this version does not know is held against the release."""
    return Ending.__members__.get(record.ending.upper(), Ending.UNUSABLE).blame


def _later(time: str, seconds: float) -> str:
    moved = parse_time(time) + datetime.timedelta(seconds=seconds)
    return moved.isoformat(timespec="milliseconds")


def _seconds_between(start: str, end: str) -> float:
    return (parse_time(end) - parse_time(start)).total_seconds()
