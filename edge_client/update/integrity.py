"""Whether the release in a slot is the one that was signed; without a network or a signature library.

The signed metadata on this disk names the digest of every file of a release; it was verified when it was
stored. The daemon compares with it at each start, and the child of each update check, which has the library,
verifies its signatures again (`repository/remembered.py`). Expiry does not matter: a device that was off for
months serves.

A damaged metadata file must not end serving. So any of three is enough for a slot to be loaded: the release
id, which the signed channel names, and which is a digest of everything that decides about predictions; the
digest in the metadata; or the digest in `slots.json` of what was verified when the release was activated.
The other files follow from `release.json`: it has the model's digest and the labels.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import METADATA_FOLDER, MODEL_FILE, RELEASE_FILE, release_target
from edge_client.contract.release import RELEASE_LIMIT_BYTES, ReleaseDocument, is_named_after_content
from edge_client.disk import disk_errors, write_durably

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

# Below the state folder: the releases on the disk that served, one a line, the newest last.
ACTIVATED_FILE = "activated"


class NotAsSignedError(DeviceError):
    """A file of a slot is not what was signed."""


class _Target(msgspec.Struct):
    hashes: dict[str, str]


class _Targets(msgspec.Struct):
    targets: dict[str, _Target]


class _Metadata(msgspec.Struct):
    signed: _Targets


def check_slot(slot: Path, *, recorded: str | None, verified: str | None) -> None:
    """Compare `release.json` in the slot of a release with what is signed.

    Args:
        slot: Folder of the release, `<state_dir>/slots/<release>`.
        recorded: Digest in `slots.json`; None if there is none.
        verified: Digest whose signature an update check of this process verified; None if unknown. It counts
            in place of the other two.
    Raises: NotAsSignedError; DeviceError if the file cannot be read.
    """
    path = slot / RELEASE_FILE
    with disk_errors(path):
        data = path.read_bytes()
    if _is_named_after_content(slot, data):
        return
    digest = hashlib.sha256(data).hexdigest()
    known = {recorded, _remembered_digest(slot)} if verified is None else {verified}
    if digest not in known:
        msg = f"{path}: is not what was signed; the next update check replaces it"
        raise NotAsSignedError(msg)


def find_served(slots_dir: Path, refused: Collection[str]) -> list[str]:
    """Return the releases on the disk that are as they were signed, the one that was activated last first.

    One that was never activated may have been waiting, or failing in shadow mode: it counts only where no
    other was. What the disk cannot read now is left out.
    """
    activated = _read_activated(slots_dir.parent)
    found = [slot for slot in _list_slots(slots_dir) if slot.name not in refused]
    served = [slot for slot in found if slot.name in activated]
    if served:
        served.sort(key=lambda slot: activated.index(slot.name), reverse=True)
    else:
        served = sorted(found, key=_modified, reverse=True)
    return [slot.name for slot in served if _is_signed(slot)]


def note_activation(slots_dir: Path, current: str, previous: str | None) -> None:
    """Write down in which order the releases on the disk were activated, unless that is known.

    Raises: DeviceError.
    """
    served = [release for release in (previous, current) if release is not None]
    if _read_activated(slots_dir.parent) != served:
        write_durably(slots_dir.parent / ACTIVATED_FILE, "".join(f"{one}\n" for one in served).encode())


def _read_activated(state_dir: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (state_dir / ACTIVATED_FILE).read_bytes().decode(errors="replace").split()
    return []


def _list_slots(slots_dir: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in slots_dir.iterdir() if path.is_dir()]
    return []


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _is_signed(slot: Path) -> bool:
    """Return whether all that decides about predictions is as it was signed."""
    with contextlib.suppress(OSError):
        data = (slot / RELEASE_FILE).read_bytes()
        is_known = hashlib.sha256(data).hexdigest() == _remembered_digest(slot)
        if is_known or _is_named_after_content(slot, data):
            model = hashlib.sha256((slot / MODEL_FILE).read_bytes()).hexdigest()
            return f'"{model}"'.encode() in data
    return False


def _remembered_digest(slot: Path) -> str | None:
    """Return the digest of `release.json` in the metadata on this disk; None if that has none."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, EdgeError):
        data = (slot.parents[1] / METADATA_FOLDER / "targets.json").read_bytes()
        target = msgspec.json.decode(data, type=_Metadata).signed.targets.get(
            release_target(slot.name, RELEASE_FILE)
        )
        return None if target is None else target.hashes.get("sha256")
    return None


def _is_named_after_content(slot: Path, document: bytes) -> bool:
    """Return whether a slot's name is the release id of its document, if the model is the document's."""
    try:
        read = decode_document(
            ReleaseDocument, document, source=RELEASE_FILE, limit_bytes=RELEASE_LIMIT_BYTES
        )
    except InputError:
        return False
    return slot.name == read.release and is_named_after_content(read)
