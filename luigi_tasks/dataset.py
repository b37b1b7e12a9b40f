"""Where pictures come from: a folder, an S3 prefix, an archive, or a ready preset. One folder a class.

A listing is cheap (names, sizes and versions, no picture is read); it is what tells a run with
nothing new from one with work to do.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.store import open_client, s3_errors, split_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.settings import DatasetSettings, StoreSettings

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

DIGITS_FOLDER = "digits-1"  # raised when the written pictures would change
DIGIT_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Archive:
    """An http(s) archive with the digest that it must have."""

    url: str
    sha256: str


# TensorFlow's flower photographs: 3,670 pictures of 5 classes, 229 MB, CC BY.
FLOWERS = Archive(
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One picture of a listing.

    Attributes:
        path: Relative, with /; the first part is the class.
        size: Bytes.
        version: Changes when the content may have changed: mtime in ns, or the ETag.
    """

    path: str
    size: int
    version: str


class PictureSource(Protocol):
    """A dataset that can be listed and read."""

    url: str

    def listing(self) -> tuple[Entry, ...]:
        """Return all pictures, sorted by path, without reading one.

        Raises: InputError if there is no picture, TransportError, SettingsError.
        """

    def read(self, path: str) -> bytes:
        """Return the content of one picture.

        Raises: InputError if it is gone, TransportError.
        """


def open_source(settings: DatasetSettings, store: StoreSettings) -> PictureSource:
    """Return the dataset that `settings.url` names; an archive or preset is unpacked at first use.

    Raises: SettingsError for an address that cannot be one; InputError; TransportError.
    """
    if settings.url == "digits":
        return FolderSource(write_digits(settings.cache_dir))
    if settings.url == "flowers":
        return _open_archive(FLOWERS, settings)
    scheme = urlsplit(settings.url).scheme
    if scheme == "s3":
        return BucketSource(settings.url, store)
    if scheme in {"http", "https"}:
        if not settings.sha256:
            msg = (
                f"[dataset] url {settings.url}: give [dataset] sha256, the archive's digest (sha256sum FILE)"
            )
            raise SettingsError(msg)
        return _open_archive(Archive(settings.url, settings.sha256.lower()), settings)
    if scheme not in {"", "file"}:
        msg = (
            f"[dataset] url {settings.url}: give a folder, s3://bucket/prefix, an http(s) archive or a preset"
        )
        raise SettingsError(msg)
    return FolderSource(Path(settings.url.removeprefix("file://")).expanduser())


def listing_digest(entries: tuple[Entry, ...]) -> str:
    """Return 20 hex digits that change when any picture may have changed."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.path}\0{entry.size}\0{entry.version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


class FolderSource:
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def listing(self) -> tuple[Entry, ...]:
        """List with one scandir a folder: 100,000 pictures take well under a second."""
        if not self.folder.is_dir():
            msg = f"{self.folder}: no such folder; give one that holds one folder of pictures a class"
            raise InputError(msg)
        entries: list[Entry] = []
        for label in _subfolders(self.folder):
            entries.extend(_scan(Path(label.path), label.name))
        return _not_empty(entries, self.url)

    def read(self, path: str) -> bytes:
        """Read one picture."""
        try:
            return (self.folder / path).read_bytes()
        except OSError as e:
            msg = f"{self.folder / path}: {e.strerror}; it was there when the pictures were listed. Run again"
            raise InputError(msg) from e


class BucketSource:
    """An S3 prefix, with the credentials and endpoint of the store."""

    def __init__(self, url: str, store: StoreSettings) -> None:
        self.url = url
        self.bucket, self.prefix = split_url(url)
        self._settings = store
        self._client: Any = None

    def listing(self) -> tuple[Entry, ...]:
        """List with one request a thousand pictures."""
        entries = []
        with s3_errors(self.url):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    path = found["Key"][len(self.prefix) :]
                    if _is_picture(path):
                        entries.append(Entry(path, found["Size"], found["ETag"].strip('"')))
        return _not_empty(entries, self.url)

    def read(self, path: str) -> bytes:
        """Read one picture."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - 0.1 s that a folder need not pay

        with s3_errors(f"{self.url.rstrip('/')}/{path}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
                return bytes(answer["Body"].read())
            except ClientError as e:
                if e.response["Error"]["Code"] not in {"NoSuchKey", "404"}:
                    raise
                msg = f"{self.url.rstrip('/')}/{path}: gone since the pictures were listed. Run again"
                raise InputError(msg) from e

    @property
    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
        """The boto3 client; threads may share it."""
        if self._client is None:
            self._client = open_client(self._settings)
        return self._client


def write_digits(cache_dir: Path) -> Path:
    """Write the 1,797 digits that scikit-learn ships as PNG folders; return the folder."""
    folder = cache_dir.expanduser() / DIGITS_FOLDER
    if folder.is_dir():
        return folder
    import numpy as np  # noqa: PLC0415 - heavy, and only here
    from PIL import Image  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{DIGITS_FOLDER}."))
    try:
        digits = load_digits()
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = temporary / str(label) / f"{number:04}.png"
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).save(path)
        move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def move_into_place(temporary: Path, folder: Path) -> None:
    """Rename a finished folder; another process that was faster wins, its content is the same."""
    temporary.chmod(0o755)
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _open_archive(archive: Archive, settings: DatasetSettings) -> FolderSource:
    from luigi_tasks.archive import unpack_archive  # noqa: PLC0415 - only archives need it

    folder = unpack_archive(archive, settings.cache_dir.expanduser(), settings.max_unpacked_bytes)
    return FolderSource(folder)


def _subfolders(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        yield from sorted(
            (one for one in found if one.is_dir() and not one.name.startswith(".")), key=lambda one: one.name
        )


def _scan(folder: Path, prefix: str) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for one in found:
            path = f"{prefix}/{one.name}"
            if one.name.startswith("."):
                continue
            if one.is_dir():
                yield from _scan(Path(one.path), path)
            elif _is_picture(path):
                status = one.stat()
                yield Entry(path, status.st_size, str(status.st_mtime_ns))


def _is_picture(path: str) -> bool:
    parts = path.split("/")
    return (
        len(parts) >= 2
        and not any(part.startswith(".") or not part for part in parts)
        and os.path.splitext(parts[-1])[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122 - fast for 100,000
    )


def _not_empty(entries: list[Entry], url: str) -> tuple[Entry, ...]:
    if not entries:
        msg = (
            f"{url}: no pictures found; put them into one folder a class, as "
            f"{', '.join(sorted(PICTURE_SUFFIXES))}"
        )
        raise InputError(msg)
    return tuple(sorted(entries))
