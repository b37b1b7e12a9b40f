"""Objects that no published metadata names any more: what a publication drops stays in the bucket until then.

Devices may be reading the metadata of a moment ago, and old versions of it name old files (TUF's consistent
snapshots). So what counts is all metadata that was published within a time, and anything that was written
within it: a publication uploads its files before any metadata names them. Nothing outside of `targets/` and
`metadata/` is ever removed, no root and no timestamp, and no object whose name is not one that the pipeline
gives.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import re
from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_client.contract.errors import InputError, TransportError, TrustError
from edge_client.contract.names import METADATA_FOLDER, ROLLOUTS_ROLE, TARGETS_FOLDER
from luigi_tasks.release.published import METADATA_LIMIT_BYTES, TIMESTAMP_KEY, object_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luigi_tasks.release.published import Published, RepositoryState
    from luigi_tasks.storage.store import ListedObject, Store

LEAST_AGE_S = 86400.0
_VERSION = re.compile(rf"{METADATA_FOLDER}/(\d+)\.(targets|snapshot|{ROLLOUTS_ROLE})\.json")
_TARGET = re.compile(rf"{TARGETS_FOLDER}/(?:[^/]+/)+[0-9a-f]{{64}}\.[^/]+")
# Of the snapshots from before the time, so many stay: a publication that was killed leaves ones that were
# never published, and the one before them stayed current.
_SNAPSHOTS_BEFORE = 3
_REMOVERS = 16


class Clearable(Protocol):
    """A signed repository, as far as its garbage goes."""

    store: Store

    def load(self) -> RepositoryState:
        """Return what is published."""


@dataclasses.dataclass(frozen=True)
class Garbage:
    """Objects that nothing needs.

    Attributes:
        objects: The objects.
        stamp: ETag of the timestamp that was published when they were found.
        kept: Number of objects that stay.
    """

    objects: tuple[ListedObject, ...]
    stamp: str
    kept: int

    @property
    def size_bytes(self) -> int:
        """Size of all of them."""
        return sum(one.size_bytes for one in self.objects)


class _Named(msgspec.Struct):
    hashes: dict[str, str] = {}
    version: int = 0


class _Signed(msgspec.Struct):
    targets: dict[str, _Named] = {}
    meta: dict[str, _Named] = {}


class _Metadata(msgspec.Struct):
    signed: _Signed


def find_garbage(repository: Clearable, before: float) -> Garbage:
    """Return the objects that no metadata published since a time names, and that were written before it.

    Args:
        repository: The repository.
        before: Seconds since 1970.
    Raises: InputError if nothing is published; TrustError if the bucket is older than this machine remembers,
        or metadata that counts is damaged; as `ReleaseRepository.load`.
    """
    store = repository.store
    listed = [one for folder in (METADATA_FOLDER, TARGETS_FOLDER) for one in store.list_folder(f"{folder}/")]
    published = _check(repository.load().published, store)  # after the listing: whatever is named since stays
    versions = _keep_versions(store, listed, published, before)
    named = {key for one in versions for key in _files_of(_read(store, one))}
    garbage = tuple(one for one in listed if _is_old(one, before) and _is_unneeded(one.key, versions, named))
    return Garbage(garbage, published.stamp.etag if published.stamp else "", len(listed) - len(garbage))


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove objects, unless something was published since they were found; safe to repeat.

    Raises: TransportError; SettingsError without the right to delete.
    """
    stamp = store.get(TIMESTAMP_KEY, limit_bytes=METADATA_LIMIT_BYTES)
    listed = {*store.list_folder(f"{METADATA_FOLDER}/"), *store.list_folder(f"{TARGETS_FOLDER}/")}
    if stamp is None or stamp.etag != garbage.stamp or not listed.issuperset(garbage.objects):
        msg = f"{store.url(TIMESTAMP_KEY)}: somebody published meanwhile; nothing was removed, run again"
        raise TransportError(msg)
    with concurrent.futures.ThreadPoolExecutor(_REMOVERS) as removers:
        list(removers.map(lambda one: store.delete(one.key), garbage.objects))


def _check(published: Published, store: Store) -> Published:
    if published.stamp is None:
        msg = f"{store.url('')}: nothing is published in it, so nothing tells what may go"
        raise InputError(msg)
    if published.is_recovered or published.restarts_history:
        msg = (
            f"{store.url('')}: the bucket is not what this machine remembers; run `edge-keys publish` first. "
            "Nothing was removed"
        )
        raise TrustError(msg)
    return published


def _keep_versions(
    store: Store, listed: Sequence[ListedObject], published: Published, before: float
) -> frozenset[str]:
    """Return the keys of the metadata that counts: current, written since, or named by such a snapshot."""
    current = {_key(role, version) for role, version in published.versions.items() if role != "timestamp"}
    found = {one.key: _version_of(one.key) for one in listed if _VERSION.fullmatch(one.key)}
    recent = {one.key for one in listed if one.key in found and not _is_old(one, before)}
    older = sorted((number, key) for key, (number, role) in found.items() if role == "snapshot")
    older = [(number, key) for number, key in older if key not in recent | current]
    kept = recent | current | {key for _, key in older[-_SNAPSHOTS_BEFORE:]}
    for key in [one for one in kept if _version_of(one)[1] == "snapshot"]:
        for name, meta in _read(store, key).meta.items():
            kept.add(_key(name.removesuffix(".json"), meta.version))
    return frozenset(kept & found.keys())


def _is_old(one: ListedObject, before: float) -> bool:
    return one.written_at is not None and one.written_at < before


def _is_unneeded(key: str, versions: Iterable[str], named: Iterable[str]) -> bool:
    if _VERSION.fullmatch(key):
        return key not in versions
    return _TARGET.fullmatch(key) is not None and key not in named


def _files_of(metadata: _Signed) -> Iterable[str]:
    return (
        object_key(path, one.hashes["sha256"])
        for path, one in metadata.targets.items()
        if "sha256" in one.hashes
    )


def _read(store: Store, key: str) -> _Signed:
    """Return metadata, whoever signed it: what it names stays, and more cannot follow from it."""
    found = store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
    try:
        return _DECODER.decode(found.data if found is not None else b"").signed
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        msg = f"{store.url(key)}: no metadata ({e}), so what it names is unknown. Nothing was removed"
        raise TrustError(msg) from e


def _key(role: str, version: int) -> str:
    return f"{METADATA_FOLDER}/{version}.{role}.json"


def _version_of(key: str) -> tuple[int, str]:
    found = _VERSION.fullmatch(key)
    return (int(found[1]), found[2]) if found is not None else (0, "")


_DECODER: msgspec.json.Decoder[_Metadata] = msgspec.json.Decoder(_Metadata)


def count_kinds(objects: Iterable[ListedObject]) -> Mapping[str, int]:
    """Return the number of objects by what they are: `release`, `pointer` or `metadata`."""
    counts = {"release": 0, "pointer": 0, "metadata": 0}
    for one in objects:
        is_target = one.key.startswith(f"{TARGETS_FOLDER}/")
        is_release = one.key.startswith(f"{TARGETS_FOLDER}/releases/")
        counts["release" if is_release else "pointer" if is_target else "metadata"] += 1
    return counts
