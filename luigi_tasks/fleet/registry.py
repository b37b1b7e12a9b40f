"""The registry: who is in the fleet, in the bucket, signed.

    fleet/registry/index.json           signed: names each shard by the hash of its content
    fleet/registry/shards/<hash>.json   the devices of a part of all ids

A device's shard follows from the hash of its id. A change writes the shards that it touches under new names
and then the index, by one conditional write: all of it counts from then on, or nothing. Who loses that race
begins again from what the winner wrote. Shards that the index left are removed by the next change, so that
whoever still holds the index before can read on.

Nothing here ever reads as an empty fleet: a registry that is not there, or not whole, is an error.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_compact
from edge_client.contract.errors import InputError, SettingsError, TransportError, TrustError
from edge_client.contract.times import utc_now
from luigi_tasks.fleet.documents import Signed, peek_envelope
from luigi_tasks.fleet.records import EnrolledDevice  # noqa: TC001 - msgspec reads it
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from luigi_tasks.fleet.documents import SignedDocuments

REGISTRY_FOLDER = "fleet/registry/"
INDEX_KEY = f"{REGISTRY_FOLDER}index.json"
SHARDS_FOLDER = f"{REGISTRY_FOLDER}shards/"
# A shard of so many devices has about 100 kB; with more on average, all are divided once more.
SHARD_DEVICES = 256
_INDEX_LIMIT_BYTES = 16 << 20
_SHARD_LIMIT_BYTES = 16 << 20
_READERS = 8
# Operators at once: one of them succeeds at each attempt.
_ATTEMPTS = 12
WAY_OUT = (
    "Restore it from the bucket's versions; if what is there now is right, accept it with `edge-fleet "
    "registry --accept`"
)


class NoRegistryError(InputError):
    """There is no registry: no device was ever enrolled, or it is lost."""


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A shard as the index names it.

    Attributes:
        sha256: Of its content, hex; also its name.
        devices: Devices in it, with those that left the fleet.
    """

    sha256: str
    devices: int


class RegistryIndex(Document, frozen=True, kw_only=True, omit_defaults=True):
    """`fleet/registry/index.json`.

    Attributes:
        version: Grows by one with each change. The first is the time, seconds since 1970: a registry that
            had to be begun anew is newer than any before.
        bits: Bits of a device's hash that tell its shard.
        shards: Shards that have devices, by number in decimal.
        collectors: Public keys of the collectors, PEM, by name.
        superseded: Names of shards that the index before had.
        written_at: UTC, ISO 8601.
        written_by: Who changed it.
    """

    version: int
    bits: int = 0
    shards: dict[str, ShardEntry] = {}
    collectors: dict[str, str] = {}
    superseded: tuple[str, ...] = ()
    written_at: str = ""
    written_by: str = ""


class RegistryShard(Document, frozen=True, kw_only=True, omit_defaults=True):
    """Devices of one shard, by id.

    Attributes:
        devices: The devices.
        nonce: Makes each shard another one, so that a removal never hits one that was written again.
    """

    devices: tuple[EnrolledDevice, ...]
    nonce: str


@dataclasses.dataclass(frozen=True)
class Registry:
    """Who is in the fleet.

    Attributes:
        version: Version of the index.
        devices: Devices that are in the fleet, by id.
        retired: Devices that left it, by id.
        collectors: Public keys of the collectors, PEM, by name.
        shards: What was read, by the name of the shard, for `load_registry` to go on from.
    """

    version: int
    devices: Mapping[str, EnrolledDevice]
    collectors: Mapping[str, str]
    retired: Mapping[str, EnrolledDevice] = dataclasses.field(default_factory=dict)
    shards: Mapping[str, tuple[EnrolledDevice, ...]] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class RegistryChange:
    """What a change writes.

    Attributes:
        devices: Devices, in the place of those with the same ids.
        collectors: Public keys, PEM, by name; empty: the collector leaves. Others stay.
        replaces: Whether a collector may get another key than it has.
    """

    devices: tuple[EnrolledDevice, ...] = ()
    collectors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    replaces: bool = False


def load_registry(documents: SignedDocuments, known: Registry | None = None) -> Registry:
    """Return the registry, verified.

    Args:
        documents: Signed documents of the fleet.
        known: An earlier answer: its shards are not read again.
    Raises: NoRegistryError if there is none; TrustError if it is forged, older than this machine has seen, or
        not whole; InputError, TransportError.
    """
    before = None
    while True:
        index = load_index(documents)
        try:
            read = _read_shards(documents, index, index.shards, known.shards if known else {})
        except _ShardMissingError as e:
            if before != index.version:  # somebody changed it meanwhile: twice, or this one would be there
                before = index.version
                continue
            raise e.as_trust_error(documents) from None
        rows = [row for shard in read.values() for row in shard]
        return Registry(
            version=index.version,
            devices={row.device: row for row in rows if not row.retired_at},
            retired={row.device: row for row in rows if row.retired_at},
            collectors=dict(index.collectors),
            shards=read,
        )


