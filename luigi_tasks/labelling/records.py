"""Records of a labelling folder."""

from __future__ import annotations

import datetime

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

    @property
    def taken_at(self) -> float | None:
        """When, seconds since 1970, as the device says; None: that is no time."""
        try:
            moment = datetime.datetime.fromisoformat(self.at.replace("Z", "+00:00"))
            return moment.replace(tzinfo=moment.tzinfo or datetime.timezone.utc).timestamp()
        except (ValueError, OverflowError):
            return None


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


class DoubtfulPicture(Document, frozen=True, kw_only=True):
    """A picture that probably stands in the wrong class.

    Attributes:
        path: Path in the dataset.
        sha256: Content hash.
        label: Its class.
        probable: The class that it probably belongs to.
        score: Probability that the label is wrong.
        why: What speaks against the label.
    """

    path: str
    sha256: str
    label: str
    probable: str
    score: float
    why: str


class DoubtfulRecord(Document, frozen=True, kw_only=True):
    """`doubtful.json`: what was found in a snapshot; CSV and page lie next to it.

    Attributes:
        snapshot: Digest of the pictures.
        pictures: Number of pictures looked at.
        wrong_share: Estimated share of wrong labels.
        doubtful: The doubtful ones, worst first.
    """

    snapshot: str
    pictures: int
    wrong_share: float
    doubtful: tuple[DoubtfulPicture, ...]


class DoubtsFound(Document, frozen=True, kw_only=True):
    """`doubtful.json` of the board's labelling folder: the newest list of doubtful labels that is signed.

    Attributes:
        key: Key of the list in the store; empty: there is none.
        at: When it was written, seconds since 1970.
        dataset: Address of the dataset, as it may be shown.
        fault: Why no decision about the dataset can be carried out, with the way out; empty: it can.
        pictures: Number of pictures that were looked at.
        wrong_share: Estimated share of wrong labels.
        doubtful: The doubtful ones that still lie where they did, worst first.
        gone: Number of those that do not: they were moved or removed since.
    """

    key: str = ""
    at: float = 0.0
    dataset: str = ""
    fault: str = ""
    pictures: int = 0
    wrong_share: float = 0.0
    doubtful: tuple[DoubtfulPicture, ...] = ()
    gone: int = 0
