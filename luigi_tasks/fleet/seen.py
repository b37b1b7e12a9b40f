"""Memory of this machine: the newest version of a signed document that it has seen.

A document that somebody put back is signed as well as the newest one. A machine without a memory, or with a
new one, takes what the bucket shows; from then on nothing older.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError, TrustError
from edge_client.disk import disk_errors, locked_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_LIMIT_BYTES = 16 << 20


class SeenVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The newest version of a document.

    Attributes:
        version: Its number.
        digest: SHA-256 of its content, hex.
    """

    version: int
    digest: str


class _Seen(Document, frozen=True, kw_only=True):
    store: str = ""
    documents: dict[str, SeenVersion] = {}


class SeenVersions:
    """The memory of one store.

    Args:
        folder: `[trust] memory_dir`.
        store: Address of the store.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self._folder = folder
        self._store = store
        self.path = folder / f"fleet-{hashlib.sha256(store.encode()).hexdigest()[:16]}.json"

    def newest(self, key: str) -> SeenVersion | None:
        """Return the newest version of a document that was seen; None if none was."""
        return self._load().documents.get(key)

    def check(self, key: str, version: int, digest: str, way_out: str) -> None:
        """Refuse a version that is older than one seen before, or another one of the same number.

        Args:
            key: Key of the document.
            version: Its number.
            digest: SHA-256 of its content, hex.
            way_out: What to do, for the message.
        Raises: TrustError.
        """
        seen = self.newest(key)
        if seen is None or (version, digest) == (seen.version, seen.digest) or version > seen.version:
            return
        what = "another one of the same number" if version == seen.version else "an older one"
        msg = (
            f"{self._store}: {key} has version {version}, and this machine has seen version {seen.version}: "
            f"somebody put {what} in its place, or a backup did. {way_out}"
        )
        raise TrustError(msg)

    def note(self, key: str, version: int, digest: str) -> None:
        """Remember a version durably, unless a newer one is known. A disk that takes none is warned of."""
        seen = self.newest(key)
        if seen is not None and seen.version >= version:
            return
        try:
            with self._lock():
                known = self._load()
                seen = known.documents.get(key)
                if seen is None or seen.version < version:
                    documents = {**known.documents, key: SeenVersion(version=version, digest=digest)}
                    content = encode_document(_Seen(store=self._store, documents=documents))
                    write_durably(self.path, content, mode=0o644)  # nothing in it is secret
        except DeviceError as e:
            logger.warning(
                "This machine cannot remember which version of %s it saw (%s): it will not notice when the "
                "bucket is older. Set [trust] memory_dir to a folder that stays",
                key,
                e,
            )

    def _load(self) -> _Seen:
        try:
            data = self.path.read_bytes()
            return decode_document(_Seen, data, source=str(self.path), limit_bytes=_LIMIT_BYTES)
        except FileNotFoundError:
            pass
        except (OSError, InputError) as e:
            logger.error("%s: %s. It counts as lost: what the bucket shows counts", self.path, e)  # noqa: TRY400
        return _Seen(store=self._store)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with disk_errors(self._folder):
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        with locked_folder(self._folder):
            yield
