"""Store in an S3 bucket: the only module that talks to boto3.

Works against any endpoint. boto3's own retries cover hiccups; what is left is raised as
`TransportError` (try again) or `SettingsError` (bucket or credentials are wrong).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.storage.limits import limit_of, too_large
from luigi_tasks.storage.store import (
    ListedObject,
    StoreConflictError,
    StoredObject,
    TooLargeError,
    read_existing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from luigi_tasks.settings.values import StoreSettings

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS = 4

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_REFUSED = {
    "403",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthorizationHeaderMalformed",
}


def open_client(settings: StoreSettings) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
    """Return a boto3 S3 client; credentials come from boto3's usual chain."""
    import boto3  # noqa: PLC0415 - 0.2 s that a listing of a local folder need not pay
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        request_checksum_calculation=settings.checksums,
        response_checksum_validation=settings.checksums,
        # An endpoint of one's own has no DNS name for each bucket.
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        signature_version="s3v4",
    )
    # A session of its own: the default one would keep the first credentials that it ever saw.
    return boto3.session.Session().client(
        "s3",
        endpoint_url=settings.endpoint_url or None,
        region_name=settings.region or None,
        config=config,
    )


def split_url(url: str) -> tuple[str, str]:
    """Split s3://bucket/some/prefix into bucket and prefix ("" or ending in /).

    Raises: SettingsError for anything else.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        msg = f"{url!r}: give s3://bucket or s3://bucket/prefix"
        raise SettingsError(msg)
    prefix = parts.path.strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


@contextlib.contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn boto3's exceptions inside the block into ours.

    Args:
        what: The object or prefix concerned, as an s3:// URL.
    """
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as e:
        msg = f"{what}: {e}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role"
        raise SettingsError(msg) from e
    except BotoCoreError as e:
        msg = f"{what}: {e}; check [store] endpoint_url and the network, then run again"
        raise TransportError(msg) from e
    except ClientError as e:
        code = str(e.response["Error"]["Code"])
        if code == "NoSuchBucket":
            msg = f"{what}: the bucket does not exist; create it or correct the s3:// url"
            raise SettingsError(msg) from e
        if code in _CONFLICT:
            msg = f"{what}: changed by another process meanwhile ({code})"
            raise StoreConflictError(msg) from e
        if code in _REFUSED:
            msg = (
                f"{what}: the store refused the credentials ({code}); check the access key and "
                "configs/iam-pipeline.json for the rights that are needed"
            )
            raise SettingsError(msg) from e
        msg = f"{what}: the store answered {code}: {e.response['Error'].get('Message', '')}; run again"
        raise TransportError(msg) from e


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
                if str(e.response["Error"]["Code"]) not in _ABSENT:
                    raise
                self._check_bucket()
                return False
        self._bucket_seen = True
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
                if str(e.response["Error"]["Code"]) not in _ABSENT:
                    raise
                self._check_bucket()
                return None
            limit = limit_of(key) if limit_bytes is None else limit_bytes
            data = read_body(answer, limit, self.url(key))
        self._bucket_seen = True
        return StoredObject(data, str(answer["ETag"]))

    def list_folder(self, folder: str) -> tuple[ListedObject, ...]:
        """Return all objects whose keys start with `folder` ("" or ending in /), by key.

        One request for each thousand. Keys that are folders of a file browser's making end in /.
        Raises: SettingsError if the bucket is missing or closed; TransportError.
        """
        start = self.prefix + folder
        with s3_errors(self.url(folder)):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            found = [one for page in pages for one in page.get("Contents", ())]
        listed = [
            ListedObject(one["Key"][len(self.prefix) :], int(one["Size"]), str(one["ETag"])) for one in found
        ]
        return tuple(sorted(listed, key=lambda one: one.key))

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

        Raises: StoreConflictError if it is not.
        """
        condition: dict[str, str] = {}
        if self._conditional:
            condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with s3_errors(self.url(key)):
            self.client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=data,
                ContentType="application/json",
                **condition,
            )

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
            if str(e.response["Error"]["Code"]) in _ABSENT:
                e.response["Error"]["Code"] = "NoSuchBucket"
            raise
        self._bucket_seen = True
