"""Inbox: frames that devices uploaded for labelling, `inbox/<device>/<name>.jpg` with `<name>.json`.

Devices write there, and devices are not trusted: names, records and pictures are all checked here. A bad
frame is skipped with its reason, and never stops the others.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError
from edge_client.contract.messages import INBOX_RECORD_LIMIT_BYTES, InboxRecord
from edge_client.contract.names import INBOX_FOLDER, check_name, inbox_key
from edge_client.contract.text import excerpt
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.storage.store import ListedObject, Store

# A device scales frames down to `[inbox] longest_side`, by default 640 pixels: about 100 kB. With 4000 pixels
# they are some MB. The limits bound what a thousand frames of a device that lies can cost.
PICTURE_LIMIT_BYTES = 8 << 20
FRAME_LIMIT_PIXELS = 16_000_000
FRAME_SCANS_AT_MOST = 20  # devices write one, other programs up to 12
SCANNED_PIXELS_AT_MOST = 64_000_000  # each scan passes over the whole picture: together 0.1 s
CHECKED_SIDE = 32  # the whole picture is decoded, and then only looked at
PICTURE_SUFFIX, RECORD_SUFFIX = ".jpg", ".json"
# Frames are JPEG only: no other decoder has to process a device's bytes, and every browser shows it.
JPEG_START = b"\xff\xd8\xff"


@dataclasses.dataclass(frozen=True)
class FrameName:
    """Name of a frame in the inbox; both parts are checked.

    Attributes:
        device: Device id.
        picture: File name of the picture.
    """

    device: str
    picture: str

    @classmethod
    def of(cls, device: str, picture: str) -> FrameName:
        """Check both names, and that of the record.

        Raises: InputError.
        """
        name = cls(check_name(device, "device id"), check_name(picture, "inbox file"))
        if not picture.endswith(PICTURE_SUFFIX):
            msg = f"inbox file {picture!r}: a frame's name ends in {PICTURE_SUFFIX}"
            raise InputError(msg)
        check_name(name.record, "inbox file")
        return name

    @property
    def record(self) -> str:
        """File name of the record."""
        return self.picture[: -len(PICTURE_SUFFIX)] + RECORD_SUFFIX

    @property
    def keys(self) -> tuple[str, str]:
        """Object keys of the picture and of its record."""
        return inbox_key(self.device, self.picture), inbox_key(self.device, self.record)

    def __str__(self) -> str:
        return f"{self.device}/{self.picture}"


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame whose record and picture were verified.

    Attributes:
        name: Where it lies.
        record: What the device says of it.
        picture: The file.
        small: (32, 32, 3) uint8 RGB of it.
    """

    name: FrameName
    record: InboxRecord
    picture: bytes
    small: NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Skip:
    """An object that is not used; both texts are one line without control characters."""

    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class InboxListing:
    """Listing of the inbox, by name only: no object was read.

    Attributes:
        names: Frames with picture and record, in turn by device, so that no device crowds out the others.
        skipped: Objects that belong to no complete frame.
        digest: 20 hex digits that change when any object may have changed.
        versions: By frame, 20 hex digits that change when its picture or its record may have changed.
    """

    names: tuple[FrameName, ...]
    skipped: tuple[Skip, ...]
    digest: str
    versions: Mapping[FrameName, str]


def list_inbox(store: Store) -> InboxListing:
    """List the inbox.

    Raises: SettingsError; TransportError.
    """
    return sort_objects(store.list_unread(f"{INBOX_FOLDER}/"))


def sort_objects(objects: Sequence[ListedObject]) -> InboxListing:
    """Separate complete frames from other objects."""
    names, skipped = [], []
    keys = {one.key: one for one in objects}
    pictures = [one for one in objects if one.key.endswith(PICTURE_SUFFIX)]
    for one in pictures:
        try:
            names.append(_whole_frame(one, keys))
        except InputError as e:
            skipped.append(skip(one.key, e))
    known = {one.key for one in pictures}
    known |= {one.key.removesuffix(PICTURE_SUFFIX) + RECORD_SUFFIX for one in pictures}
    alone = "no picture of this name next to it; remove it if nothing is being uploaded"
    skipped += [skip(key, alone) for key in keys if key not in known and not key.endswith("/")]
    versions = {name: _digest(keys[key] for key in name.keys) for name in names}
    ordered = tuple(sorted(skipped, key=lambda one: one.key))
    return InboxListing(_in_turn(names), ordered, _digest(objects), versions)


