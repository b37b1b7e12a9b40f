"""Counts of devices, while their rows go by in the order of the devices."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from luigi_tasks.board.index.records import Counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.board.index.records import IndexedDevice

YES, NO, UNKNOWN = "yes", "no", "unknown"
ONLINE = {True: YES, False: NO, None: UNKNOWN}
_LISTED = 200
# A device may report on any channel; those that few follow are in the table, and not counted apart.
_CHANNELS_AT_MOST = 200


class Counter:
    """Counts each device once in each value, by channel and in the whole fleet."""

    def __init__(self) -> None:
        self._numbers: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self._device = ""
        self._of_device: set[tuple[str, str, str]] = set()

    def add(self, row: IndexedDevice) -> None:
        """Count a row; all rows of a device come one after the other."""
        if row.device != self._device:
            self._count()
            self._device = row.device
        for kind, value in _values(row):
            self._of_device.add((row.channel, kind, value))
            self._of_device.add(("", kind, value))

    def counts(self) -> dict[str, Counts]:
        """Return the counts of the largest channels, and under the empty name those of the fleet."""
        self._count()
        found: dict[str, dict[str, collections.Counter[str]]] = {}
        for (channel, kind, value), number in self._numbers.items():
            found.setdefault(channel, {}).setdefault(kind, collections.Counter())[value] = number
        counts = {channel: _to_counts(kinds) for channel, kinds in found.items()}
        largest = sorted(
            counts, key=lambda one: (one != "", -counts[one].devices, -counts[one].strangers, one)
        )
        return {channel: counts[channel] for channel in sorted(largest[: _CHANNELS_AT_MOST + 1])}

    def _count(self) -> None:
        for one in self._of_device:
            self._numbers[one] += 1
        self._of_device.clear()


def _values(row: IndexedDevice) -> list[tuple[str, str]]:
    if not row.enrolled:
        return [("strangers", "")]
    values = [
        ("devices", ""),
        ("heard", row.heard),
        ("online", ONLINE[row.online]),
        ("releases", row.release),
        *(("odd", one) for one in row.odd),
        *(("tags", one) for one in row.tags),
    ]
    named = (("states", row.rollout_state), ("classes", row.device_class), ("sites", row.site))
    return values + [(kind, value) for kind, value in named if value]


def _to_counts(kinds: Mapping[str, collections.Counter[str]]) -> Counts:
    def listed(kind: str) -> dict[str, int]:
        return dict(kinds.get(kind, collections.Counter()).most_common(_LISTED))

    return Counts(
        devices=kinds.get("devices", collections.Counter())[""],
        strangers=kinds.get("strangers", collections.Counter())[""],
        heard=listed("heard"),
        online=listed("online"),
        states=listed("states"),
        releases=listed("releases"),
        odd=listed("odd"),
        classes=listed("classes"),
        sites=listed("sites"),
        tags=listed("tags"),
    )