def load_index(documents: SignedDocuments) -> RegistryIndex:
    """Return the registry's index, verified, and none of its devices; raises as `load_registry`."""
    signed = _load_index(documents)
    if signed is None:
        raise _no_registry(documents)
    if not signed.document.shards and not signed.document.collectors:
        raise _nobody(documents)
    return signed.document


def find_devices(documents: SignedDocuments, devices: Iterable[str]) -> dict[str, EnrolledDevice]:
    """Return those of some devices that the registry has, also those that left; only their shards are read.

    Raises: as `load_registry`.
    """
    found: dict[str, EnrolledDevice] = {}

    def note(known: Mapping[str, EnrolledDevice]) -> RegistryChange:
        found.update(known)
        return RegistryChange()

    change_registry(documents, devices, note, who="")
    return found


def change_registry(
    documents: SignedDocuments,
    devices: Iterable[str],
    decide: Callable[[Mapping[str, EnrolledDevice]], RegistryChange],
    *,
    who: str,
    begin: bool = False,
) -> RegistryChange:
    """Change the registry in one step, and return what was written.

    Args:
        documents: Signed documents of the fleet.
        devices: Ids that the change is about; only their shards are read.
        decide: Gets those of the devices that the registry has, also those that left the fleet; returns what
            is to be written. It is asked again if somebody else changed the registry meanwhile.
        who: Who changes it.
        begin: Whether to begin the registry where there is none.
    Raises: NoRegistryError; TrustError; SettingsError on a machine without the key; InputError,
        TransportError; and what `decide` raises, after which nothing has changed.
    """
    ids = tuple(dict.fromkeys(devices))
    before = None
    for attempt in range(_ATTEMPTS):
        signed = _load_index(documents)
        if signed is None:
            _begin(documents, who, begin=begin)
            continue
        index = signed.document
        try:
            return _change_once(documents, index, signed.etag, ids, decide, who)
        except _ShardMissingError as e:
            if before == index.version:
                raise e.as_trust_error(documents) from None
        except StoreConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
        before = index.version
        time.sleep(0.05 * attempt + secrets.randbelow(100) / 1000)
    raise AssertionError("unreachable")


def _begin(documents: SignedDocuments, who: str, *, begin: bool) -> None:
    """Write an index without devices, if there never was one: shards without an index are a lost registry."""
    if not begin or _has_shards(documents):
        if documents.store.exists(INDEX_KEY):  # somebody began it meanwhile
            return
        raise _no_registry(documents)
    index = RegistryIndex(version=_first_version(documents), written_at=utc_now(), written_by=who)
    with contextlib.suppress(StoreConflictError):
        _save_index(documents, index, None)


def accept_registry(documents: SignedDocuments, who: str) -> int:
    """Sign the registry that is in the bucket as the newest one; return its version.

    It is for a registry that was restored from a backup, which machines that saw a newer one refuse; and for
    one that only a key signed that counts no more since it was stolen, if this machine saw it before.
    Raises: NoRegistryError; TrustError if nothing proves it, or it is not whole; SettingsError,
        TransportError.
    """
    try:
        signed = documents.load(RegistryIndex, INDEX_KEY, limit_bytes=_INDEX_LIMIT_BYTES)
    except TrustError:
        signed = _load_seen(documents)
        if signed is None:
            raise
    if signed is None:
        raise _no_registry(documents)
    index = signed.document
    try:
        _read_shards(documents, index, index.shards, {})
    except _ShardMissingError as e:
        raise e.as_trust_error(documents) from None
    version = max(index.version + 1, _first_version(documents))
    accepted = msgspec.structs.replace(
        index, version=version, superseded=(), written_at=utc_now(), written_by=who
    )
    _save_index(documents, accepted, signed.etag)
    return version


def shard_of(device: str, bits: int) -> str:
    """Return the number of a device's shard, in decimal."""
    if bits == 0:
        return "0"
    digest = hashlib.sha256(device.encode()).digest()
    return str(int.from_bytes(digest[:4], "big") >> (32 - bits))


