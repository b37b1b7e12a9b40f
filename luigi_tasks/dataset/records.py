"""Records of pictures: listing, inventory, plan and snapshot.

No heavy import: a run with nothing to do reads these, and must not pay for NumPy or Pillow.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document

if TYPE_CHECKING:
    from collections.abc import Iterable

TRAIN, HOLDOUT = "train", "holdout"
# First character of a fingerprint; one of another kind is not compared, its picture is read again.
FINGERPRINT_KIND = "1"
# How a picture came into its group: by its name, by the time it was taken, by what it shows.
NAMED, TAKEN, SIMILAR = "named", "time", "similar"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One picture of a listing, before it is read.

    Attributes:
        path: Relative, with /; the first part is the class.
        size: Bytes.
        version: Changes when the content may have changed: mtime in ns, the ETag, or the archive's digest.
    """

    path: str
    size: int
    version: str


class LeftOut(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file that is not used, or a class without usable pictures.

    Attributes:
        path: Path in its source; that of a class ends in /.
        reason: One of the reasons in `dataset/left_out.py`.
        words: What is wrong with it, for a person.
    """

    path: str
    reason: str
    words: str


class ReadPicture(Entry, frozen=True, array_like=True, gc=False):
    """A picture that has been read.

    Attributes:
        sha256: Hex digest of the file's content; empty if it cannot be decoded.
        fault: Reason why it cannot be decoded, else empty.
        shard: Key of the shard that it was read in; its features are stored under that key.
        reason: Reason for a fault, one of `dataset/left_out.py`; empty where an earlier version found it.
        fingerprint: What it shows, see `dataset/fingerprints.py`; its kind alone if the picture is too small
            to be compared; empty where an earlier version read it.
        taken: When, in ms by its camera's clock; 0: unknown.
        camera: Which camera took it; empty: unknown.
        group: Id of its group; empty: its own hash.
        split: Side of its group in the snapshot that placed it; empty: none did.
        joined: How it came into its group; empty: it was there first.
    """

    sha256: str
    fault: str
    shard: str
    reason: str = ""
    fingerprint: str = ""
    taken: int = 0
    camera: str = ""
    group: str = ""
    split: str = ""
    joined: str = ""

    @property
    def group_id(self) -> str:
        """Id of its group; a picture alone is a group of its own."""
        return self.group or self.sha256

    @property
    def is_comparable(self) -> bool:
        """Whether near-duplicates of it can be found."""
        return len(self.fingerprint) > len(FINGERPRINT_KIND)


class Inventory(Document, frozen=True, kw_only=True):
    """The pictures of a listing, or of one shard of it, after they were read.

    Attributes:
        pictures: Sorted by path.
        holdout_percent: Share of the hold-out by which sides were decided; None: by none, or unknown.
    """

    pictures: tuple[ReadPicture, ...]
    holdout_percent: float | None = None


class InventoryPointer(Document, frozen=True, kw_only=True):
    """Key of the newest inventory of a dataset: a hint that saves reading pictures again."""

    key: str


class NewShard(Document, frozen=True, kw_only=True):
    """A shard of new pictures, which one task reads."""

    key: str
    pictures: tuple[Entry, ...]


class Plan(Document, frozen=True, kw_only=True):
    """Plan of reading a listing.

    Each worker computes it; the one that takes the snapshot records it, and a worker that starts later
    follows the recorded plan.

    Attributes:
        inventory: Key of the inventory of the known pictures; empty: none is known.
        gone: Paths of the inventory that do not count: removed, changed, or to be read again.
        new: Shards to read.
        shards: Keys of all shards that hold a picture of the listing.
    """

    inventory: str
    gone: tuple[str, ...]
    new: tuple[NewShard, ...]
    shards: tuple[str, ...] = msgspec.field(name="batches")


class Picture(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One picture of a snapshot.

    Attributes:
        path: Path in its source.
        sha256: Hex digest of the file's content.
        label: Its class.
        split: `train` or `holdout`.
        group: Id of its group, 64 hex digits: pictures that stand on one side. A picture alone has its own
            `sha256`; empty in the records of versions without groups.
        joined: How it came into its group; empty: it was there first.
    """

    path: str
    sha256: str
    label: str
    split: str
    group: str = ""
    joined: str = ""

    @property
    def group_id(self) -> str:
        """Id of its group; a picture alone is a group of its own."""
        return self.group or self.sha256


class Snapshot(Document, frozen=True, kw_only=True):
    """The pictures of a run.

    Attributes:
        digest: 20 hex digits over hashes, labels, splits and groups; not over paths.
        labels: The classes, sorted; the model's outputs have this order.
        pictures: Sorted by hash, so that renaming files changes nothing.
        left_out: What is not used, sorted by path.
        layout: How the folders were understood where that is not evident, for a person.
        moved: Hashes, by shard, of the pictures that stand elsewhere than their own hash would put them.
        thin_classes: Classes of so few groups that all are learned from: nothing can judge them.
        left_out_classes: Folders of the classes of which nothing is used.
        to_train: Pictures that were hold-out in the snapshot before, and are learned from now.
        to_holdout: Pictures that were learned from, and are hold-out now.
    """

    digest: str
    labels: tuple[str, ...]
    pictures: tuple[Picture, ...]
    left_out: tuple[LeftOut, ...] = ()
    layout: str = ""
    moved: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    thin_classes: tuple[str, ...] = ()
    left_out_classes: tuple[str, ...] = ()
    to_train: int = 0
    to_holdout: int = 0

    def split(self, name: str) -> tuple[Picture, ...]:
        """Return the pictures of one split."""
        return tuple(picture for picture in self.pictures if picture.split == name)


class MovedPictures(Document, frozen=True, kw_only=True):
    """`Snapshot.moved`, for the steps of the shards: each knows its split without reading all pictures."""

    shards: dict[str, tuple[str, ...]]


class SnapshotSummary(Document, frozen=True, kw_only=True):
    """Summary of a snapshot, enough for most steps; it does not grow with the pictures of a shard.

    Attributes:
        left_out: Number of files that are not used.
        left_out_classes: As in the snapshot.
        moved: Digest of `Snapshot.moved` of each shard that has any: its features are those of its split.
    """

    digest: str
    labels: tuple[str, ...]
    train_pictures: int
    holdout_pictures: int
    left_out: int = msgspec.field(name="skipped", default=0)
    left_out_classes: tuple[str, ...] = ()
    moved: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot) -> SnapshotSummary:
        """Summarize a snapshot."""
        return cls(
            digest=snapshot.digest,
            labels=snapshot.labels,
            train_pictures=len(snapshot.split(TRAIN)),
            holdout_pictures=len(snapshot.split(HOLDOUT)),
            left_out=len(snapshot.left_out),
            left_out_classes=snapshot.left_out_classes,
            moved={shard: moved_digest(hashes) for shard, hashes in snapshot.moved.items()},
        )


def moved_digest(hashes: Iterable[str]) -> str:
    """Return what names the split of a shard: empty where each picture stands where its own hash puts it."""
    text = "".join(sorted(hashes))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
