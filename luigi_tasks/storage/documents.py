"""JSON documents in the store, at content-addressed keys."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.documents import Document, decode_document, encode_compact, encode_document
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store

DOCUMENT_LIMIT_BYTES = 1 << 30  # an inventory of a million pictures takes 300 MB, more with groups

DocumentT = TypeVar("DocumentT", bound=Document)


def content_key(*parts: object) -> str:
    """Return 20 hex digits: the digest of all inputs of a result.

    Args:
        parts: JSON values; equal parts give equal keys on every machine.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class PendingDocument:
    """Document whose key depends on a result that does not exist yet."""

    def exists(self) -> bool:
        """Return False."""
        return False


class StoredDocument:
    """A JSON document at a content-addressed key; written last, it marks a step as done."""

    def __init__(self, store: Store, key: str) -> None:
        self.store = store
        self.key = key
        self._seen = False
        self._found: Document | None = None

    @property
    def folder(self) -> str:
        """Key of the folder that the step's other results lie in, ending in /."""
        return self.key.rsplit("/", 1)[0] + "/"

    def exists(self) -> bool:
        """Whether the step is done; once seen, it stays done."""
        self._seen = self._seen or self.store.exists(self.key)
        return self._seen

    def find(self, kind: type[DocumentT]) -> DocumentT | None:
        """Return the document, kept once it was read: its key names its content. None while it is missing.

        Raises: InputError if it is damaged.
        """
        if not isinstance(self._found, kind):
            stored = self.store.get(self.key)
            if stored is None:
                return None
            self._seen = True
            self._found = self._decode(kind, stored.data)
        return self._found

    def load(self, kind: type[DocumentT]) -> DocumentT:
        """Read the document.

        Raises: InputError if it is damaged, TransportError if it is gone.
        """
        return self._decode(kind, self.store.read(self.key))

    def _decode(self, kind: type[DocumentT], data: bytes) -> DocumentT:
        return decode_document(kind, data, source=self.store.url(self.key), limit_bytes=DOCUMENT_LIMIT_BYTES)

    def save(self, document: Document) -> None:
        """Write the document in one step."""
        self.store.put(self.key, encode_document(document), content_type="application/json")

    def save_list(self, document: Document) -> None:
        """Write a document of very many parts, not for people to read."""
        self.store.put(self.key, encode_compact(document), content_type="application/json")

    def save_first(self, document: DocumentT) -> DocumentT:
        """Write the document unless one exists; return the one that exists then."""
        try:
            self.store.put_if_unchanged(self.key, encode_compact(document), None)
        except StoreConflictError:
            return self.load(type(document))
        return document
