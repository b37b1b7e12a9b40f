"""Snapshots in the bucket: all that a collector knows of the fleet at one moment, signed with its own key.

    fleet/snapshots/20261127T220000Z-collector.jsonl.zst   the rows, JSON lines in zstd; the head comes first
    fleet/snapshots/20261127T220000Z-collector.json        the seal: head, size and SHA-256, signed
    fleet/snapshots/kept/20261127T220000Z-collector        a verdict names this snapshot: it stays

The rows are written first: a snapshot without a seal does not exist. A seal is bound to its key, and counts
under the name of the collector alone whose public key the registry has. Who can write the bucket can take
snapshots away, which their age shows, and forge none.

A row has the marks of the device (`marks.py`), so that the snapshots of several collectors are merged without
counting anything twice, whether they share the reports or all of them hear all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import hashlib
import heapq
import io
import itertools
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_compact
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import check_name
from edge_client.contract.report import DeviceReport
from luigi_tasks.fleet.device_state import is_heard
from luigi_tasks.fleet.documents import open_envelope, seal_envelope
from luigi_tasks.fleet.marks import Mark, merge_marks, sums_of
from luigi_tasks.fleet.records import DeviceRow, RolloutPlan, Sighting, SnapshotHead
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import IO

    from securesystemslib.signer import Key, Signer

    from luigi_tasks.storage.store import ListedObject, Store

FOLDER = "fleet/snapshots/"
KEPT = f"{FOLDER}kept/"
_SEAL, _ROWS = ".json", ".jsonl.zst"
_SEAL_LIMIT_BYTES = 1 << 20
# A million devices with few sums each stay below.
_ROWS_LIMIT_BYTES = 1 << 30
_LINE_LIMIT_BYTES = 1 << 20
_TIME = "%Y%m%dT%H%M%SZ"
# 1 takes a third of the time of zstd's default, and a tenth more room.
_LEVEL = 1
# Of several collectors, one that wrote nothing for so long is gone: its rows count on, its silence does not.
CURRENT_S = 1800.0
# Nothing that a verdict may be reading right now is removed.
_YOUNG_S = 3600.0
HOUR_S, DAY_S = 3600, 86400
# Reports that a device may miss before it counts as not heard.
SILENT_AFTER = RolloutPlan().silent_after

_NO_REPORT = msgspec.Raw(b"null")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the fleet reported.

    Attributes:
        head: Facts about the snapshot; of several, what holds for all of them.
        rows: The devices' channels, by device and channel.
        sources: SHA-256 of the rows of each snapshot that went in, by key, for a verdict to name.
    """

    head: SnapshotHead
    rows: tuple[DeviceRow, ...]
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)


