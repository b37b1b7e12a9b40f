"""A document on the disk with a checksum and a second copy: one flipped bit or one lost file costs nothing.

The first copy counts if it is whole, and is written first; so a power cut between the two writes leaves the
new state. The second one counts only where the first is damaged or missing. A document without a checksum,
as version 0.1 wrote it, is whole if it can be decoded.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, Generic

import msgspec

from edge_client.contract.documents import DocumentT, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

CHECKSUM_FIELD = "checksum"


class SealedFile(Generic[DocumentT]):
    """Two copies of one document."""

    def __init__(
        self,
        kind: type[DocumentT],
        paths: tuple[Path, Path],
        limit_bytes: int,
        check: Callable[[DocumentT], None],
    ) -> None:
        """Touch nothing yet.

        Args:
            kind: The document's type.
            paths: First and second copy.
            limit_bytes: Largest accepted size.
            check: Raises InputError for a document that cannot be used.
        """
        self._kind = kind
        self._first, self._second = paths
        self._limit_bytes = limit_bytes
        self._check = check
        self._told: dict[Path, str] = {}

    def read(self) -> DocumentT | None:
        """Return the document; None if both copies are missing or damaged.

        Raises: DeviceError if there is no whole copy, and one that the disk cannot read now.
        """
        unreadable: OSError | None = None
        for path in (self._first, self._second):
            try:
                return self._unseal(path.read_bytes(), str(path))
            except FileNotFoundError:
                continue
            except OSError as e:
                unreadable = e
                self._tell(path, f"{path}: {e.strerror or e}")
            except InputError as e:
                self._tell(path, str(e))
        if unreadable is None:
            return None
        msg = (
            f"{self._first}: {unreadable.strerror or unreadable}; "
            "check the disk and who owns [device] state_dir"
        )
        raise DeviceError(msg) from unreadable

    def _tell(self, path: Path, fault: str) -> None:
        """Log why a copy is not used, once."""
        if self._told.get(path) != fault:
            logger.warning("%s", fault)
        self._told[path] = fault

    def write(self, document: DocumentT) -> None:
        """Replace the first copy.

        Raises: DeviceError; it then is as before.
        """
        write_durably(self._first, _seal(document))

    def write_copy(self, document: DocumentT) -> None:
        """Bring the second copy up to date, and the first if it is not whole; does nothing if both are.

        Raises: DeviceError.
        """
        data = _seal(document)
        for path in (self._first, self._second):
            if _content(path) != data:
                write_durably(path, data)

    def _unseal(self, data: bytes, source: str) -> DocumentT:
        document = decode_document(self._kind, data, source=source, limit_bytes=self._limit_bytes)
        try:
            content: dict[str, Any] = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:  # in a field that the document does not have
            msg = f"{source}: not valid JSON: {e}"
            raise InputError(msg) from e
        checksum = content.pop(CHECKSUM_FIELD, None)
        if checksum is not None and checksum != _checksum(content):
            msg = f"{source}: its checksum is wrong: the file is damaged"
            raise InputError(msg)
        try:
            self._check(document)
        except InputError as e:
            msg = f"{source}: {e}"
            raise InputError(msg) from e
        return document


def _seal(document: DocumentT) -> bytes:
    content: dict[str, Any] = msgspec.json.decode(encode_document(document))
    sealed = {**content, CHECKSUM_FIELD: _checksum(content)}
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of all fields, those too that only another version knows; order does not matter."""
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
