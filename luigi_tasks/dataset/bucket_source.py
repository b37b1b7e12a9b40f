"""Pictures below an S3 prefix, and archives in S3.

They lie at the store's endpoint, with its credentials; or where `[dataset] profile` says, a profile of the
AWS configuration with an endpoint, a region and credentials of its own.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.dataset.file_names import is_hidden
from luigi_tasks.dataset.found import DamagedFileError, Found, not_listed
from luigi_tasks.dataset.left_out import ARCHIVED, UNREADABLE
from luigi_tasks.storage.s3_client import open_client, split_url
from luigi_tasks.storage.s3_errors import ABSENT, archived_words, error_code, s3_errors
from luigi_tasks.storage.s3_store import read_body
from luigi_tasks.storage.store import ArchivedError, ListedObject, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from luigi_tasks.dataset.listing import Listing
    from luigi_tasks.settings.values import DatasetSettings, StoreSettings

CONNECTIONS = 10  # the size of boto3's connection pool
CHUNK_BYTES = 1 << 20
# Storage classes whose objects are to be restored before they can be read: Amazon's, Alibaba's and Tencent's.
ARCHIVES = frozenset(
    {"GLACIER", "DEEP_ARCHIVE", "Archive", "ColdArchive", "DeepColdArchive", "ARCHIVE", "COLD_ARCHIVE"}
)
# It archives by itself what is seldom read; a listing does not say of which objects that is true.
_TIERED = "INTELLIGENT_TIERING"
# So many objects of archives are tried: some stores read all of them, or do not list what is restored.
PROBES = 50
# Marks of folders that Hadoop's tools write.
_HADOOP_FOLDER = "_$folder$"


def place_of_pictures(settings: DatasetSettings, store: StoreSettings) -> StoreSettings:
    """Return where s3:// addresses of pictures lead: to the store's endpoint, or that of a profile."""
    if not settings.profile:
        return store
    return dataclasses.replace(
        store,
        profile=settings.profile,
        endpoint_url="",
        region="",
        addressing_style="auto",
        ca_file="",
        checksums="",
    )


@dataclasses.dataclass(frozen=True)
class BucketArchive:
    """An archive in S3.

    Attributes:
        version: ETag, time and size.
        source: Reads it.
    """

    version: str
    source: BucketSource

    def chunks(self) -> Iterator[bytes]:
        """Yield the content.

        Raises: ArchivedError; SettingsError; TransportError.
        """
        source = self.source
        with s3_errors(source.url):
            answer = source.client.get_object(
                Bucket=source.bucket, Key=source.prefix.rstrip("/"), **source.paid_by
            )
            yield from answer["Body"].iter_chunks(CHUNK_BYTES)


