"""Records of a folder of frames to label."""

from __future__ import annotations

from edge_client.contract.documents import Document


class SkippedObject(Document, frozen=True, kw_only=True):
    """An object of the inbox that is not used, and why."""

    key: str
    reason: str


class LabellingRecord(Document, frozen=True, kw_only=True):
    """`listing.json` in a folder that a person labels: what was listed.

    Attributes:
        digest: Of the inbox and of what else decides the folder, see `labelling.folder_digest`.
        pictures: Frames listed.
        waiting: Frames in the inbox that were too many for this folder.
        skipped: Objects that could not be listed.
    """

    digest: str
    pictures: int
    waiting: int
    skipped: tuple[SkippedObject, ...]
