"""What of all that comes over the broker counts, and why the rest does not. No disk, no network, no clock.

    admit   by topic, size and rate alone: cheap, for the thread that reads the broker
    read    decodes, verifies and checks that the device says what its topic says

The broker is not trusted, and any device may be hostile: what cannot be used costs a counter by its reason.
A device that was enrolled with a key is heard only where that key signed.
"""

from __future__ import annotations

import collections
import functools
import threading
from typing import TYPE_CHECKING, NamedTuple

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.messages import STATUS_LIMIT_BYTES, DeviceStatus
from edge_client.contract.names import check_name
from edge_client.contract.report import LABELS_AT_MOST, LATENCY_BINS, DeviceReport, ReleaseFigures
from edge_client.contract.signed_report import WIRE_LIMIT_BYTES, open_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key

    from luigi_tasks.fleet.records import EnrolledDevice

REPORT, STATUS, ONLINE = "report", "status", "online"
# Reasons for which a message does not count.
FOREIGN_TOPIC, BAD_NAME, TOO_LARGE, TOO_MANY = "foreign topic", "bad name", "too large", "too many"
TOO_MANY_UNKNOWN, OVERLOAD, RETAINED = "too many unknown devices", "overload", "retained"
EMPTY, MALFORMED, UNSIGNED, BAD_SIGNATURE = "empty", "malformed", "unsigned", "bad signature"
OTHER_DEVICE, REPEATED, OLDER = "says it is another device", "repeated", "older"
TOO_MANY_CHANNELS, TOO_MANY_ACTIVATIONS = "too many channels", "too many activations"

_LIMITS = {REPORT: WIRE_LIMIT_BYTES, STATUS: STATUS_LIMIT_BYTES, ONLINE: 16}
# A report of a device that nobody enrolled: they are shown, and must not fill the disk.
_UNKNOWN_LIMIT_BYTES = 12288
_RELEASES_AT_MOST, _TEXTS_AT_MOST = 8, 64
# Ids, times and labels, of which the collector keeps a history: clients send no longer ones.
_NAME_CHARACTERS = 64
# Whole numbers that JSON readers and SQLite keep.
_LARGEST = 1 << 53
_MINUTE_S = 60
# Public keys that are kept in memory, each about 2 kB.
_KEYS_KEPT = 4096


