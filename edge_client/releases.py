"""Release documents: reading one, checking it, and listing the files that a device needs."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, RELEASE_FILE, check_name
from edge_client.contract.release import PREPROCESSING_ID, RELEASE_LIMIT_BYTES, ReleaseDocument
from edge_client.disk import disk_errors

if TYPE_CHECKING:
    from pathlib import Path


def needed_files(document: ReleaseDocument) -> tuple[str, ...]:
    """Return the files of a release besides `release.json`, in the order of their download.

    Raises: InputError if a name is not safe.
    """
    pictures = (check_name(case.file, "self-test file") for case in document.self_test)
    return tuple(dict.fromkeys((LABELS_FILE, *pictures, MODEL_FILE)))


def check_document(document: ReleaseDocument, release: str, device_class: str = "") -> None:
    """Refuse a release document that does not fit this release or this device.

    Raises: InputError.
    """
    if document.release != release:
        msg = f"{RELEASE_FILE} is of release {document.release!r}, not {release!r}; publish it again"
        raise InputError(msg)
    if document.device_class not in {"", device_class}:
        msg = (
            f"it is for devices of class {document.device_class!r}, this one is of class {device_class!r} "
            "([device] device_class); publish to another channel, or correct the class"
        )
        raise InputError(msg)
    if document.preprocessing.id != PREPROCESSING_ID:
        msg = (
            f"it needs preprocessing {document.preprocessing.id!r}, this version has {PREPROCESSING_ID!r}; "
            "update edge-client"
        )
        raise InputError(msg)


def read_release(folder: Path) -> ReleaseDocument:
    """Read `release.json` of a release on disk.

    Raises: DeviceError if it cannot be read; InputError if it is malformed.
    """
    return read_release_and_digest(folder)[0]


def read_release_and_digest(folder: Path) -> tuple[ReleaseDocument, str]:
    """Read `release.json` of a release on disk; return it and the hex SHA-256 of its bytes.

    Raises: As `read_release`.
    """
    path = folder / RELEASE_FILE
    with disk_errors(path):
        data = path.read_bytes()
    document = decode_document(ReleaseDocument, data, source=str(path), limit_bytes=RELEASE_LIMIT_BYTES)
    return document, hashlib.sha256(data).hexdigest()
