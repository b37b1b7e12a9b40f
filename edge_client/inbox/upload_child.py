"""Child process that uploads kept frames.

    python -m edge_client.inbox.upload_child

reads the settings from standard input, uploads the kept frames, deletes those that were uploaded, and prints
a report. A picture is uploaded before its record: a frame with a record in the store is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING

import urllib3

from edge_client.children import (
    die_with_parent,
    exit_now,
    forbid_privileges,
    hide_from_others,
    prefer_as_oom_victim,
    read_order,
)
from edge_client.contract.addresses import shown_below
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError, EdgeError, SettingsError, TransportError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import INBOX_FOLDER, inbox_key
from edge_client.disk import disk_errors, write_durably
from edge_client.inbox.keeper import forget, kept_records
from edge_client.inbox.selection import INBOX_DIR
from edge_client.inbox.upload import UploadReport
from edge_client.repository.connections import PUT_RETRIES, describe_refusal, innermost_reason, open_pool
from edge_client.repository.keys import open_keys
from edge_client.repository.sigv4 import sign_put

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.repository.keys import Keys
    from edge_client.settings.file import Settings

_WRITTEN = {200, 201, 204}
# The object exists: as its name holds the digest, it has the same content.
_ALREADY_THERE = 412


class InboxWriter:
    """Writes objects below the inbox's address; never overwrites one."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; connect with the first object.

        Raises: SettingsError without keys of the store.
        """
        self._settings = settings
        self._base_url = (settings.inbox.base_url or settings.store.base_url).rstrip("/")
        keys = open_keys(settings.store)
        if keys is None:
            msg = "[inbox] upload: needs keys that may write there; name them in [store] access_key_file"
            raise SettingsError(msg)
        self._keys: Keys = keys
        self._pool = open_pool(dataclasses.replace(settings.store, base_url=self._base_url))

    def write(self, key: str, body: bytes, content_type: str) -> None:
        """Write one object, within [store] max_bytes_per_s.

        Raises: TransportError.
        """
        headers = {"Content-Type": content_type, "If-None-Match": "*"}
        response = self._put(key, body, headers)
        if response.status not in _WRITTEN | {_ALREADY_THERE}:
            refusal = describe_refusal(response)
            if self._keys.renew_if_outdated(refusal):
                response = self._put(key, body, headers)
                refusal = "" if response.status in _WRITTEN | {_ALREADY_THERE} else describe_refusal(response)
            if refusal:
                msg = (
                    f"{shown_below(self._base_url, key)}: {refusal}; check the device's right to write there "
                    "(configs/iam-device.json), its clock and [inbox] base_url"
                )
                raise TransportError(msg)
        response.drain_conn()
        if rate := self._settings.store.max_bytes_per_s:
            time.sleep(len(body) / rate)

    def _put(self, key: str, body: bytes, headers: dict[str, str]) -> urllib3.response.BaseHTTPResponse:
        store, url = self._settings.store, f"{self._base_url}/{key}"
        try:
            return self._pool.request(
                "PUT",
                url,
                body=body,
                headers=headers | sign_put(url, store.region, self._keys.current(), body),
                timeout=urllib3.Timeout(store.timeout_s),
                retries=PUT_RETRIES,
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as e:
            msg = f"{shown_below(self._base_url, key)}: {innermost_reason(e)}; it will be tried again"
            raise TransportError(msg) from e


class FolderWriter:
    """Writes objects into a folder store, readable by the pipeline's user; never over one that is there."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Remove what killed uploads left: no other process writes below this device's id."""
        self._folder = folder
        self._inbox = folder / INBOX_FOLDER
        with contextlib.suppress(OSError):
            for leftover in (self._inbox / settings.device.id).glob(".*"):
                leftover.unlink()

    def write(self, key: str, body: bytes, content_type: str) -> None:
        """Write one object durably; never create `inbox/`, which is missing below an empty mount point.

        Raises: TransportError.
        """
        del content_type
        path = self._folder / key
        check_inbox_folder(self._folder)
        try:
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                write_durably(path, body, mode=0o644)
        except (DeviceError, OSError) as e:
            msg = f"{path}: {e}; let this device's user write there. It will be tried again"
            raise TransportError(msg) from e


def check_inbox_folder(folder: Path) -> None:
    """Check that a folder store has its `inbox/`, which a person creates once.

    Raises: TransportError if not: the folder may be the mount point of a disk that is away, and frames
        written into it would fill the device's own card.
    """
    inbox = folder / INBOX_FOLDER
    if not inbox.is_dir():
        msg = (
            f"{inbox}: no such folder; is {folder} mounted? If it is, create {INBOX_FOLDER}/ in it once, "
            "or correct [inbox] base_url"
        )
        raise TransportError(msg)


def open_writer(settings: Settings) -> InboxWriter | FolderWriter:
    """Open what writes to the address of the inbox.

    Raises: SettingsError if that is a bucket and there are no keys.
    """
    url = settings.inbox.base_url or settings.store.base_url
    return FolderWriter(settings, folder_of_url(url)) if is_file_url(url) else InboxWriter(settings)


def upload(settings: Settings, writer: InboxWriter | FolderWriter) -> UploadReport:
    """Upload frame by frame; a frame that fails stays for the next upload.

    A frame that cannot be read is skipped; a failure of the store ends the upload, as all frames would fail.

    Returns: Number of uploaded frames, and the first error.
    """
    uploaded, error = 0, None
    for record in kept_records(settings.device.state_dir / INBOX_DIR):
        try:
            _upload_one(settings.device.id, record, writer)
        except EdgeError as e:
            error = error or str(e)
            if isinstance(e, (TransportError, SettingsError)):
                break
            continue
        forget(record)
        uploaded += 1
    return UploadReport(uploaded=uploaded, error=error)


def _upload_one(device_id: str, record: Path, writer: InboxWriter | FolderWriter) -> None:
    picture = record.with_suffix(".jpg")
    with disk_errors(record):
        try:
            contents = picture.read_bytes(), record.read_bytes()
        except FileNotFoundError:
            return  # deleted meanwhile
    writer.write(inbox_key(device_id, picture.name), contents[0], "image/jpeg")
    writer.write(inbox_key(device_id, record.name), contents[1], "application/json")


def main() -> int:
    """Run the child."""
    prefer_as_oom_victim()
    hide_from_others()
    forbid_privileges()
    die_with_parent()
    settings: Settings
    settings, secrets = read_order(sys.stdin.buffer)
    os.environ.update(secrets)
    try:
        report = upload(settings, open_writer(settings))
    except EdgeError as e:
        report = UploadReport(uploaded=0, error=str(e))
    sys.stdout.buffer.write(encode_document(report))
    return 0


if __name__ == "__main__":
    exit_now(main())
