"""Records of a labelling folder."""

from __future__ import annotations

from edge_client.contract.documents import Document


class SkippedObject(Document, frozen=True, kw_only=True):
    """An object of the inbox that is not used, with the reason."""

    key: str
    reason: str


class LabellingRecord(Document, frozen=True, kw_only=True):
    """`listing.json` of a labelling folder.

    Attributes:
        digest: Digest of everything that decides the folder, see `labelling.folder.folder_digest`.
        pictures: Number of frames listed.
        waiting: Number of further frames in the inbox, beyond the folder's limit.
        skipped: Objects that could not be listed.
    """

    digest: str
    pictures: int
    waiting: int
    skipped: tuple[SkippedObject, ...]