def read_frame(store: Store, name: FrameName) -> Frame:
    """Read a frame and verify its record and picture.

    Raises: InputError if they are not valid; TransportError; SettingsError.
    """
    picture_key, record_key = name.keys
    record = check_record(name, _read(store, record_key, INBOX_RECORD_LIMIT_BYTES))
    picture = _read(store, picture_key, PICTURE_LIMIT_BYTES)
    if hashlib.sha256(picture).hexdigest() != record.sha256:
        msg = "its SHA-256 is not the one in its record"
        raise InputError(msg)
    return Frame(name, record, picture, check_picture(picture))


def hash_picture(store: Store, name: FrameName) -> str:
    """Return the SHA-256 of a frame's picture, whatever it is.

    Raises: InputError if it is gone or too large; TransportError; SettingsError.
    """
    return hashlib.sha256(_read(store, name.keys[0], PICTURE_LIMIT_BYTES)).hexdigest()


def check_record(name: FrameName, data: bytes) -> InboxRecord:
    """Parse a record and compare it with the place where it was found.

    Raises: InputError.
    """
    record = decode_document(InboxRecord, data, source=name.record, limit_bytes=INBOX_RECORD_LIMIT_BYTES)
    if (record.device, record.picture) != (name.device, name.picture):
        msg = f"its record belongs to {excerpt(record.device)!r}, {excerpt(record.picture)!r}"
        raise InputError(msg)
    if not 0 <= record.confidence <= 1:
        msg = f"its record has confidence {record.confidence}, not a number from 0 to 1"
        raise InputError(msg)
    return record


def check_picture(data: bytes) -> NDArray[np.uint8]:
    """Check that a frame is a JPEG that training can read.

    Returns: (32, 32, 3) uint8 RGB.
    Raises: InputError.
    """
    from edge_client.contract.structure import count_scans  # noqa: PLC0415 - as below
    from luigi_tasks.dataset.formats import decode_file, read_header  # noqa: PLC0415 - NumPy and Pillow

    if not data.startswith(JPEG_START):
        msg = "it is not a JPEG file"
        raise InputError(msg)
    scans = count_scans(data, FRAME_SCANS_AT_MOST + 1)
    if scans > FRAME_SCANS_AT_MOST:
        msg = f"a JPEG in more than {FRAME_SCANS_AT_MOST} scans; devices write one"
        raise InputError(msg)
    pixels = read_header(data, "the picture").pixels
    if pixels > FRAME_LIMIT_PIXELS:
        msg = f"more than {FRAME_LIMIT_PIXELS} pixels; let [inbox] longest_side be lower"
        raise InputError(msg)
    if scans * pixels > SCANNED_PIXELS_AT_MOST:
        msg = f"a JPEG of {pixels} pixels in {scans} scans takes long to decode; devices write one scan"
        raise InputError(msg)
    return decode_file(data, CHECKED_SIDE, CHECKED_SIDE, "the picture")


def remove_frame(store: Store, name: FrameName) -> None:
    """Remove a frame, the picture first, so that an interruption leaves only a small record."""
    for key in name.keys:
        store.delete(key)


def skip(key: object, reason: Exception | str) -> Skip:
    """Return key and reason in a form that is safe to show."""
    return Skip(excerpt(str(key)), excerpt(str(reason)))


def _digest(objects: Iterable[ListedObject]) -> str:
    text = "".join(f"{one.key}\0{one.size_bytes}\0{one.etag}\n" for one in objects)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:20]


def _whole_frame(one: ListedObject, keys: dict[str, ListedObject]) -> FrameName:
    """Return the name of a picture whose record is listed too, both within their size limits."""
    device, _, picture = one.key.removeprefix(f"{INBOX_FOLDER}/").partition("/")
    name = FrameName.of(device, picture)
    record = keys.get(name.keys[1])
    if record is None:
        msg = f"its record {name.record} is missing; remove it if nothing is being uploaded"
        raise InputError(msg)
    for found, limit in ((record, INBOX_RECORD_LIMIT_BYTES), (one, PICTURE_LIMIT_BYTES)):
        if found.size_bytes > limit:
            msg = f"{found.key}: {found.size_bytes} bytes, at most {limit} are accepted"
            raise InputError(msg)
    return name


def _in_turn(names: Iterable[FrameName]) -> tuple[FrameName, ...]:
    seen: collections.Counter[str] = collections.Counter()
    ranked = []
    for name in sorted(names, key=str):
        ranked.append((seen[name.device], name))
        seen[name.device] += 1
    return tuple(name for _, name in sorted(ranked, key=lambda row: (row[0], str(row[1]))))


def _read(store: Store, key: str, limit_bytes: int) -> bytes:
    try:
        found = store.get(key, limit_bytes=limit_bytes)
    except TooLargeError as e:  # it was smaller when it was listed
        raise InputError(str(e)) from e
    if found is None:
        msg = f"{key}: gone since it was listed"
        raise InputError(msg)
    return found.data
