"""Luigi targets: an object on S3, a signed channel, a retained announcement.

A target exists when the world already is as the task would make it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, TypeVar

import luigi

from edge_client.contract.documents import Document, decode_document, encode_compact, encode_document
from luigi_tasks.store import StoreConflictError

if TYPE_CHECKING:
    from luigi_tasks.announce import BrokerClient
    from luigi_tasks.repository import ReleaseRepository
    from luigi_tasks.store import Store

DOCUMENT_LIMIT_BYTES = 256 << 20  # a snapshot of a million pictures

DocumentT = TypeVar("DocumentT", bound=Document)


def content_key(*parts: object) -> str:
    """Return 20 hex digits that name a result by all that decides it.

    Args:
        parts: JSON values; equal parts give equal keys on every machine.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class PendingTarget(luigi.Target):
    """Stands for a target whose address depends on a result that is not there yet."""

    def exists(self) -> bool:
        """Never."""
        return False


class DocumentTarget(luigi.Target):
    """A JSON document at a content-addressed key; written last, it says that a step is done."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self._seen = False

    @property
    def folder(self) -> str:
        """Key of the folder that the step's other results lie in, ending in /."""
        return self.key.rsplit("/", 1)[0] + "/"

    def exists(self) -> bool:
        """Whether the step is done; once seen, it stays done."""
        self._seen = self._seen or self.store.exists(self.key)
        return self._seen

    def load(self, kind: type[DocumentT]) -> DocumentT:
        """Read the document.

        Raises: InputError if somebody broke it, TransportError if it is gone.
        """
        data = self.store.read(self.key)
        return decode_document(kind, data, source=self.store.url(self.key), limit_bytes=DOCUMENT_LIMIT_BYTES)

    def save(self, document: Document) -> None:
        """Write the document in one step."""
        self.store.put(self.key, encode_document(document), content_type="application/json")

    def save_list(self, document: Document) -> None:
        """Write a document of very many parts, not for people to read."""
        self.store.put(self.key, encode_compact(document), content_type="application/json")

    def save_first(self, document: DocumentT) -> DocumentT:
        """Write the document unless there is one; return the one that is there then."""
        try:
            self.store.put_if_unchanged(self.key, encode_compact(document), None)
        except StoreConflictError:
            return self.load(type(document))
        return document


class ChannelTarget(luigi.Target):
    """Exists when the signed channel points to the release for the right share of devices.

    Also where a person withdrew the release: then there is nothing to do.
    """

    def __init__(
        self, repository: ReleaseRepository, channel: str, release: str, share_percent: float
    ) -> None:
        self.repository = repository
        self.channel = channel
        self.release = release
        self.share_percent = share_percent

    def exists(self) -> bool:
        """Whether there is nothing to publish."""
        pointer = self.repository.load().channel(self.channel)
        if pointer is None:
            return False
        points_here = (pointer.release, pointer.share_percent) == (self.release, self.share_percent)
        return points_here or self.release in pointer.withdrawn


class FreshSignaturesTarget(luigi.Target):
    """Exists while the published signatures are far enough from their expiry."""

    def __init__(self, repository: ReleaseRepository) -> None:
        self.repository = repository

    def exists(self) -> bool:
        """Whether there is nothing to renew (also where nothing is published yet)."""
        return not self.repository.load().needs_renewal()


class AnnouncementTarget(luigi.Target):
    """Exists when the broker retains the announcement of what the channel points to."""

    def __init__(self, repository: ReleaseRepository, client: BrokerClient, channel: str) -> None:
        self.repository = repository
        self.client = client
        self.channel = channel

    def exists(self) -> bool:
        """Whether a device that connects now hears of the right release."""
        pointer = self.repository.load().channel(self.channel)
        return pointer is not None and self.client.announced_release(self.channel) == pointer.release