class BucketSource:
    """An S3 prefix.

    Args:
        url: s3://bucket/prefix.
        place: Endpoint, region and credentials.
        requester_pays: Whether this account pays, where the bucket's owner does not.
    """

    def __init__(self, url: str, place: StoreSettings, *, requester_pays: bool = False) -> None:
        self.url = url
        self.threads = CONNECTIONS
        self.bucket, self.prefix = split_url(url)
        self.paid_by = {"RequestPayer": "requester"} if requester_pays else {}
        self._place = place
        self._clients: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._listing_lock = threading.Lock()
        self._listed: frozenset[str] | None = None
        self._tiered = 0

    def find_archive(self) -> BucketArchive | None:
        """Return the object of this very key, or None if there is none: then it is a prefix.

        By a listing, whose refusal has a reason, unlike that of a HEAD.
        """
        key = self.prefix.rstrip("/")
        with s3_errors(self.url):
            answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=key, MaxKeys=1, **self.paid_by)
        for one in answer.get("Contents", ()):  # the shortest key comes first
            if one["Key"] == key:
                return BucketArchive(str((one.get("ETag"), one.get("LastModified"), one["Size"])), self)
        return None

    def listing(self) -> Listing:
        """List with one request a thousand pictures."""
        with s3_errors(self.url):
            objects = [*self._list()]
            unreadable = self._find_archived(objects)
        self._tiered = sum(one.get("StorageClass") == _TIERED for one in objects)
        listing = list_objects(
            ListedObject(
                one["Key"][len(self.prefix) :],
                one["Size"],
                one.get("ETag", "").strip('"'),
                unreadable.get(one["Key"], ""),
            )
            for one in objects
        )
        self._listed = frozenset(one.path for one in listing.pictures)
        return listing

    def _list(self, **options: object) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.prefix, **options, **self.paid_by
        )
        for page in pages:
            yield from page.get("Contents", ())

    def _find_archived(self, objects: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """Return the storage class of each object that is to be restored first, by key.

        What is restored can be read as long as its copy is kept; only a second listing tells.
        """
        archived = {
            one["Key"]: str(one["StorageClass"]) for one in objects if one.get("StorageClass") in ARCHIVES
        }
        if not archived:
            return {}
        for one in self._list(OptionalObjectAttributes=["RestoreStatus"]):
            if one.get("RestoreStatus", {}).get("IsRestoreInProgress") is False:
                archived.pop(one["Key"], None)
        tried = [*archived][:PROBES]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            answers = dict(zip(tried, pool.map(self._probe, tried), strict=True))
        readable = [key for key, is_readable in answers.items() if is_readable]
        if readable == tried:
            return {}
        return {key: kind for key, kind in archived.items() if key not in {*readable}}

    def _probe(self, key: str) -> bool:
        from botocore.exceptions import ClientError  # noqa: PLC0415 - as above

        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0", **self.paid_by)
        except ClientError as e:
            return error_code(e) == "InvalidRange"  # an empty object
        answer["Body"].close()
        return True

    def read(self, path: str) -> bytes:
        """Read one picture that the listing has."""
        with self._listing_lock:
            if self._listed is None:
                self.listing()
        if path not in (self._listed or ()):
            raise not_listed(self.url, path)
        try:
            return self._read(path)
        except ArchivedError as e:
            msg = f"{e}. " + (
                f"{self._tiered} of the listed objects are in {_TIERED}, which archives what is seldom read; "
                "switch that off for this prefix, or restore them all"
                if self._tiered
                else "It was readable when the pictures were listed; run again, and it is left out by name"
            )
            raise InputError(msg) from e

    def _read(self, path: str) -> bytes:
        from botocore.exceptions import ClientError  # noqa: PLC0415 - as above

        with s3_errors(f"{self.url.rstrip('/')}/{path}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path, **self.paid_by)
                return read_body(answer, MAX_FILE_BYTES, path)
            except TooLargeError as e:
                raise DamagedFileError(str(e)) from e
            except ClientError as e:
                if error_code(e) not in ABSENT:
                    raise
                msg = f"{self.url.rstrip('/')}/{path}: gone since the pictures were listed. Run again"
                raise InputError(msg) from e

    @property
    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
        """This process's boto3 client: threads may share it, forked workers of Luigi may not."""
        with self._lock:
            if os.getpid() not in self._clients:
                self._clients[os.getpid()] = open_client(self._place)
            return self._clients[os.getpid()]


def list_objects(objects: Iterable[ListedObject]) -> Listing:
    """Return the listing of objects in a bucket, whose keys are those below the dataset's prefix."""
    found, folders = Found(), set()
    for one in objects:
        folder, slash, name = one.key.rpartition("/")
        parts = folder.split("/") if folder or slash else []
        if {"", ".."} & {*parts}:
            found.leave_out(one.key, UNREADABLE, "an empty name, or .., between its /; rename it")
            continue
        if any(map(is_hidden, parts)) or name.endswith(_HADOOP_FOLDER):
            continue
        folders.add(folder)
        if not name or is_hidden(name) or not found.wants(name, folder + slash):
            continue
        if one.archived:
            found.leave_out(one.key, ARCHIVED, archived_words(one.archived))
        else:
            found.add(one.key, one.size_bytes, one.etag)
    for folder in sorted(folders - {""}):
        found.add_folder(folder)
    return found.listing()