class RejectedError(Exception):
    """A message does not count."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Message(NamedTuple):
    """A message that was admitted.

    Attributes:
        device: Device of the topic.
        channel: Channel of the topic; empty: the main one.
        kind: `report`, `status` or `online`.
        payload: Its payload.
        at: Arrival, seconds since 1970.
        is_retained: Whether the broker had kept it: it says nothing about now.
    """

    device: str
    channel: str
    kind: str
    payload: bytes
    at: float
    is_retained: bool


class Heard(NamedTuple):
    """A report that was read.

    Attributes:
        report: The report.
        is_signed: Whether the device's key in the registry signed it.
        epoch: Number of the device's enrolment; 0: it is not in the registry.
        at: Arrival, seconds since 1970; 0: the broker had kept it, so nobody knows.
        is_status: Whether it is the status of a client of before there were reports.
        is_keyed: Whether the device was enrolled with a key.
    """

    report: DeviceReport
    is_signed: bool
    epoch: int
    at: float
    is_status: bool
    is_keyed: bool


class Rejections:
    """Counts of messages that did not count, by reason; several threads count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()

    def count(self, reason: str, number: int = 1) -> None:
        """Count messages."""
        with self._lock:
            self._counts[reason] += number

    def by_reason(self) -> dict[str, int]:
        """Return the counts."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class Intake:
    """Decides which messages count.

    Args:
        fleet: Name of the fleet.
        max_per_min: Messages a minute of one device that count, of each kind.
        max_unknown: Devices that are not in the registry, in one minute.
        members: Devices in the registry, by id; may be set again.
    """

    def __init__(
        self, fleet: str, *, max_per_min: int, max_unknown: int, members: Mapping[str, EnrolledDevice]
    ) -> None:
        self.members = members
        self.rejections = Rejections()
        self._fleet = fleet
        self._max_per_min = max_per_min
        self._max_unknown = max_unknown
        self._minute = -1
        self._sent: dict[str, int] = {}
        self._unknown: set[str] = set()

    def admit(self, topic: str, payload: bytes, at: float, *, is_retained: bool = False) -> Message | None:
        """Return the message if it is to be read; None if it does not count, which is counted."""
        try:
            message = self._admit(topic, payload, at, is_retained=is_retained)
        except RejectedError as e:
            self.rejections.count(e.reason)
            return None
        if message.kind == STATUS and self._has_key(message.device):
            return None  # it reports, and nobody signs a status
        return message

    def read(self, message: Message) -> Heard:
        """Return the report of a message.

        Args:
            message: A report or a status.
        Raises: RejectedError.
        """
        member = self.members.get(message.device)
        is_status = message.kind == STATUS
        try:
            report, is_signed = self._decode(message, member)
        except InputError as e:
            # Empty is what a device's doctor sends, and what removes a retained message.
            raise RejectedError(MALFORMED if message.payload else EMPTY) from e
        except TrustError as e:
            raise RejectedError(BAD_SIGNATURE) from e
        if member is not None and member.key and not is_signed:
            raise RejectedError(UNSIGNED)
        if report.device != message.device or report.fleet != self._fleet:
            raise RejectedError(OTHER_DEVICE)
        if message.channel and report.channel != message.channel:
            raise RejectedError(OTHER_DEVICE)
        _check_plausible(report)
        return Heard(
            report=report,
            is_signed=is_signed,
            epoch=member.epoch if member is not None else 0,
            at=0.0 if message.is_retained else message.at,
            is_status=is_status,
            is_keyed=bool(member is not None and member.key),
        )

    def _has_key(self, device: str) -> bool:
        member = self.members.get(device)
        return member is not None and bool(member.key)

    def _admit(self, topic: str, payload: bytes, at: float, *, is_retained: bool) -> Message:
        parts = topic.split("/")
        if len(parts) not in {5, 6} or parts[0] != "edge" or parts[1] != self._fleet or parts[2] != "devices":
            raise RejectedError(FOREIGN_TOPIC)
        device, kind = parts[3], parts[4]
        channel = parts[5] if len(parts) == 6 else ""
        if kind not in _LIMITS:
            raise RejectedError(FOREIGN_TOPIC)
        is_member = device in self.members
        try:  # first of all: what follows remembers names
            if not is_member:
                check_name(device, "device id")
            if channel:
                check_name(channel, "channel")
        except InputError as e:
            raise RejectedError(BAD_NAME) from e
        self._check_rate(device, kind, at, is_member=is_member)
        if len(payload) > _LIMITS[kind] or (not is_member and len(payload) > _UNKNOWN_LIMIT_BYTES):
            raise RejectedError(TOO_LARGE)
        if kind == REPORT and is_retained:
            raise RejectedError(RETAINED)
        return Message(device, channel, kind, payload, at, is_retained)

    def _check_rate(self, device: str, kind: str, at: float, *, is_member: bool) -> None:
        minute = int(at // _MINUTE_S)
        if minute != self._minute:
            self._minute = minute
            self._sent.clear()
            self._unknown.clear()
        sender = f"{device}/{kind}"
        sent = self._sent.get(sender, 0)
        if sent >= self._max_per_min:
            raise RejectedError(TOO_MANY)
        if not is_member and device not in self._unknown:
            if len(self._unknown) >= self._max_unknown:
                raise RejectedError(TOO_MANY_UNKNOWN)
            self._unknown.add(device)
        self._sent[sender] = sent + 1

    def _decode(self, message: Message, member: EnrolledDevice | None) -> tuple[DeviceReport, bool]:
        if message.kind == STATUS:
            status = decode_document(
                DeviceStatus, message.payload, source=message.device, limit_bytes=STATUS_LIMIT_BYTES
            )
            return report_of_status(status, self._fleet), False
        key = open_public_key(member.key) if member is not None and member.key else None
        wire = open_report(message.payload, message.device, key)
        return wire.report, wire.is_signed


def read_online(payload: bytes) -> bool:
    """Return whether a device is online by its payload.

    Raises: RejectedError.
    """
    if payload not in {b"online", b"offline"}:
        raise RejectedError(MALFORMED if payload else EMPTY)
    return payload == b"online"


def report_of_status(status: DeviceStatus, fleet: str) -> DeviceReport:
    """Return the status of a client of before there were reports as a report: shown, and judged by nothing.

    Its counts are since the start of the daemon and not since the activation; they are left out.
    """
    probation = "running" if status.probation else ""
    serving = ReleaseFigures(
        release=status.release or "", activated_at=status.serving_since or "", probation=probation
    )
    refused = ReleaseFigures(release=status.refused or "", reason="refused on this device")
    return DeviceReport(
        fleet=fleet,
        device=status.device,
        channel=status.channel,
        reported_at=status.changed_at,
        runtime=status.runtime,
        state=status.state,
        decision=status.decision,
        release=status.release or "",
        previous=status.previous or "",
        steady=status.latest or "",
        offered=status.offered or "",
        retry_at=status.retry_at or "",
        releases=tuple(one for one in (serving, refused) if one.release),
        drift_alarm=bool(status.drift and status.drift.alarm),
        warning=status.warning or "",
        last_error=status.last_error or "",
    )


@functools.lru_cache(_KEYS_KEPT)
def open_public_key(pem: str) -> Key:
    """Return a public key of the registry.

    Raises: InputError if the text is none.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from securesystemslib.exceptions import UnsupportedLibraryError  # noqa: PLC0415
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415

    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem.encode()))
    except (ValueError, TypeError, UnsupportedLibraryError) as e:
        msg = f"the registry has a public key that is none ({e}); enroll the device again"
        raise InputError(msg) from e