class _ShardMissingError(Exception):
    """A shard that the index names is not there."""

    def __init__(self, key: str, devices: int) -> None:
        self._key = key
        self._devices = devices

    def as_trust_error(self, documents: SignedDocuments) -> TrustError:
        msg = (
            f"{documents.store.url(self._key)}: missing; it is the part of the registry with {self._devices} "
            "devices, and somebody removed it. Nothing is judged without it: restore the object from the "
            "bucket's versions"
        )
        return TrustError(msg)


def _load_index(documents: SignedDocuments) -> Signed[RegistryIndex] | None:
    try:
        signed = documents.load(RegistryIndex, INDEX_KEY, limit_bytes=_INDEX_LIMIT_BYTES)
    except TrustError as e:
        msg = (
            f"{e}. If its key was replaced as stolen: look at what is there, then `edge-fleet registry "
            "--accept` on a machine that read the registry before"
        )
        raise TrustError(msg) from e
    if signed is not None and documents.seen is not None:
        version, digest = signed.document.version, _digest(signed.document)
        documents.seen.check(INDEX_KEY, version, digest, WAY_OUT)
        documents.seen.note(INDEX_KEY, version, digest)
    return signed


def _load_seen(documents: SignedDocuments) -> Signed[RegistryIndex] | None:
    """Return the index that no trusted key signed, if it is the newest one that this machine has seen."""
    found = documents.store.get(INDEX_KEY, limit_bytes=_INDEX_LIMIT_BYTES)
    seen = documents.seen.newest(INDEX_KEY) if documents.seen is not None else None
    if found is None or seen is None:
        return None
    source = documents.store.url(INDEX_KEY)
    content = peek_envelope(found.data, source)
    index = decode_document(RegistryIndex, content, source=source, limit_bytes=_INDEX_LIMIT_BYTES)
    return Signed(index, found.etag, "") if _digest(index) == seen.digest else None


def _save_index(documents: SignedDocuments, index: RegistryIndex, etag: str | None) -> None:
    documents.save(INDEX_KEY, index, etag)
    if documents.seen is not None:
        documents.seen.note(INDEX_KEY, index.version, _digest(index))


def _digest(index: RegistryIndex) -> str:
    return hashlib.sha256(encode_compact(index)).hexdigest()


def _first_version(documents: SignedDocuments) -> int:
    seen = documents.seen.newest(INDEX_KEY) if documents.seen is not None else None
    return max(int(time.time()), seen.version + 1 if seen else 0)


def _has_shards(documents: SignedDocuments) -> bool:
    return bool(documents.store.list_folder(SHARDS_FOLDER))


def _nobody(documents: SignedDocuments) -> NoRegistryError:
    msg = f"{documents.store.url(INDEX_KEY)}: no device was enrolled yet: `edge-fleet enroll DEVICE`"
    return NoRegistryError(msg)


def _no_registry(documents: SignedDocuments) -> NoRegistryError:
    url = documents.store.url(INDEX_KEY)
    seen = documents.seen.newest(INDEX_KEY) if documents.seen is not None else None
    if seen is None and not _has_shards(documents):
        return _nobody(documents)
    msg = (
        f"{url}: missing, and the fleet had a registry: somebody removed it, or [store] url is another one. "
        "Restore it from the bucket's versions. If it is lost, remove what is left below "
        f"{documents.store.url(REGISTRY_FOLDER)} and enroll the devices again"
    )
    return NoRegistryError(msg)


def _read_shards(
    documents: SignedDocuments,
    index: RegistryIndex,
    numbers: Iterable[str],
    known: Mapping[str, tuple[EnrolledDevice, ...]],
) -> dict[str, tuple[EnrolledDevice, ...]]:
    """Return the devices of shards by the name of the shard."""
    names = {index.shards[number].sha256: index.shards[number] for number in numbers}
    missing = [entry for name, entry in names.items() if name not in known]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        read = dict(
            zip(
                (entry.sha256 for entry in missing),
                readers.map(lambda entry: _read_shard(documents, entry), missing),
                strict=True,
            )
        )
    return {name: known[name] if name in known else read[name] for name in names}


def _read_shard(documents: SignedDocuments, entry: ShardEntry) -> tuple[EnrolledDevice, ...]:
    key = _shard_key(entry.sha256)
    found = documents.store.get(key, limit_bytes=_SHARD_LIMIT_BYTES)
    if found is None:
        raise _ShardMissingError(key, entry.devices)
    source = documents.store.url(key)
    if hashlib.sha256(found.data).hexdigest() != entry.sha256:
        msg = (
            f"{source}: not what the signed index of the registry names; somebody else wrote there. Restore "
            "the object from the bucket's versions"
        )
        raise TrustError(msg)
    return decode_document(RegistryShard, found.data, source=source, limit_bytes=_SHARD_LIMIT_BYTES).devices


