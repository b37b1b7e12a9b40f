"""Which devices a command is about: filters, and the part of a long list."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luigi_tasks.fleet.records import DEVICE_STATES
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from luigi_tasks.fleet.view import ShownDevice

LIMIT = 50
ENROLLED, STRANGER = "enrolled", "stranger"
# How a device is heard of, whether it is connected and registered, and its state in a rollout.
STATES = ("heard", "quiet", "never", "unknown", "online", "offline", ENROLLED, STRANGER, *DEVICE_STATES)


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose devices."""
    parser.add_argument("--channel", default="", help="only this channel (default: all)")
    parser.add_argument("--site", action="append", default=[], help="only devices of this site; repeatable")
    parser.add_argument(
        "--tag", action="append", default=[], help="only devices with this tag; repeated: with all of them"
    )
    parser.add_argument(
        "--class",
        dest="device_class",
        action="append",
        default=[],
        help="only devices of this class; repeatable",
    )
    parser.add_argument(
        "--release", default="", help="only devices that reported this release; none, unknown"
    )
    parser.add_argument(
        "--state",
        action="append",
        default=[],
        choices=STATES,
        metavar="STATE",
        help=f"only devices in this state; repeatable: {', '.join(STATES)}",
    )


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a part of a long list."""
    parser.add_argument(
        "--limit", type=int, default=LIMIT, help=f"rows at most (default {LIMIT}); 0: all of them"
    )
    parser.add_argument("--offset", type=int, default=0, help="rows to leave out at the start")


@dataclasses.dataclass(frozen=True)
class Page:
    """A part of a list.

    Attributes:
        devices: The part.
        offset: Place of its first device, from 0.
        total: Length of the list.
    """

    devices: list[ShownDevice]
    offset: int
    total: int

    def in_words(self) -> str:
        """Return which part this is, and how to see more."""
        if len(self.devices) == self.total:
            return count(self.total, "row")
        first, last = self.offset + 1, self.offset + len(self.devices)
        more = f"; --offset {last} goes on" if last < self.total else ""
        return f"rows {first} to {last} of {self.total}{more}" if self.devices else f"no row of {self.total}"


def choose(devices: Iterable[ShownDevice], options: argparse.Namespace) -> list[ShownDevice]:
    """Return the devices that the filters let through."""
    return [one for one in devices if _matches(one, options)]


def cut(devices: list[ShownDevice], options: argparse.Namespace) -> Page:
    """Return the part of a list that was asked for."""
    offset = max(options.offset, 0)
    end = offset + options.limit if options.limit > 0 else None
    return Page(devices[offset:end], offset, len(devices))


def states_of(one: ShownDevice) -> set[str]:
    """Return all states that a filter may name for a device."""
    online = {True: "online", False: "offline", None: "unknown"}[one.row.online if one.row else None]
    known = ENROLLED if one.enrolled is not None else STRANGER
    return {one.heard, one.rollout_state, online, known} - {""}


def _matches(one: ShownDevice, options: argparse.Namespace) -> bool:
    if options.channel and one.channel != options.channel:
        return False
    if options.release and one.release != options.release:
        return False
    if options.state and not states_of(one).intersection(options.state):
        return False
    if not (options.site or options.tag or options.device_class):
        return True
    facts = one.facts()
    return (
        (not options.site or bool(facts["site"].intersection(options.site)))
        and (not options.device_class or bool(facts["class"].intersection(options.device_class)))
        and facts["tag"].issuperset(options.tag)
    )
