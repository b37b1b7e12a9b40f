"""Content of `slots.json`: which releases this device has, which serves, and which failed."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_client.contract.documents import Document
from edge_client.contract.names import check_name
from edge_client.update.failures import FailureRecord, Failures  # noqa: TC001 - msgspec reads it


class ProbationRecord(Document, frozen=True, kw_only=True):
    """Record of a probation, or of shadow mode, that survives a restart.

    Attributes:
        release: Release on probation or in shadow mode.
        crashes: Ends of the daemon in a row, for an unknown reason; see `serving.probation.STOPPED`.
        model_crashes: Crashes of the daemon inside this release's model.
        power_cuts: Restarts of the whole machine.
        boot: Boot in which it was written; see `machine.boot_id`.
        seconds: Duration of shadow mode before the last requested stop.
        latency_ms: Median latency of the release before; None if it classified too few frames.
        unsure_share: Share of unsure predictions of the release before; None likewise.
    """

    release: str
    crashes: int = 0
    model_crashes: int = 0
    power_cuts: int = 0
    boot: str = ""
    seconds: float = 0.0
    latency_ms: float | None = None
    unsure_share: float | None = None


class SlotsDocument(Document, frozen=True, kw_only=True):
    """`slots.json`.

    Attributes:
        current: Serving release.
        previous: Release kept for a rollback.
        refused: Reasons by release that failed on this device; not tried again.
        refused_by: Software that refused them: another runtime may be able to run them.
        probation: Record of the current release's probation; None if it is over.
        shadow: Release in shadow mode and its record; None if there is none.
        serving_since: When the current release was activated, UTC, ISO 8601; empty if unknown, as in a
            document that version 0.1 wrote.
        digests: Hex SHA-256 of `release.json` by release, as it was verified when the release was activated.
        failures: Records by release whose tries failed, refused or not; see `update/failures.py`.
        trying: Release whose self-test is running; empty if none is.
        retry_since: The newest one that a signed channel had, see `ChannelDocument`.
    """

    current: str | None = None
    previous: str | None = None
    refused: dict[str, str] = {}
    refused_by: str = ""
    probation: ProbationRecord | None = None
    shadow: ProbationRecord | None = None
    serving_since: str = ""
    digests: dict[str, str] = {}
    failures: dict[str, FailureRecord] = {}
    trying: str = ""
    retry_since: str = ""


def check_releases(document: SlotsDocument) -> None:
    """Raise InputError if a release's id is not safe as a folder's name."""
    for release in releases_in(document):
        check_name(release, "release id")


def releases_in(document: SlotsDocument) -> set[str]:
    """Return the releases whose slots a document names."""
    shadow = document.shadow.release if document.shadow is not None else None
    return {release for release in (document.current, document.previous, shadow) if release is not None}


def without_releases(document: SlotsDocument, gone: set[str]) -> SlotsDocument:
    """Return a document that names only slots that are there; the previous release takes an empty place."""
    current, previous = document.current, document.previous
    left = [release for release in (current, previous) if release is not None and release not in gone]
    shadow = document.shadow if document.shadow is None or document.shadow.release not in gone else None
    return msgspec.structs.replace(
        document,
        current=left[0] if left else None,
        previous=left[1] if len(left) > 1 else None,
        shadow=shadow,
        serving_since=document.serving_since if left[:1] == [current] else "",
    )


def failure_fields(failures: Failures) -> dict[str, Any]:
    """Return the fields of `slots.json` that hold the failures."""
    return {"refused": failures.refused, "failures": failures.records}
