"""Plan of reading a listing: pictures that are known already, and shards of the new ones.

Workers share the shards. A shard that was read never changes, nor do its features, whatever pictures arrive
later.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.dataset.records import (
    FINGERPRINT_KIND,
    Entry,
    Inventory,
    InventoryPointer,
    NewShard,
    Plan,
)
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.storage.documents import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luigi_tasks.dataset.records import ReadPicture
    from luigi_tasks.evidence.ledger import Ledger

SHARD_VERSION = 2

# A small shard is read again with others once so many are there: a year of hourly runs must not
# leave thousands of tasks.
SMALL_SHARE = 0.25
SMALL_AT_MOST = 24


class PictureLog:
    """Inventory of one dataset's pictures, in the store.

    Args:
        ledger: Signed results of the store.
        url: The dataset.
    """

    def __init__(self, ledger: Ledger, url: str) -> None:
        self._ledger = ledger
        self._url = url
        self._pointer = StoredDocument(ledger, f"work/inventories/{content_key(url)}/newest.json")
        # Read once for the plan and the snapshot: inventories never change.
        self._loaded = ("", Inventory(pictures=()))

    def newest(self) -> str:
        """Return the key of the newest inventory, or "" if there is none."""
        if not self._pointer.exists():
            return ""
        key = self._pointer.load(InventoryPointer).key
        return key if self.has(key) else ""

    def has(self, key: str) -> bool:
        """Whether an inventory is there; that of the key "" always is."""
        return not key or self._target(key).exists()

    def load(self, key: str) -> Inventory:
        """Return an inventory; of the key "", an empty one."""
        if not key:
            return Inventory(pictures=())
        if self._loaded[0] != key:
            self._loaded = (key, self._target(key).load(Inventory))
        return self._loaded[1]

    def save(self, key: str, inventory: Inventory) -> None:
        """Write an inventory and make it the newest."""
        self._target(key).save_list(inventory, replace=True)
        self._pointer.save(InventoryPointer(key=key), replace=True)

    def _target(self, key: str) -> StoredDocument:
        return StoredDocument(self._ledger, f"{self._pointer.folder}{key}.json")


def make_plan(log: PictureLog, listing: Sequence[Entry], url: str, shard_pictures: int) -> Plan:
    """Compare a listing with the newest inventory.

    Args:
        log: The dataset's inventories.
        listing: Sorted by path.
        url: The dataset.
        shard_pictures: Size of a shard.
    """
    newest = log.newest()
    now = {one.path: one for one in listing}
    before = log.load(newest).pictures
    kept = _drop_small_shards([one for one in before if _is_same(one, now.get(one.path))], shard_pictures)
    paths = {one.path for one in kept}
    fresh = [Entry(one.path, one.size, one.version) for one in listing if one.path not in paths]
    new = tuple(_split(fresh, url, shard_pictures))
    old = dict.fromkeys(one.shard for one in kept)
    return Plan(
        inventory=newest,
        gone=tuple(one.path for one in before if one.path not in paths) if len(kept) < len(before) else (),
        new=new,
        shards=(*old, *(one.key for one in new)),
    )


def merge_inventory(
    log: PictureLog, plan: Plan, read: Iterable[Sequence[ReadPicture]]
) -> tuple[ReadPicture, ...]:
    """Return all pictures of the listing, sorted by path: those that were known and those just read.

    Args:
        log: Inventories of earlier runs.
        plan: How the listing is read.
        read: The pictures of each new shard.
    """
    gone = set(plan.gone)
    before = log.load(plan.inventory).pictures
    pictures = [one for one in before if one.path not in gone]
    # Moved, touched, or read again with others: content keeps its group and side.
    placed = {one.sha256: one for one in before if one.path in gone and one.split} if gone else {}
    for shard in read:
        pictures += [_remember(one, placed.get(one.sha256)) for one in shard]
    return tuple(sorted(pictures, key=lambda one: one.path))


def _is_same(known: ReadPicture, now: Entry | None) -> bool:
    """Whether a picture need not be read again; faults that an earlier version found may be none any more."""
    if now is None or (known.fault and not known.reason):
        return False
    # A picture that an earlier version read has no fingerprint, or one of another kind.
    is_readable = bool(known.fault) or known.fingerprint[:1] == FINGERPRINT_KIND
    return is_readable and known.version == now.version and known.size == now.size


def _remember(one: ReadPicture, before: ReadPicture | None) -> ReadPicture:
    """Return a picture with the group and side that its content had before."""
    if before is None:
        return one
    return msgspec.structs.replace(one, group=before.group, split=before.split, joined=before.joined)


def _drop_small_shards(kept: list[ReadPicture], shard_pictures: int) -> list[ReadPicture]:
    counts = collections.Counter(one.shard for one in kept)
    small = {shard for shard, count in counts.items() if count < shard_pictures * SMALL_SHARE}
    return kept if len(small) <= SMALL_AT_MOST else [one for one in kept if one.shard not in small]


def _split(fresh: Sequence[Entry], url: str, shard_pictures: int) -> list[NewShard]:
    """Return shards of nearly equal size."""
    count = -(-len(fresh) // shard_pictures)
    shards = []
    for number in range(count):
        part = tuple(fresh[len(fresh) * number // count : len(fresh) * (number + 1) // count])
        rows = [(one.path, one.size, one.version) for one in part]
        shards.append(NewShard(key=content_key("batch", SHARD_VERSION, url, rows), pictures=part))
    return shards