def _check_plausible(report: DeviceReport) -> None:
    """Refuse what no client of ours sends, and what would be kept for nothing.

    Raises: RejectedError.
    """
    try:
        if report.channel:  # empty: a model file of the device's own serves
            check_name(report.channel, "channel")
    except InputError as e:
        raise RejectedError(BAD_NAME) from e
    if len(report.releases) > _RELEASES_AT_MOST or len(report.tags) > _TEXTS_AT_MOST:
        raise RejectedError(MALFORMED)
    if not (0 <= report.start < _LARGEST and 0 <= report.sequence < _LARGEST):
        raise RejectedError(MALFORMED)
    if not all(_is_plausible(one) for one in report.releases):
        raise RejectedError(MALFORMED)
    names = (
        report.boot_id,
        report.machine.fingerprint,
        report.rollout,
        report.steady,
        report.offered,
        report.release,
        report.previous,
    )
    if max(map(len, names)) > _NAME_CHARACTERS:
        raise RejectedError(MALFORMED)


def _is_plausible(figures: ReleaseFigures) -> bool:
    counts = (
        figures.frames,
        figures.failed,
        figures.unsure,
        figures.restarts,
        *figures.latency.values(),
        *figures.confidence,
        *figures.labels.values(),
    )
    return (
        len(figures.latency) <= LATENCY_BINS
        and len(figures.confidence) <= _TEXTS_AT_MOST
        and len(figures.labels) <= LABELS_AT_MOST + 1
        and min(counts) >= 0
        and max(counts) < _LARGEST
        and 0 <= figures.seconds < _LARGEST
        and 0 <= figures.latency_ms < _LARGEST
        and max(map(len, (figures.release, figures.activated_at, *figures.latency, *figures.labels)))
        <= _NAME_CHARACTERS
    )
