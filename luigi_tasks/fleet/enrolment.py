"""Which devices are to be enrolled, and what the registry says to that."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.names import check_name, check_tag
from luigi_tasks.fleet.records import EnrolledDevice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

MOST_TAGS = 32
# Users of configs/mosquitto.acl with rights of their own: a device of that name would have them.
RESERVED = frozenset({"pipeline", "collector", "operator", "dashboard", "homeassistant"})
_COLUMNS = ("device", "site", "tags", "class", "channels")
_TOLD = 20
_LIMIT_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class WantedDevice:
    """A device that is to be enrolled.

    Attributes:
        device: Its id.
        site: Its site; empty: none.
        device_class: Its class; empty: none.
        tags: Its tags.
        channels: Its main channel, then the extra ones.
    """

    device: str
    site: str = ""
    device_class: str = ""
    tags: tuple[str, ...] = ()
    channels: tuple[str, ...] = ("stable",)

    def faults(self) -> Iterator[str]:
        """Yield a sentence for each name that cannot be one."""
        names = [("device", self.device), *(("channel", name) for name in self.channels)]
        names += [("site", self.site)] if self.site else []
        names += [("class", self.device_class)] if self.device_class else []
        for what, name in names:
            if fault := _fault(name, what):
                yield fault
        if self.device.lower() in RESERVED:
            yield f"device {self.device!r}: is a user of the broker with other rights; take another name"
        for tag in self.tags:
            try:
                check_tag(tag)
            except InputError as e:
                yield str(e)
        if len(self.tags) > MOST_TAGS:
            yield f"{len(self.tags)} tags, at most {MOST_TAGS}"
        if len(set(self.tags)) < len(self.tags) or len(set(self.channels)) < len(self.channels):
            yield "a tag or channel is named twice"
        if not self.channels:
            yield "no channel"


def check_device(wanted: WantedDevice) -> WantedDevice:
    """Return a device whose names can be used; raises InputError."""
    if faults := list(wanted.faults()):
        raise InputError("; ".join(faults))
    return wanted


def read_devices(path: Path) -> tuple[WantedDevice, ...]:
    """Return the devices of a CSV file.

    The first line names the columns: device, and of site, tags (with spaces between), class and channels
    (likewise) those that there are. Columns are parted by commas, semicolons or tabs.
    Raises: InputError, which names all rows that cannot be used, and then none is.
    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            msg = f"{path}: larger than {_LIMIT_BYTES >> 20} MiB; divide it"
            raise InputError(msg)
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        msg = f"{path}: {e.strerror}; give a CSV file with a row for each device"
        raise InputError(msg) from e
    except UnicodeDecodeError as e:
        msg = f"{path}: is not UTF-8; save it as CSV UTF-8"
        raise InputError(msg) from e
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return _read_rows(path, rows)
    except csv.Error as e:
        msg = f"{path}: row {rows.line_num}: {e}; is a quotation mark open?"
        raise InputError(msg) from e


def _read_rows(path: Path, rows: Iterator[list[str]]) -> tuple[WantedDevice, ...]:
    columns = [name.strip().lower() for name in next(rows, [])]
    unknown = [name for name in columns if name not in _COLUMNS]
    if "device" not in columns or unknown or len(set(columns)) < len(columns):
        said = f"{', '.join(map(repr, unknown))[:200]}: no such column. " if unknown else ""
        msg = f"{path}: row 1: {said}It names the columns: device, and any of {', '.join(_COLUMNS[1:])}"
        raise InputError(msg)
    found: dict[str, WantedDevice] = {}
    place: dict[str, int] = {}
    faults = []
    for number, cells in enumerate(rows, 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            faults.append(f"row {number}: {len(cells)} cells, and {len(columns)} columns")
            continue
        wanted = _wanted(dict(zip(columns, (cell.strip() for cell in cells), strict=False)))
        wrong = list(wanted.faults())
        if not wrong and wanted.device in found:
            wrong = [f"{wanted.device} stands in row {place[wanted.device]} too"]
        faults += [f"row {number}: {fault}" for fault in wrong]
        found[wanted.device], place[wanted.device] = wanted, number
    if faults:
        more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
        msg = f"{path}: nothing was enrolled: {'; '.join(faults[:_TOLD])}{more}"
        raise InputError(msg)
    if not found:
        msg = f"{path}: names no device; give a row for each below the names of the columns"
        raise InputError(msg)
    return tuple(found.values())


def _wanted(cells: Mapping[str, str]) -> WantedDevice:
    return WantedDevice(
        device=cells.get("device", ""),
        site=cells.get("site", ""),
        device_class=cells.get("class", ""),
        tags=tuple(cells.get("tags", "").split()),
        channels=tuple(cells.get("channels", "").split()) or ("stable",),
    )


def _fault(name: str, what: str) -> str:
    try:
        check_name(name, what)
    except InputError as e:
        return str(e)
    return ""


def enroll_rows(
    wanted: Iterable[WantedDevice],
    known: Mapping[str, EnrolledDevice],
    keys: Mapping[str, str],
    at: str,
    who: str,
) -> tuple[EnrolledDevice, ...]:
    """Return the registry's rows of new devices.

    Args:
        wanted: The devices.
        known: Those of them that the registry has.
        keys: Public key of each device that signs its reports, PEM.
        at: UTC, ISO 8601.
        who: Who enrolls them.
    Raises: InputError, which names those that were enrolled before.
    """
    wanted = tuple(wanted)
    if twice := [one.device for one in wanted if one.device in known]:
        names = ", ".join(twice[:_TOLD]) + (f" and {len(twice) - _TOLD} more" if len(twice) > _TOLD else "")
        msg = (
            f"nothing was enrolled: {names}: enrolled before. `edge-fleet re-enroll` gives a device new "
            "keys, also one that left the fleet"
        )
        raise InputError(msg)
    return tuple(
        EnrolledDevice(
            device=one.device,
            site=one.site,
            device_class=one.device_class,
            tags=one.tags,
            key=keys.get(one.device, ""),
            channels=one.channels,
            enrolled_at=at,
            enrolled_by=who,
        )
        for one in wanted
    )


def re_enroll_row(
    before: EnrolledDevice, wanted: WantedDevice, key: str, at: str, who: str
) -> EnrolledDevice:
    """Return the row of a device that gets a new key: reports that the old one signed count no more."""
    return EnrolledDevice(
        device=before.device,
        site=wanted.site,
        device_class=wanted.device_class,
        tags=wanted.tags,
        key=key,
        channels=wanted.channels,
        enrolled_at=at,
        enrolled_by=who,
        epoch=before.epoch + 1,
    )


def retire_row(before: EnrolledDevice, at: str) -> EnrolledDevice:
    """Return the row of a device that leaves the fleet: it has no vote and no key."""
    return msgspec.structs.replace(before, retired_at=before.retired_at or at, key="")
