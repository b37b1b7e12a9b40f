"""How a listing is read: what is known already, and batches of what is new.

Batches are the shards of the work: several workers share them, and a batch that was read stays as it
is for ever, with its features, whatever arrives later.
"""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING

from luigi_tasks.dataset.records import Entry, Inventory, InventoryPointer, NewBatch, Plan
from luigi_tasks.storage.documents import DocumentTarget, content_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.dataset.records import ReadPicture
    from luigi_tasks.storage.store import Store

BATCH_VERSION = 1

# A small batch is read again with others once so many are there: a year of hourly runs must not
# leave thousands of tasks.
SMALL_SHARE = 0.25
SMALL_AT_MOST = 24


class PictureLog:
    """What is known of one dataset's pictures, in the store.

    Args:
        store: The bucket.
        url: The dataset.
    """

    def __init__(self, store: Store, url: str) -> None:
        self._store = store
        self._url = url
        self._pointer = DocumentTarget(store, f"work/inventories/{content_key(url)}/newest.json")

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
        return _load_inventory(self._store, self._target(key).key) if key else Inventory(pictures=())

    def save(self, key: str, inventory: Inventory) -> None:
        """Write an inventory and make it the newest."""
        self._target(key).save_list(inventory)
        self._pointer.save(InventoryPointer(key=key))

    def _target(self, key: str) -> DocumentTarget:
        return DocumentTarget(self._store, f"{self._pointer.folder}{key}.json")


@functools.lru_cache(maxsize=1)
def _load_inventory(store: Store, key: str) -> Inventory:
    """Read it once for the plan and the snapshot: nobody changes an inventory."""
    return DocumentTarget(store, key).load(Inventory)


def make_plan(log: PictureLog, listing: Sequence[Entry], url: str, batch_pictures: int) -> Plan:
    """Compare a listing with the newest inventory.

    Args:
        log: What is known.
        listing: Sorted by path.
        url: The dataset.
        batch_pictures: Size of a batch.
    """
    newest = log.newest()
    now = {one.path: one for one in listing}
    before = log.load(newest).pictures
    kept = _without_crumbs([one for one in before if _is_same(one, now.get(one.path))], batch_pictures)
    paths = {one.path for one in kept}
    fresh = [Entry(one.path, one.size, one.version) for one in listing if one.path not in paths]
    new = tuple(_split(fresh, url, batch_pictures))
    old = dict.fromkeys(one.batch for one in kept)
    return Plan(
        inventory=newest,
        gone=tuple(one.path for one in before if one.path not in paths) if len(kept) < len(before) else (),
        new=new,
        batches=(*old, *(one.key for one in new)),
    )


def _is_same(known: ReadPicture, now: Entry | None) -> bool:
    return now is not None and known.version == now.version and known.size == now.size


def _without_crumbs(kept: list[ReadPicture], batch_pictures: int) -> list[ReadPicture]:
    counts = collections.Counter(one.batch for one in kept)
    small = {batch for batch, count in counts.items() if count < batch_pictures * SMALL_SHARE}
    return kept if len(small) <= SMALL_AT_MOST else [one for one in kept if one.batch not in small]


def _split(fresh: Sequence[Entry], url: str, batch_pictures: int) -> list[NewBatch]:
    """Return batches of nearly equal size."""
    count = -(-len(fresh) // batch_pictures)
    batches = []
    for number in range(count):
        part = tuple(fresh[len(fresh) * number // count : len(fresh) * (number + 1) // count])
        rows = [(one.path, one.size, one.version) for one in part]
        batches.append(NewBatch(key=content_key("batch", BATCH_VERSION, url, rows), pictures=part))
    return batches