class StoredRow(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A row as it is written: as `DeviceRow`, with marks in the place of sums, and the report as it is."""

    device: str
    channel: str
    enrolled: bool = False
    is_signed: bool = False
    online: bool | None = None
    first_seen: float = 0.0
    last_seen: float = 0.0
    epoch: int = 0
    start: int = 0
    sequence: int = 0
    report: msgspec.Raw = _NO_REPORT
    sightings: tuple[Sighting, ...] = ()
    marks: tuple[Mark, ...] = ()
    clones: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, int, int, float]:
        """Place among the reports of the device, in all collectors."""
        return self.epoch, self.start, self.sequence, self.last_seen


class SnapshotSeal(Document, frozen=True, kw_only=True):
    """What a collector signs.

    Attributes:
        head: The first line of the rows.
        sha256: Hex digest of the object with the rows.
        size_bytes: Its size.
    """

    head: SnapshotHead
    sha256: str
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class SnapshotPolicy:
    """Which snapshots of a collector stay: all, then one an hour, then one a day.

    Attributes:
        all_h: All of so many hours.
        hourly_days: One an hour of so many days.
        daily_days: One a day of so many days.
    """

    all_h: float
    hourly_days: float
    daily_days: float


def write_snapshot(store: Store, head: SnapshotHead, rows: Iterable[StoredRow], signer: Signer) -> str:
    """Write a snapshot; return the key of its rows.

    Args:
        store: The bucket.
        head: Its head.
        rows: Sorted by device and channel.
        signer: The collector's key.
    Raises: TransportError, SettingsError.
    """
    key = snapshot_key(head)
    data = pack_rows(head, rows)
    store.put(key, data)
    seal = SnapshotSeal(head=head, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    place = seal_key(key)
    store.put(place, seal_envelope(encode_compact(seal), place, signer), content_type="application/json")
    return key


def read_newest_snapshot(store: Store, fleet: str, trusted: Mapping[str, str]) -> Snapshot | None:
    """Return the newest snapshot; of several collectors, the newest of each in one.

    Args:
        store: The bucket.
        fleet: Name of the fleet.
        trusted: Public keys of the collectors by their names, PEM, as in the registry.
    Returns: None if there is none of a collector that is trusted. How old it is, `head.taken_at` tells.
    Raises: TrustError if the newest one of a trusted collector is not signed by it, or is damaged;
        InputError, TransportError, SettingsError.
    """
    keys = newest_keys(store, trusted)
    return read_snapshots(store, keys, fleet, trusted) if keys else None


def read_newest_heads(store: Store, fleet: str, trusted: Mapping[str, str]) -> dict[str, SnapshotHead]:
    """Return the head of the newest snapshot of each trusted collector, by key of its rows, without its rows.

    Raises: As `read_newest_snapshot`.
    """
    return {key: _open_seal(store, key, fleet, trusted).head for key in newest_keys(store, trusted)}


def open_rows(
    store: Store, keys: Iterable[str], fleet: str, trusted: Mapping[str, str]
) -> Iterator[DeviceRow]:
    """Return the rows of the snapshots with these keys one after the other: no two need be in memory.

    Raises: As `read_snapshots`, also from the iterator.
    """
    files = [_read_rows(store, key, _open_seal(store, key, fleet, trusted)) for key in sorted(keys)]
    return (_to_row(row) for row in _merge_rows(files))


def read_snapshots(store: Store, keys: Iterable[str], fleet: str, trusted: Mapping[str, str]) -> Snapshot:
    """Return the snapshots with these keys as one; the same keys give the same, whenever they are read.

    Raises: As `read_newest_snapshot`; InputError if one is missing.
    """
    seals = {key: _open_seal(store, key, fleet, trusted) for key in sorted(keys)}
    if not seals:
        raise InputError("no snapshot was named; give the keys that a verdict names")
    files = [_read_rows(store, key, seal) for key, seal in seals.items()]
    head = merge_heads([seal.head for seal in seals.values()])
    with _without_garbage():
        rows = tuple(_to_row(row) for row in _merge_rows(files))
    sources = {key: seal.sha256 for key, seal in seals.items()}
    if len(seals) > 1:
        head = msgspec.structs.replace(head, devices=len(rows), heard=count_heard(rows, head.taken_at))
    return Snapshot(head, rows, sources)


@contextlib.contextmanager
def _without_garbage() -> Iterator[None]:
    """Let Python not look for cycles while millions of objects are made, which doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def count_heard(rows: Iterable[DeviceRow], now: float) -> int:
    """Return the number of enrolled devices that do not owe a report."""
    return len({row.device for row in rows if row.enrolled and is_heard(row, now, SILENT_AFTER)})


def newest_keys(store: Store, trusted: Mapping[str, str]) -> tuple[str, ...]:
    """Return the key of the newest snapshot of each trusted collector.

    One that wrote nothing for days, while another one does, has left.
    """
    newest: dict[str, tuple[float, str]] = {}
    for one in store.list_unread(FOLDER):
        found = parse_key(one.key)
        if found is not None and one.key.endswith(_SEAL) and found[1] in trusted:
            taken_at, collector = found
            newest[collector] = max(newest.get(collector, (0.0, "")), (taken_at, rows_key(one.key)))
    last = max((taken_at for taken_at, _ in newest.values()), default=0.0)
    return tuple(sorted(key for taken_at, key in newest.values() if taken_at >= last - DAY_S))


def keep_snapshot(store: Store, key: str) -> None:
    """Let a snapshot stay for as long as the bucket: a verdict names it. To be called before that is saved.

    Raises: TransportError, SettingsError.
    """
    store.put(_kept_key(key), b"")


def thin_snapshots(store: Store, collector: str, policy: SnapshotPolicy, now: float) -> int:
    """Remove a collector's snapshots that the policy does not keep and no verdict names; return their number.

    Raises: TransportError, SettingsError.
    """
    listed = store.list_unread(FOLDER)
    doomed = list(_thinned(listed, collector, policy, now))
    for key in doomed:
        store.delete(seal_key(key))
        store.delete(key)
    return len(doomed)


def pack_rows(head: SnapshotHead, rows: Iterable[StoredRow]) -> bytes:
    """Return the object that holds the rows; the oldest marks of a row that is too long are left out."""
    import zstandard  # noqa: PLC0415 - heads alone do without

    target, encoder, line = io.BytesIO(), msgspec.json.Encoder(), bytearray()
    with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(target, closefd=False) as file:
        encoder.encode_into(head, line)
        file.write(line + b"\n")
        for row in rows:
            one = row
            encoder.encode_into(one, line)
            while len(line) >= _LINE_LIMIT_BYTES and one.marks:  # one device must not make it unreadable
                one = msgspec.structs.replace(one, marks=one.marks[(len(one.marks) + 1) // 2 :])
                encoder.encode_into(one, line)
            line += b"\n"
            file.write(line)
    return target.getvalue()


def snapshot_key(head: SnapshotHead) -> str:
    """Return the key of the rows of a snapshot."""
    return f"{first_key(head.taken_at)}-{check_name(head.collector, 'collector')}{_ROWS}"


def first_key(taken_at: float) -> str:
    """Return what comes before the keys of all snapshots that are as new, and after all older ones."""
    return FOLDER + datetime.datetime.fromtimestamp(taken_at, datetime.timezone.utc).strftime(_TIME)


def seal_key(key: str) -> str:
    """Return the key of the seal of these rows."""
    return f"{key.removesuffix(_ROWS)}{_SEAL}"


def rows_key(key: str) -> str:
    """Return the key of the rows of a snapshot, from either of its keys."""
    return f"{key.removesuffix(_SEAL).removesuffix(_ROWS)}{_ROWS}"


def parse_key(key: str) -> tuple[float, str] | None:
    """Return time (seconds since 1970) and collector of a snapshot's key; None for any other key."""
    name = key.removeprefix(FOLDER).removesuffix(_ROWS).removesuffix(_SEAL)
    taken, _, collector = name.partition("-")
    if not collector or "/" in name:
        return None
    try:
        at = datetime.datetime.strptime(taken, _TIME).replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    return at.timestamp(), collector


def _kept_key(key: str) -> str:
    return KEPT + key.removeprefix(FOLDER).removesuffix(_ROWS)


def _thinned(
    listed: Sequence[ListedObject], collector: str, policy: SnapshotPolicy, now: float
) -> Iterator[str]:
    """Yield the keys of rows that do not stay; of each hour and each day the first snapshot does."""
    kept = {one.key for one in listed if one.key.startswith(KEPT)}
    found = {(parse_key(one.key), rows_key(one.key)) for one in listed if one.key.endswith(_SEAL)}
    of_rows = {(parse_key(one.key), one.key) for one in listed if one.key.endswith(_ROWS)}
    hours, days = set(), set()
    for place, key in sorted(
        (place, key) for place, key in found | of_rows if place and place[1] == collector
    ):
        at = place[0] if place else 0.0
        age, hour, day = now - at, int(at // HOUR_S), int(at // DAY_S)
        is_first = (hour not in hours, day not in days)
        hours.add(hour)
        days.add(day)
        stays = (
            age <= max(policy.all_h * HOUR_S, _YOUNG_S)
            or (is_first[0] and age <= policy.hourly_days * DAY_S)
            or (is_first[1] and age <= policy.daily_days * DAY_S)
        )
        if not stays and _kept_key(key) not in kept:
            yield key


def _open_seal(store: Store, key: str, fleet: str, trusted: Mapping[str, str]) -> SnapshotSeal:
    found, place = parse_key(key), seal_key(key)
    if found is None or not key.endswith(_ROWS):
        msg = f"{key[:200]!r}: no key of a snapshot; they look like {FOLDER}20261127T220000Z-collector{_ROWS}"
        raise InputError(msg)
    source, collector = store.url(place), found[1]
    if collector not in trusted:
        msg = (
            f"{source}: the registry names no collector {collector!r}; give it the collector's public key "
            "(`edge-fleet collector-key`)"
        )
        raise TrustError(msg)
    stored = store.get(place, limit_bytes=_SEAL_LIMIT_BYTES)
    if stored is None:
        msg = f"{source}: there is no such snapshot any more; restore it from the bucket's versions"
        raise InputError(msg)
    keys = public_key_of(trusted[collector], collector)
    payload, _ = open_envelope(stored.data, place, keys, source)
    seal = decode_document(SnapshotSeal, payload, source=source, limit_bytes=_SEAL_LIMIT_BYTES)
    if (seal.head.fleet, seal.head.collector) != (fleet, collector):
        msg = (
            f"{source}: of fleet {seal.head.fleet!r} and collector {seal.head.collector!r}; not of {fleet!r}"
        )
        raise TrustError(msg)
    if not 0 <= seal.head.taken_at - found[0] < 1:
        msg = f"{source}: its collector signed another time in it, {seal.head.taken_at}; who has its key?"
        raise TrustError(msg)
    return seal


def public_key_of(pem: str, collector: str) -> dict[str, Key]:
    """Return a collector's public key by its id.

    Raises: InputError if the text is none.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from securesystemslib.exceptions import UnsupportedLibraryError  # noqa: PLC0415
    from securesystemslib.signer import SSlibKey  # noqa: PLC0415

    try:
        key = SSlibKey.from_crypto(load_pem_public_key(pem.encode()))
    except (ValueError, TypeError, UnsupportedLibraryError) as e:
        msg = f"registry, collector {collector!r}: its public key is none ({e}); name it again"
        raise InputError(msg) from e
    return {key.keyid: key}


def _read_rows(store: Store, key: str, seal: SnapshotSeal) -> Iterator[StoredRow]:
    source = store.url(key)
    try:
        stored = store.get(key, limit_bytes=min(seal.size_bytes, _ROWS_LIMIT_BYTES))
    except TooLargeError as e:
        msg = f"{source}: larger than what its collector signed; find out who can write there"
        raise TrustError(msg) from e
    if stored is None:
        msg = f"{source}: its seal is there, and it is not; restore it from the bucket's versions"
        raise InputError(msg)
    if hashlib.sha256(stored.data).hexdigest() != seal.sha256:
        msg = f"{source}: not what its collector signed; find out who can write there"
        raise TrustError(msg)
    return unpack_rows(stored.data, seal.head.devices, source)


def unpack_rows(data: bytes, devices: int, source: str) -> Iterator[StoredRow]:
    """Yield the rows of an object.

    Args:
        data: The object.
        devices: Number of rows that the head promises.
        source: For messages.
    Raises: InputError if they are not as they are written.
    """
    import zstandard  # noqa: PLC0415 - as above

    decoder = msgspec.json.Decoder(StoredRow)
    count = -1
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as raw:
        try:
            for count, line in enumerate(itertools.islice(_lines(raw), devices + 2)):
                if count:
                    yield decoder.decode(line)
        except (zstandard.ZstdError, msgspec.DecodeError, UnicodeDecodeError) as e:
            msg = f"{source}: line {count + 1} is no row ({e}); take an earlier snapshot"
            raise InputError(msg) from e
    if count != devices:
        more = " or more" if count > devices else ""
        msg = f"{source}: {count}{more} rows, {devices} were promised; take an earlier snapshot"
        raise InputError(msg)


def _lines(raw: IO[bytes]) -> Iterator[bytes]:
    file = io.BufferedReader(raw, 1 << 16)  # type: ignore[type-var]
    while line := file.readline(_LINE_LIMIT_BYTES):
        yield line


def merge_heads(heads: Sequence[SnapshotHead]) -> SnapshotHead:
    """Return what holds for all collectors: the time of the newest, and the latest gap."""
    newest = max(heads, key=lambda head: (head.taken_at, head.collector))
    if len(heads) == 1:
        return newest
    current = [head for head in heads if head.taken_at >= newest.taken_at - CURRENT_S]
    rejected: dict[str, int] = {}
    for head in heads:
        for reason, number in head.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + number
    return msgspec.structs.replace(
        newest,
        collector=",".join(sorted(head.collector for head in heads)),
        listening_since=max(head.listening_since for head in current),
        rejected=rejected,
    )


def _merge_rows(files: Sequence[Iterable[StoredRow]]) -> Iterator[StoredRow]:
    ordered = heapq.merge(*files, key=lambda row: (row.device, row.channel))
    for _, group in itertools.groupby(ordered, key=lambda row: (row.device, row.channel)):
        several = list(group)
        yield several[0] if len(several) == 1 else _merge_row(several)


def _merge_row(several: Sequence[StoredRow]) -> StoredRow:
    newest = max(several, key=lambda row: row.order)
    sightings: dict[tuple[str, str, str], Sighting] = {}
    for one in sorted((one for row in several for one in row.sightings), key=lambda one: one.at):
        sightings.setdefault((one.rollout, one.state, one.release), one)
    online = {row.online for row in several} - {None}
    return msgspec.structs.replace(
        newest,
        online=online.pop() if len(online) == 1 else None,
        first_seen=min(row.first_seen for row in several),
        last_seen=max(row.last_seen for row in several),
        sightings=tuple(sightings.values()),
        marks=merge_marks(row.marks for row in several),
        clones=tuple(sorted({one for row in several for one in row.clones})),
    )


def _to_row(row: StoredRow) -> DeviceRow:
    try:
        report = _REPORT.decode(row.report)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        msg = f"the snapshot's row of {row.device[:200]!r} has no report ({e}); update this software"
        raise InputError(msg) from e
    return DeviceRow(
        device=row.device,
        channel=row.channel,
        enrolled=row.enrolled,
        is_signed=row.is_signed,
        online=row.online,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        report=report,
        sightings=row.sightings,
        periods=sums_of(row.marks),
        clones=row.clones,
    )


_REPORT = msgspec.json.Decoder(DeviceReport | None)
