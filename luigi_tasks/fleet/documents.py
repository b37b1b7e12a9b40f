"""Signed documents of the fleet in the bucket: a DSSE envelope around JSON, bound to its key.

The envelope's payload type names the key, so that a copy of a document proves nothing at another place. An
older copy that somebody put back is still signed: who must notice that keeps a number in the document.
Source: DSSE v1.0.2 (secure-systems-lab/dsse).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic

import msgspec

from edge_client.contract.documents import DocumentT, decode_document, encode_compact
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.signed_report import NO_ENVELOPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from securesystemslib.signer import Key, Signer

    from luigi_tasks.fleet.seen import SeenVersions
    from luigi_tasks.storage.store import Store

PAYLOAD_TYPE = "application/vnd.edge-fleet.document+json; key="


@dataclasses.dataclass(frozen=True)
class Signed(Generic[DocumentT]):
    """A document as it lies in the bucket.

    Attributes:
        document: The document.
        etag: Names this version of it, for a conditional write.
        keyid: Id of the key that signed it.
    """

    document: DocumentT
    etag: str
    keyid: str


@dataclasses.dataclass(frozen=True)
class FleetKeys:
    """The keys of the fleet's documents, opened at first use.

    Attributes:
        trusted: Returns the public keys that may sign, by id.
        signer: Returns this machine's signer; raises SettingsError on a machine that only reads.
    """

    trusted: Callable[[], Mapping[str, Key]]
    signer: Callable[[], Signer]


class SignedDocuments:
    """Documents of one store under one set of keys.

    Args:
        store: Where they lie.
        keys: Who may sign them.
        seen: This machine's memory of the newest versions; None: it has none.

    Attributes:
        store: Where they lie.
        seen: See above.
        keys: Who may sign them.
    """

    def __init__(self, store: Store, keys: FleetKeys, seen: SeenVersions | None = None) -> None:
        self.store = store
        self.seen = seen
        self.keys = keys

    def load(self, kind: type[DocumentT], key: str, *, limit_bytes: int) -> Signed[DocumentT] | None:
        """Return a document; None if there is none.

        Raises: TrustError if no trusted key signed it for this place; InputError, TransportError.
        """
        found = self.store.get(key, limit_bytes=limit_bytes)
        if found is None:
            return None
        source = self.store.url(key)
        payload, keyid = open_envelope(found.data, key, self.keys.trusted(), source)
        document = decode_document(kind, payload, source=source, limit_bytes=limit_bytes)
        return Signed(document, found.etag, keyid)

    def save(self, key: str, document: DocumentT, etag: str | None) -> None:
        """Sign a document and write it, if what lies there is still the version `etag` (None: nothing).

        Raises: StoreConflictError if somebody else wrote it meanwhile; SettingsError, TransportError.
        """
        sealed = seal_envelope(encode_compact(document), key, self.keys.signer())
        self.store.put_if_unchanged(key, sealed, etag)


def seal_envelope(payload: bytes, key: str, signer: Signer) -> bytes:
    """Return an envelope around content for the object `key`."""
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a run with nothing to do

    envelope = Envelope(payload, PAYLOAD_TYPE + key, {})
    envelope.sign(signer)
    return msgspec.json.encode(envelope.to_dict())


def peek_envelope(data: bytes, source: str) -> bytes:
    """Return the content of an envelope, whoever signed it: something else must prove it.

    Raises: InputError if it is none.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a run with nothing to do

    try:
        return bytes(Envelope.from_dict(msgspec.json.decode(data)).payload)
    except NO_ENVELOPE as e:
        msg = f"{source}: no envelope ({type(e).__name__}); restore the object from its versions"
        raise InputError(msg) from e


def open_envelope(data: bytes, key: str, trusted: Mapping[str, Key], source: str) -> tuple[bytes, str]:
    """Return the content of an envelope, and the id of the key that signed it for the object `key`.

    Raises: TrustError if no trusted key did.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - a run with nothing to do
    from securesystemslib.exceptions import VerificationError  # noqa: PLC0415

    try:
        envelope = Envelope.from_dict(msgspec.json.decode(data))
        if envelope.payload_type != PAYLOAD_TYPE + key:
            msg = f"{source}: signed for another place; a copy was put here. Find out who can write there"
            raise TrustError(msg)
        accepted = envelope.verify(list(trusted.values()), 1)
    except (VerificationError, *NO_ENVELOPE) as e:
        msg = (
            f"{source}: not signed by a trusted key of this fleet ({type(e).__name__}). Somebody else wrote "
            "there, or this machine lacks newer metadata; restore the object from its versions"
        )
        raise TrustError(msg) from e
    return envelope.payload, next(iter(accepted))
