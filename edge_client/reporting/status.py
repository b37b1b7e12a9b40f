"""Status of the device: one document, retained on the broker and stored for `edge-client status`.

Changes of state are published at once, frame counts and latency at most once in an interval. The file is
written at changes of state only, and not more often than `KEPT_AT_ONCE` and `KEEP_INTERVAL_S` allow: writing
wears out an SD card, and whoever may write to the broker can make the state change.
"""

from __future__ import annotations

import logging
import statistics
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.documents import Document, DocumentT, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.messages import STATUS_LIMIT_BYTES, DeviceStatus
from edge_client.contract.text import one_line
from edge_client.contract.times import utc_now
from edge_client.disk import write_durably
from edge_client.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"
LATENCIES_KEPT = 100
# Writes of the file: so many at once, as for an update, then one in each interval.
KEPT_AT_ONCE, KEEP_INTERVAL_S = 10, 120.0
# The state of the releases: other fields, such as the text of an error, may change with each frame.
STATE = (
    "state",
    "probation",
    "release",
    "previous",
    "latest",
    "decision",
    "offered",
    "refused",
    "retry_at",
    "rollout",
    "steady",
    "intended",
    "waits_for",
)
# Longest error text; the whole document must stay below STATUS_LIMIT_BYTES.
TEXT_LIMIT = 4000


class StatusBoard:
    """Collects changes from all threads; one thread calls `step` in a loop to publish them.

    Attributes:
        on_change: Called without arguments, in the thread that made the change, when a field of `STATE` has
            changed; to be set before the threads start.
    """

    def __init__(
        self,
        status: DeviceStatus,
        *,
        file: Path,
        publish: Callable[[bytes], bool],
        interval_s: float,
        live_fields: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Start with `status`.

        Args:
            status: Initial status.
            file: File to store the status in.
            publish: Publishes a retained payload; returns False if that is not possible now.
            interval_s: Shortest time between two messages without a change of state.
            live_fields: Returns fields of the status that are read when it is sent.
        """
        self.on_change: Callable[[], None] = _nobody_asks
        self._status = status
        self._file = file
        self._publish = publish
        self._interval_s = interval_s
        self._live_fields = live_fields
        self._wake = threading.Condition()
        self._latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._frames = 0
        self._counted = False
        self._changed = True
        self._unsent = True
        self._closed = self._asked = False
        self._writes = RateLimit(KEPT_AT_ONCE, KEEP_INTERVAL_S)

    @property
    def status(self) -> DeviceStatus:
        """Current status."""
        with self._wake:
            counted = self._with_counts()
        return self._with_live_fields(counted)

    @property
    def plain(self) -> DeviceStatus:
        """Current status, without what is read when it is sent."""
        return self._status

    @property
    def frames(self) -> int:
        """Frames classified since start."""
        return self._frames

    def change(self, **changes: Any) -> None:  # noqa: ANN401 - any field of DeviceStatus
        """Set fields of the status; published at once if any differs."""
        if isinstance(text := changes.get("last_error"), str):
            changes["last_error"] = text[:TEXT_LIMIT]
        with self._wake:
            before, changed = self._status, msgspec.structs.replace(self._status, **changes)
            if changed == before:
                return
            self._status = msgspec.structs.replace(changed, changed_at=utc_now())
            self._changed = self._unsent = True
            self._wake.notify_all()
        if any(getattr(before, name) != getattr(changed, name) for name in STATE):
            self.on_change()

    def count(self, latency_ms: float) -> None:
        """Count one classified frame."""
        with self._wake:
            self._frames += 1
            self._latencies.append(latency_ms)
            self._counted = True

    def send_again(self) -> None:
        """Publish the status even without a change: the broker may have lost it."""
        with self._wake:
            self._unsent = True
            self._wake.notify_all()

    def keep(self) -> None:
        """Let the thread that calls `step` store the current status, for a person who asks."""
        with self._wake:
            self._asked = self._unsent = True
            self._wake.notify_all()

    def close(self) -> None:
        """Let `step` publish the last changes and return False."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def step(self) -> bool:
        """Wait for a change, at most one interval, and publish it; False once closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._unsent or self._closed, self._interval_s)
            closed = self._closed
            keep = closed or self._asked or (self._changed and self._writes.allows())
            send = self._unsent or self._counted
            counted = self._with_counts()
            self._changed = self._changed and not keep  # kept back: after an interval it is tried again
            self._asked = self._unsent = self._counted = False
        sent = False
        try:
            payload = encode_document(self._with_live_fields(counted))
            sent = not send or self._publish(payload)
        finally:
            if not sent:
                # The queue was full: try again after an interval. Without a connection, `send_again` comes.
                self._counted = True
        if keep:
            self._keep(payload)
        return not closed

    def _with_counts(self) -> DeviceStatus:
        latency_ms = statistics.median(self._latencies) if self._latencies else None
        return msgspec.structs.replace(
            self._status,
            frames=self._frames,
            latency_ms=None if latency_ms is None else round(latency_ms, 3),
        )

    def _with_live_fields(self, status: DeviceStatus) -> DeviceStatus:
        """Add the live fields; not under the lock, which the thread of the frames needs."""
        return _shown(msgspec.structs.replace(status, **self._live_fields()))

    def _keep(self, payload: bytes) -> None:
        try:
            write_durably(self._file, payload)
        except DeviceError as e:
            logger.warning("%s", e)  # the broker has the status too; serving does not depend on the file


def _nobody_asks() -> None:
    """Nobody is told of changes."""


def _shown(document: DocumentT) -> DocumentT:
    """Return a document with texts that are safe to show, and not too long."""
    changes: dict[str, Any] = {}
    for name in document.__struct_fields__:
        value = getattr(document, name)
        if isinstance(value, Document):
            changes[name] = _shown(value)
        elif isinstance(value, dict):
            changes[name] = {key: _shown(one) for key, one in value.items()}
        elif isinstance(value, str):
            changes[name] = _cut(one_line(value[:TEXT_LIMIT]))
    return msgspec.structs.replace(document, **changes)


def _cut(text: str) -> str:
    """Return at most `TEXT_LIMIT` bytes of a text: brokers limit a message (AWS IoT Core: 128 kB)."""
    return text.encode("utf-8", "replace")[:TEXT_LIMIT].decode("utf-8", "ignore")


def read_status(state_dir: Path) -> DeviceStatus:
    """Return the status that the daemon stored last.

    Raises: DeviceError if there is none, or it cannot be read.
    """
    file = state_dir / STATUS_FILE
    try:
        data = file.read_bytes()
    except FileNotFoundError as e:
        msg = f"{file}: no status: no daemon ran with this [device] state_dir yet; start `edge-client run`"
        raise DeviceError(msg) from e
    except NotADirectoryError as e:
        msg = f"{file}: {e.strerror}; [device] state_dir must be a folder"
        raise DeviceError(msg) from e
    except OSError as e:
        msg = f"{file}: {e.strerror or e}; run as the daemon's user, or with sudo"
        raise DeviceError(msg) from e
    try:
        return decode_document(DeviceStatus, data, source=str(file), limit_bytes=STATUS_LIMIT_BYTES)
    except InputError as e:
        msg = f"{e}; the daemon rewrites it at its next start"
        raise DeviceError(msg) from e