def _shard_key(name: str) -> str:
    return f"{SHARDS_FOLDER}{name}.json"


def _change_once(
    documents: SignedDocuments,
    index: RegistryIndex,
    etag: str | None,
    ids: tuple[str, ...],
    decide: Callable[[Mapping[str, EnrolledDevice]], RegistryChange],
    who: str,
) -> RegistryChange:
    touched = {shard_of(one, index.bits) for one in ids} & index.shards.keys()
    found = [row for rows in _read_shards(documents, index, touched, {}).values() for row in rows]
    wanted = set(ids)
    change = decide({row.device: row for row in found if row.device in wanted})
    if not change.devices and not change.collectors:
        return change
    _check_collectors(index, change)
    if not wanted.issuperset(row.device for row in change.devices):
        raise ValueError("a change of devices that it was not asked about would lose others of their shards")
    bits = _bits_for(index, len({row.device for row in change.devices} - {row.device for row in found}))
    if bits != index.bits:  # all are divided anew
        found = [row for rows in _read_shards(documents, index, index.shards, {}).values() for row in rows]
    contents = _pack({row.device: row for row in (*found, *change.devices)}.values(), bits)
    new = _next_index(index, change, bits, {number: entry for number, (entry, _) in contents.items()}, who)
    _write(documents, new, etag, [(_shard_key(entry.sha256), data) for entry, data in contents.values()])
    _remove(documents, [_shard_key(name) for name in index.superseded])
    return change


def _next_index(
    index: RegistryIndex, change: RegistryChange, bits: int, written: Mapping[str, ShardEntry], who: str
) -> RegistryIndex:
    """Return the index after a change, with the shards that are written for it."""
    kept = index.shards if bits == index.bits else {}
    shards = {**kept, **written}
    left = {entry.sha256 for entry in index.shards.values()} - {entry.sha256 for entry in shards.values()}
    collectors = {**index.collectors, **change.collectors}
    return RegistryIndex(
        version=index.version + 1,
        bits=bits,
        shards=shards,
        collectors={name: key for name, key in collectors.items() if key},
        superseded=tuple(sorted(left)),
        written_at=utc_now(),
        written_by=who,
    )


def _write(
    documents: SignedDocuments, index: RegistryIndex, etag: str | None, shards: list[tuple[str, bytes]]
) -> None:
    """Write shards and then the index that names them; who loses a race leaves nothing behind."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as writers:
        list(writers.map(lambda one: documents.store.put(*one), shards))
    try:
        _save_index(documents, index, etag)
    except (StoreConflictError, SettingsError):  # anything else may have come through
        _remove(documents, [key for key, _ in shards])
        raise


def _check_collectors(index: RegistryIndex, change: RegistryChange) -> None:
    for name, key in change.collectors.items():
        if key and index.collectors.get(name, key) != key and not change.replaces:
            msg = f"collector {name}: has a key already; --replace gives it another, and its old one ends"
            raise InputError(msg)
        if not key and name not in index.collectors:
            known = ", ".join(index.collectors) or "none"
            msg = f"collector {name}: is not in the registry; known: {known}"
            raise InputError(msg)


def _bits_for(index: RegistryIndex, more: int) -> int:
    devices = sum(entry.devices for entry in index.shards.values()) + more
    bits = index.bits
    while devices > SHARD_DEVICES << bits:
        bits += 1
    return bits


def _pack(rows: Iterable[EnrolledDevice], bits: int) -> dict[str, tuple[ShardEntry, bytes]]:
    """Return shards with their content, by number."""
    grouped: dict[str, list[EnrolledDevice]] = {}
    for row in sorted(rows, key=lambda row: row.device):
        grouped.setdefault(shard_of(row.device, bits), []).append(row)
    packed = {}
    for number, group in grouped.items():
        data = encode_compact(RegistryShard(devices=tuple(group), nonce=secrets.token_hex(8)))
        packed[number] = (ShardEntry(sha256=hashlib.sha256(data).hexdigest(), devices=len(group)), data)
    return packed


def _remove(documents: SignedDocuments, keys: Iterable[str]) -> None:
    """Remove shards that nothing names; one that stays costs room, and nothing else."""
    for key in keys:
        try:
            documents.store.delete(key)
        except (TransportError, SettingsError):  # the store is away, or the role may not delete
            return
