"""Records of steps: JSON documents at content-addressed keys, with the other files of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.documents import Document, decode_document, encode_compact, encode_document
from luigi_tasks.evidence.ledger import BINARY, JSON, File
from luigi_tasks.storage.documents import DOCUMENT_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from luigi_tasks.evidence.ledger import Entry, Ledger
    from luigi_tasks.storage.store import Store

DocumentT = TypeVar("DocumentT", bound=Document)


def no_inputs() -> tuple[str, ...]:
    """Return the inputs of a result that nothing else was made into."""
    return ()


class PendingDocument:
    """Document whose key depends on a result that does not exist yet."""

    def exists(self) -> bool:
        """Return False."""
        return False


class StoredDocument:
    """The record of a step at a content-addressed key; signed, it marks the step as done.

    Args:
        ledger: The store's signed results.
        key: Where it lies.
        inputs: Returns the keys of the records that the result is made of.
    """

    def __init__(self, ledger: Ledger, key: str, inputs: Callable[[], Iterable[str]] = no_inputs) -> None:
        self.ledger = ledger
        self.key = key
        self._inputs = inputs
        self._files: list[File] = []
        self._found: tuple[Entry, Document] | None = None

    @property
    def store(self) -> Store:
        """Where it lies."""
        return self.ledger.store

    @property
    def folder(self) -> str:
        """Key of the folder that the step's other results lie in, ending in /."""
        return self.key.rsplit("/", 1)[0] + "/"

    def exists(self) -> bool:
        """Whether the step is done; once seen, it stays done until the next step begins."""
        return self.ledger.find(self.key) is not None

    def find(self, kind: type[DocumentT]) -> DocumentT | None:
        """Return the document, kept while it is the signed one. None while it is missing.

        Raises: InputError if it is damaged.
        """
        entry = self.ledger.find(self.key)
        if entry is None:
            return None
        if self._found is None or self._found[0] is not entry or not isinstance(self._found[1], kind):
            self._found = (entry, self.load(kind))
        found = self._found[1]
        return found if isinstance(found, kind) else None

    def load(self, kind: type[DocumentT]) -> DocumentT:
        """Read the document.

        Raises: InputError if it is damaged, EvidenceError if it is gone.
        """
        return self._decode(kind, self.ledger.load(self.key), self.key)

    def load_part(self, name: str, kind: type[DocumentT]) -> DocumentT:
        """Read another document of the result.

        Raises: As `load`.
        """
        return self._decode(kind, self.read(name), self.folder + name)

    def read(self, name: str) -> bytes:
        """Return a file of the result.

        Raises: EvidenceError if it is not what was signed.
        """
        return self.ledger.read(self.key, name)

    def put(self, name: str, data: bytes, *, content_type: str = BINARY) -> None:
        """Add a file to the result; it is written with the record."""
        self._files.append(File(name, data, content_type))

    def save(self, document: Document, *, replace: bool = False) -> None:
        """Write the result; one that another machine finished meanwhile counts instead.

        Args:
            document: The record.
            replace: Whether it is one that changes.
        """
        self._save(encode_document(document), replace=replace)

    def save_list(self, document: Document, *, replace: bool = False) -> None:
        """Write a result whose record has very many parts, not for people to read; as `save`."""
        self._save(encode_compact(document), replace=replace)

    def _save(self, data: bytes, *, replace: bool) -> None:
        record, files = File(self.key.rpartition("/")[2], data, JSON), self._files
        self._files = []
        self.ledger.save(record, self.folder, files, self._inputs(), replace=replace)

    def _decode(self, kind: type[DocumentT], data: bytes, key: str) -> DocumentT:
        return decode_document(kind, data, source=self.store.url(key), limit_bytes=DOCUMENT_LIMIT_BYTES)
