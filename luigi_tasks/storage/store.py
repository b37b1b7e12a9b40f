"""Interface of the store: objects below one prefix, each written atomically.

`s3_store` keeps them in an S3 bucket, `folder_store` in a local folder; `opening` chooses by the url.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from edge_client.contract.errors import SettingsError, TransportError


class StoreConflictError(TransportError):
    """The object was written by another process since it was read; read it again and retry."""


class TooLargeError(TransportError):
    """An object is larger than its reader accepts; it was not read."""


class ArchivedError(SettingsError):
    """An object is archived and cannot be read until somebody restores it."""


@dataclasses.dataclass(frozen=True)
class ListedObject:
    """An object as a listing shows it, without its content.

    Attributes:
        key: Its key.
        size_bytes: Its size.
        etag: Names this version of it.
        archived: Storage class of one that is to be restored before it can be read, where that was asked for.
        written_at: When it was written, by the store's clock, seconds since 1970; None: unknown.
    """

    key: str
    size_bytes: int
    etag: str
    archived: str = ""
    written_at: float | None = None


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """Content of an object and the ETag that names this version of it."""

    data: bytes
    etag: str


class Store(Protocol):
    """Objects by key, such as `work/plans/1f.json`.

    Every method raises SettingsError if the bucket or folder is missing or access is denied, and
    TransportError for a fault that may pass. What a write returned from is durable.
    """

    @property
    def is_conditional(self) -> bool:
        """Whether `put_if_unchanged` has its condition checked; settings may switch that off."""

    @property
    def endpoint(self) -> str:
        """What keeps the objects and checks conditions; another one may hold the same addresses later."""

    def url(self, key: str) -> str:
        """Address of a key, for messages."""

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def get(self, key: str, *, limit_bytes: int | None = None) -> StoredObject | None:
        """Return the object, or None if there is none.

        Raises: TooLargeError if it is larger than `limit_bytes`, or where none is given than `limit_of` its
            key; it is not read then.
        """

    def list_folder(self, folder: str) -> tuple[ListedObject, ...]:
        """Return all objects whose keys start with `folder` ("" or ending in /), by key."""

    def list_unread(self, folder: str, after: str = "") -> tuple[ListedObject, ...]:
        """Return the objects of `list_folder` whose keys come after `after`, cheaply: to be asked often.

        An ETag here only tells whether the object may have changed since such a listing before.
        """

    def read(self, key: str) -> bytes:
        """Return the object's content.

        Raises: TransportError if it does not exist, or is larger than `limit_of` its key.
        """

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the object; it appears atomically."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is not an error."""

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> None:
        """Write the object only if it still is the version `etag` (None: only if there is none).

        Raises: StoreConflictError if it is not.
        """

    def presign_url(self, key: str, valid_s: int) -> str:
        """Return an address at which a browser finds the object without credentials, for a while."""


def read_existing(store: Store, key: str) -> bytes:
    """Return the content of an object that must exist: `Store.read` for every kind of store.

    Raises: TransportError if it does not exist.
    """
    found = store.get(key)
    if found is None:
        msg = f"{store.url(key)}: missing; was it deleted from the store? Run again to compute it"
        raise TransportError(msg)
    return found.data
