"""What the serving release's document promises of its predictions, compared with those on this device."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import EdgeError
from edge_client.releases import read_release
from edge_client.serving.drift import DRIFT_FILE, KEEP_EVERY_S, DriftWatch, keep_record, read_record
from edge_client.serving.sureness import SureWatch

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.contract.release import HoldOut, ReleaseDocument
    from edge_client.inference.classifier import Prediction
    from edge_client.serving.drift import DriftRecord
    from edge_client.settings.file import Settings

# Characters of a release's evidence in the status, which must stay below STATUS_LIMIT_BYTES.
EVIDENCE_LIMIT = 1000
# Sources whose successive frames show the same.
STREAMS = frozenset({"video", "picamera", "pipe"})


class Watches:
    """Drift and sureness of one release at a time. The thread of the frames calls `add`."""

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._drift: DriftWatch | None = None
        self._sure: SureWatch | None = None
        self._document: ReleaseDocument | None = None
        self._kept: DriftRecord | None = None
        self._kept_at = now

    def begin(self, folder: Path | None) -> None:
        """Watch the release of a slot; None: no release."""
        before = self._drift
        self._drift = self._sure = self._document = None
        if folder is None:
            return
        with contextlib.suppress(EdgeError):  # a release that cannot be read does not serve either
            self._document = document = read_release(folder)
            hold_out = document.hold_out
            if hold_out is not None and len(hold_out.labels) == len(document.labels) and hold_out.confidence:
                same = before is not None and before.release == document.release
                self._drift = before if same else self._watch_drift(document.release, hold_out)
            if document.operating_point is not None:
                self._sure = SureWatch(document.release, document.operating_point)

    @property
    def operators(self) -> dict[str, int]:
        """Highest version of each operator that the watched release uses."""
        return {} if self._document is None else self._document.operators

    def add(self, release: str | None, prediction: Prediction, now: float) -> None:
        """Add a prediction of a release at `now`, monotonic seconds; ignored if it is not the watched one."""
        drift, sure = self._drift, self._sure
        if drift is not None and drift.release == release:
            drift.add(prediction.index, prediction.confidence, now)
        if sure is not None and sure.release == release:
            sure.add(sure=prediction.sure)

    def live_fields(self, serving: str | None) -> dict[str, Any]:
        """Return the status fields that are read at the time of sending, given the serving release."""
        drift, sure, document = self._drift, self._sure, self._document
        serves = document is not None and document.release == serving
        return {
            "drift": drift.metrics() if drift is not None else None,
            "sure": sure.metrics() if sure is not None and serves else None,
            "evidence": document.evidence[:EVIDENCE_LIMIT] if document is not None and serves else "",
        }

    def keep(self, now: float, every_s: float = KEEP_EVERY_S) -> None:
        """Keep the watch of drift for a restart, if that was not done for so long; call it now and then."""
        drift = self._drift
        if drift is None or now - self._kept_at < every_s:
            return
        self._kept_at = now
        record = drift.record()
        if record.answers and record != self._kept:
            self._kept = record
            keep_record(self._settings.device.state_dir / DRIFT_FILE, record)

    def _watch_drift(self, release: str, hold_out: HoldOut) -> DriftWatch:
        settings = self._settings.drift
        return DriftWatch(
            release,
            hold_out,
            settings if settings.alarm else None,
            every_s=settings.every_s if self._settings.source.kind in STREAMS else 0.0,
            record=read_record(self._settings.device.state_dir / DRIFT_FILE),
        )
