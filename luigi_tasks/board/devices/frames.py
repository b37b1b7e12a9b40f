"""The newest frames that a device handed in for labelling; its names and records are not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.messages import INBOX_RECORD_LIMIT_BYTES
from edge_client.contract.names import INBOX_FOLDER, check_name
from edge_client.contract.times import seconds_of
from luigi_tasks.labelling.inbox import PICTURE_LIMIT_BYTES, FrameName, check_record, sort_objects

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store

SHOWN = 12


class KeptFrame(msgspec.Struct, frozen=True, kw_only=True):
    """A frame in the inbox.

    Attributes:
        picture: Name of its file.
        at: When it was taken by the device's clock, seconds since 1970; 0: unknown.
        label: What the device's release took it for; empty: unknown.
        confidence: How sure it was, 0 to 1; None: unknown.
        why: `unsure` or `disagreement`.
        release: Release that said so; empty: unknown.
        fault: Why its record is not believed; empty: it is.
    """

    picture: str
    at: float = 0.0
    label: str = ""
    confidence: float | None = None
    why: str = ""
    release: str = ""
    fault: str = ""


class KeptFrames(msgspec.Struct, frozen=True, kw_only=True):
    """The newest frames, and how many there are.

    Attributes:
        total: Frames of the device in the inbox.
        newest: The newest, newest first.
    """

    total: int = 0
    newest: tuple[KeptFrame, ...] = ()


def read_frames(store: Store, device: str) -> KeptFrames:
    """Return a device's newest frames; it blocks.

    Raises: InputError for an id that no device can have; TransportError; SettingsError.
    """
    listed = sort_objects(store.list_folder(f"{INBOX_FOLDER}/{check_name(device, 'device id')}/"))
    # Devices name frames by their time; the store's own times are not listed everywhere.
    names = sorted((one for one in listed.names if one.device == device), key=lambda one: one.picture)
    return KeptFrames(
        total=len(names), newest=tuple(_read_record(store, one) for one in reversed(names[-SHOWN:]))
    )


def read_picture(store: Store, device: str, picture: str) -> bytes:
    """Return a frame as it lies in the inbox, undecoded; it blocks.

    Raises: InputError if there is none of this name, or it is too large; TransportError; SettingsError.
    """
    name = FrameName.of(device, picture)
    stored = store.get(name.keys[0], limit_bytes=PICTURE_LIMIT_BYTES)
    if stored is None:
        msg = f"{name}: not in the inbox (any more); it was labelled, thrown away or thinned out"
        raise InputError(msg)
    return stored.data


def _read_record(store: Store, name: FrameName) -> KeptFrame:
    try:
        stored = store.get(name.keys[1], limit_bytes=INBOX_RECORD_LIMIT_BYTES)
        if stored is None:
            return KeptFrame(picture=name.picture, fault="its record is gone")
        record = check_record(name, stored.data)
    except InputError as e:
        return KeptFrame(picture=name.picture, fault=str(e))
    return KeptFrame(
        picture=name.picture,
        at=seconds_of(record.at),
        label=record.label,
        confidence=record.confidence,
        why=record.why,
        release=record.release or "",
    )
