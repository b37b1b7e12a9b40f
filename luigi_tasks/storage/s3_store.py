"""Store in an S3 bucket of any endpoint.

boto3's own retries cover hiccups; what is left is raised as `TransportError` (try again) or `SettingsError`
(bucket, rights or credentials are wrong), see `s3_errors`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import TransportError
from luigi_tasks.storage.limits import limit_of, too_large
from luigi_tasks.storage.s3_client import open_client, split_url
from luigi_tasks.storage.s3_errors import ABSENT, error_code, refuse_condition, s3_errors, status_of
from luigi_tasks.storage.store import (
    ListedObject,
    StoreConflictError,
    StoredObject,
    TooLargeError,
    read_existing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.settings.values import StoreSettings

# What a store without conditional writes answers to one: 501, or 400 with a code of its own.
_UNKNOWN = frozenset({400, 405, 422, 501})
_UNKNOWN_CODES = frozenset({"NotImplemented", "NotSupported", "UnsupportedOperation"})
# What stores answer to a condition that does not hold; Alibaba's FileAlreadyExists is a 409.
_NOT_HELD = frozenset({304, 409, 412})
# Codes with status 400 that have nothing to do with conditions.
_OTHER_FAULTS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "BadDigest",
        "EntityTooLarge",
        "ExpiredToken",
        "IllegalLocationConstraintException",
        "IncompleteBody",
        "InvalidBucketName",
        "InvalidDigest",
        "InvalidToken",
        "KeyTooLongError",
        "MissingContentMD5",
        "RequestTimeout",
        "TokenRefreshRequired",
        "XAmzContentSHA256Mismatch",
    }
)


def read_body(answer: Mapping[str, Any], limit_bytes: int, url: str) -> bytes:
    """Return the content of an answer to `get_object`; one that says it is too large is not read at all.

    Raises: TooLargeError; TransportError if it breaks off.
    """
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    size_bytes = int(answer.get("ContentLength", 0))
    if size_bytes <= limit_bytes:
        try:
            data: bytes = answer["Body"].read(limit_bytes + 1)  # an answer without a length may have no end
        except (BotoCoreError, OSError) as e:
            msg = f"{url}: broke off while reading: {e}; run again"
            raise TransportError(msg) from e
        if len(data) < size_bytes:
            msg = f"{url}: broke off after {len(data)} of {size_bytes} bytes; run again"
            raise TransportError(msg)
        if len(data) <= limit_bytes:
            return data
        size_bytes = len(data)
    answer["Body"].close()
    raise TooLargeError(too_large(url, size_bytes, limit_bytes))


class S3Store:
    """Objects below one prefix of one bucket; see `Store`."""

    def __init__(self, settings: StoreSettings) -> None:
        self.bucket, self.prefix = split_url(settings.url)
        self._conditional = settings.conditional_writes
        self._settings = settings
        self._bucket_seen = False
        self._clients: dict[int, Any] = {}

    @property
    def client(self) -> Any:  # noqa: ANN401
        """This process's boto3 client, made at first use.

        `luigi --workers 2` forks: two processes on one connection would read each other's answers.
        """
        own = self._clients.get(os.getpid())
        if own is None:
            own = self._clients[os.getpid()] = open_client(self._settings)
        return own

    @property
    def is_conditional(self) -> bool:
        """Whether conditions are sent with conditional writes."""
        return self._conditional

    @property
    def endpoint(self) -> str:
        """Endpoint, whoever names it."""
        with s3_errors(self.url("")):
            return str(self.client.meta.endpoint_url)

    def url(self, key: str) -> str:
        """s3:// address of a key, for messages."""
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def exists(self, key: str) -> bool:
        """Whether the object exists.

        Raises: SettingsError if the bucket is missing or closed; TransportError.
        """
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with s3_errors(self.url(key)):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as e:
                if error_code(e) not in ABSENT:
                    return self._is_readable(key)
                self._check_bucket()
                return False
        self._bucket_seen = True
        return True

    def _is_readable(self, key: str) -> bool:
        """Ask again with a GET, whose refusal says why: an answer to HEAD has no body."""
        self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)["Body"].close()
        return True

    def get(self, key: str, *, limit_bytes: int | None = None) -> StoredObject | None:
        """Return the object, or None if there is none.

        Raises: SettingsError, TransportError; TooLargeError if it is larger than `limit_bytes`.
        """
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with s3_errors(self.url(key)):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as e:
                if error_code(e) not in ABSENT:
                    raise
                self._check_bucket()
                return None
            limit = limit_of(key) if limit_bytes is None else limit_bytes
            data = read_body(answer, limit, self.url(key))
        self._bucket_seen = True
        return StoredObject(data, _quoted(answer.get("ETag", "")))

    def list_folder(self, folder: str) -> tuple[ListedObject, ...]:
        """Return all objects whose keys start with `folder` ("" or ending in /), by key.

        One request for each thousand. Keys that are folders of a file browser's making end in /.
        Raises: SettingsError if the bucket is missing or closed; TransportError.
        """
        return self.list_unread(folder)

    def list_unread(self, folder: str, after: str = "") -> tuple[ListedObject, ...]:
        """Return the objects of `list_folder` whose keys come after `after`; raises as that."""
        where = {"Bucket": self.bucket, "Prefix": self.prefix + folder}
        if after:
            where["StartAfter"] = self.prefix + after
        with s3_errors(self.url(folder)):
            pages = self.client.get_paginator("list_objects_v2").paginate(**where)
            found = [one for page in pages for one in page.get("Contents", ())]
        listed = [
            ListedObject(
                one["Key"][len(self.prefix) :],
                int(one["Size"]),
                _quoted(one.get("ETag", "")),
                written_at=one["LastModified"].timestamp() if "LastModified" in one else None,
            )
            for one in found
        ]
        # Servers with folders below order them otherwise, and begin with some that come before.
        return tuple(sorted((one for one in listed if one.key > after), key=lambda one: one.key))

    def read(self, key: str) -> bytes:
        """Return the object's content.

        Raises: TransportError if it does not exist.
        """
        return read_existing(self, key)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the object; it appears atomically."""
        with s3_errors(self.url(key)):
            self.client.put_object(
                Bucket=self.bucket, Key=self.prefix + key, Body=data, ContentType=content_type
            )

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is not an error."""
        with s3_errors(self.url(key)):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> None:
        """Write the object only if it still is the version `etag` (None: only if there is none).

        Raises: StoreConflictError if it is not; SettingsError if the store refuses conditions as such.
        """
        try:
            self._put_if(key, data, etag)
        except StoreConflictError:
            if not self._is_still(key, etag):
                raise
            try:
                self._put_if(key, data, etag)  # whoever was faster may have undone it
            except StoreConflictError as e:
                if self._conditional and self._is_still(key, etag):
                    refuse_condition(self.url(key), _header(etag), e.__cause__)
                raise

    def _put_if(self, key: str, data: bytes, etag: str | None) -> None:
        from botocore.exceptions import ClientError  # noqa: PLC0415

        condition: dict[str, str] = {}
        if self._conditional:
            condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with s3_errors(self.url(key)):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.prefix + key,
                    Body=data,
                    ContentType="application/json",
                    **condition,
                )
            except ClientError as e:
                if condition:
                    self._tell_of_condition(key, etag, e)
                raise

    def _tell_of_condition(self, key: str, etag: str | None, error: Any) -> None:  # noqa: ANN401 - botocore's
        """Raise our error where the refusal of a write is about its condition."""
        code, status = error_code(error), status_of(error)
        if code in ABSENT or status in _NOT_HELD:  # Amazon answers 404 to If-Match where there is none
            msg = f"{self.url(key)}: changed by another process meanwhile ({code})"
            raise StoreConflictError(msg) from error
        if code in _UNKNOWN_CODES or (status in _UNKNOWN and code not in _OTHER_FAULTS):
            refuse_condition(self.url(key), _header(etag), error)

    def _is_still(self, key: str, etag: str | None) -> bool:
        """Whether the object still is the version that a refused write was to replace."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with s3_errors(self.url(key)):
            try:
                answer = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
                found = _quoted(answer.get("ETag", ""))
            except ClientError as e:
                if error_code(e) not in ABSENT:
                    raise
                found = None
        return bool(found == etag)

    def presign_url(self, key: str, valid_s: int) -> str:
        """Return an http(s) address that shows the object without credentials for a while."""
        with s3_errors(self.url(key)):
            return str(
                self.client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self.bucket, "Key": self.prefix + key},
                    ExpiresIn=valid_s,
                )
            )

    def _check_bucket(self) -> None:
        """Tell a missing bucket from a missing object: a HEAD of either answers a bare 404."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        if self._bucket_seen:
            return
        try:
            self.client.head_bucket(Bucket=self.bucket)
        except ClientError as e:
            if error_code(e) in ABSENT:
                e.response["Error"]["Code"] = "NoSuchBucket"
                raise
            if status_of(e) != 403:
                raise
            # Without the right to list it, but it told that the object is missing: the bucket is there.
        self._bucket_seen = True


def _quoted(etag: object) -> str:
    """Return an ETag with its quotes, which some stores leave out in listings (rclone)."""
    text = str(etag)
    return text if text.endswith('"') else f'"{text}"'


def _header(etag: str | None) -> str:
    return "If-None-Match" if etag is None else "If-Match"
