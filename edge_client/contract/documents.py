"""Decode and encode the JSON documents that cross a boundary, each with a byte limit.

Every document is a frozen `msgspec.Struct` with a `schema` number. A newer schema is refused:
this code could misread it.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar, TypeVar

import msgspec

from edge_client.contract.errors import InputError


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all JSON documents.

    Attributes:
        schema: Major version; raised when an old reader would misread the document.
        newest_schema: The newest one that this version reads.
    """

    newest_schema: ClassVar[int] = 1

    schema: int = 1


T = TypeVar("T")
DocumentT = TypeVar("DocumentT", bound=Document)

_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {}
_MAKING = threading.Lock()


def decode_document(kind: type[DocumentT], data: bytes, *, source: str, limit_bytes: int) -> DocumentT:
    """Parse `data` into a `kind`.

    Args:
        kind: The document's type.
        data: JSON, UTF-8.
        source: Where it came from (key, topic or path), named in errors.
        limit_bytes: Largest accepted size.
    Raises: InputError if it is too large, not JSON, of a wrong shape or of a newer schema.
    """
    if len(data) > limit_bytes:
        msg = f"{source}: {len(data)} bytes, at most {limit_bytes} are accepted; ignored"
        raise InputError(msg)
    try:
        document = decoder_of(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        msg = f"{source}: not a valid {kind.__name__}: {e}"
        raise InputError(msg) from e
    if not 1 <= document.schema <= kind.newest_schema:
        msg = (
            f"{source}: {kind.__name__} schema {document.schema}, this version reads up to "
            f"{kind.newest_schema}; update the software that reads it"
        )
        raise InputError(msg)
    return document


def decoder_of(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder of a type, made once, by one thread at a time.

    msgspec 0.22 collects what it knows of a type at the first use. Two threads that use a type for the first
    time together end the process: one finds what the other has begun (a segmentation fault).
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        with _MAKING:
            decoder = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    return decoder


def encode_document(document: Document) -> bytes:
    """Return indented UTF-8 JSON with a stable key order and a final newline."""
    return msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2) + b"\n"


def encode_compact(document: Document) -> bytes:
    """Return JSON without indentation, for documents with very many entries."""
    return msgspec.json.encode(document, order="deterministic")
