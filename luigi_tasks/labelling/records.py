"""Records of a labelling folder."""

from __future__ import annotations

from edge_client.contract.documents import Document


class SkippedObject(Document, frozen=True, kw_only=True):
    """An object of the inbox that is not used, with the reason."""

    key: str
    reason: str


class ListedFrame(Document, frozen=True, kw_only=True):
    """A frame of the inbox, as it was read for a listing.

    Attributes:
        frame: `<device>/<name>` in the inbox.
        version: Changes when the frame may have changed; an unchanged one is not read again.
        sha256: Digest of its picture.
        label: The device's best label, one line of text.
        confidence: Its confidence, 0-1.
        why: Reason why the device kept the frame.
        release: Release that classified it.
        at: When, as the device says.
        fingerprint: What it shows, see `dataset/fingerprints.py`; empty: not to be compared.
        group: Frame that stands for those that are like it; see `labelling/similar.py`.
        fault: Why it cannot be used, but only thrown away; empty: it can be.
    """

    frame: str
    version: str
    sha256: str
    label: str = ""
    confidence: float = 0.0
    why: str = ""
    release: str = ""
    at: str = ""
    fingerprint: str = ""
    group: str = ""
    fault: str = ""

    @property
    def device(self) -> str:
        """Device that kept it."""
        return self.frame.partition("/")[0]


class Taken(Document, frozen=True, kw_only=True):
    """`taken.json` of a labelling folder: what the last TakeLabelled did with its labels.

    Attributes:
        at: When it ended, UTC, ISO 8601.
        moved: Number of frames moved into the dataset.
        discarded: Number of frames deleted.
        relabelled: Number of pictures of the dataset moved to another class.
        removed: Number of pictures of the dataset removed.
        skipped: Frames and pictures that stay where they are, each with the reason.
        small: Number of pictures of each new class that has too few for a snapshot.
    """

    at: str
    moved: int = 0
    discarded: int = 0
    relabelled: int = 0
    removed: int = 0
    skipped: tuple[SkippedObject, ...] = ()
    small: dict[str, int] = {}


class LabellingRecord(Document, frozen=True, kw_only=True):
    """`listing.json` of a labelling folder.

    Attributes:
        digest: Digest of everything that decides the folder, see `labelling.folder.folder_digest`.
        pictures: Number of frames listed.
        waiting: Number of further frames in the inbox, beyond the folder's limit.
        skipped: Objects that could not be listed.
        frames: The frames, in turn by device; also those that can only be thrown away.
        labels: Classes of the dataset.
    """

    digest: str
    pictures: int
    waiting: int
    skipped: tuple[SkippedObject, ...]
    frames: tuple[ListedFrame, ...] = ()
    labels: tuple[str, ...] = ()
