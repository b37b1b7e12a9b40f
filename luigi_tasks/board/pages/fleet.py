"""The page Fleet: how the fleet is, what has to be looked at now, and the table of all devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from luigi_tasks.board.devices.fleet_reading import (
    NOBODY,
    SPANS,
    address_of,
    name_in_words,
    query_of,
    read_fleet,
)
from luigi_tasks.board.index.records import (
    CLONES,
    DIFFERS,
    DRIFT,
    ERROR,
    ROWS_AT_MOST,
    UNSIGNED,
    WARNING,
    DeviceQuery,
)
from luigi_tasks.board.page import Page
from luigi_tasks.fleet.tables import UNKNOWN
from luigi_tasks.fleet.view import HEARD, NEVER, QUIET

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.board.devices.fleet_reading import Fleet

# Columns of the table: name in the address, words, whether it is a number.
COLUMNS = (
    ("device", "Device", False),
    ("channel", "Channel", False),
    ("site", "Site", False),
    ("class", "Class", False),
    ("release", "Release", False),
    ("heard", "Heard", False),
    ("rollout_state", "Rollout", False),
    ("online", "Online", False),
    ("last_seen", "Last seen", False),
    ("latency_ms", "Latency", True),
    ("unsure", "Unsure", True),
    ("failed_frames", "Failed", True),
    ("restarts", "Restarts", True),
)
_ODD_WORDS = {
    DRIFT: "drift alarm",
    ERROR: "failed update",
    WARNING: "warning",
    CLONES: "several machines",
    DIFFERS: "differs from registry",
    UNSIGNED: "not signed",
}
_HEARD_WORDS = (
    (HEARD, ("Heard", "report as they should")),
    (QUIET, ("Quiet", "owe reports")),
    (NEVER, ("Never heard", "no report ever came")),
    (UNKNOWN, ("Unknown", "no snapshot tells")),
)
# A page is to stay light; programs get more at once.
_ROWS_SHOWN = 100
# Choices of a filter; others are typed.
_OFFERED = 100
# Numbers for which more is worse begin with the most.
_WORST_FIRST = {"last_seen", "latency_ms", "unsure", "failed_frames", "restarts"}


class FleetPage(Page):
    """The page Fleet."""

    section = ""

    async def get(self) -> None:
        """Show it, or the part of it that is asked for."""
        board = self.board
        board.watch.look_soon()
        rows = ROWS_AT_MOST if self.wants_json else _ROWS_SHOWN
        query, span = query_of(lambda name: self.get_query_argument(name, ""), rows)
        fleet = await self.in_thread(lambda: read_fleet(board.index, board.watch.known_view(), query, span))
        if not fleet.state.version and fleet.state.faults:
            self.set_status(503)
            self.set_header("Retry-After", "5")
        here = self.path() + address_of(fleet.page.query, span, offset=fleet.page.query.offset)
        # The address says what is shown, without fields that say nothing.
        trigger = self.request.headers.get("HX-Trigger", "")
        if trigger in {"filters", "q"}:
            self.set_header("HX-Push-Url" if trigger == "filters" else "HX-Replace-Url", here)
        self.set_header("Vary", "Accept, HX-Request")
        self.answer("fleet.html", fleet, **self._drawn(fleet, here))

    def _drawn(self, fleet: Fleet, here: str) -> dict[str, Any]:
        """Return what the template draws with."""
        query = fleet.page.query

        def address(**changes: object) -> str:
            span = str(changes.pop("span", fleet.span))
            return self.path() + address_of(query, span, **changes)

        def only(**filters: object) -> str:
            """Return the address of all devices that one filter lets through."""
            kept = DeviceQuery(sort=query.sort, descending=query.descending, limit=query.limit)
            return self.path() + address_of(kept, fleet.span, **filters) + "#devices"

        return {
            "here": here,
            "address": address,
            "only": only,
            "is_lost": any(NOBODY not in note for note in fleet.state.notes),
            "is_filtered": bool(
                address_of(msgspec.structs.replace(query, sort="device", descending=False, limit=50), "day")
            ),
            "columns": [one for one in COLUMNS if one[0] != "channel" or fleet.followed > 1],
            "worst_first": _WORST_FIRST,
            "spans": tuple(SPANS),
            "heard_words": _HEARD_WORDS,
            "choices": _choices(fleet),
            "oddities": _ODD_WORDS,
        }


def _choices(fleet: Fleet) -> dict[str, list[tuple[str, str]]]:
    """Return what each filter offers, with numbers of devices: value and words."""
    counts = fleet.counts

    def counted(numbers: Mapping[str, int]) -> list[tuple[str, str]]:
        return [(name, f"{name_in_words(name)} ({number:,})") for name, number in numbers.items()][:_OFFERED]

    return {
        "channel": [(one.channel, one.channel) for one in fleet.channels],
        "release": [(name, f"{name} ({number:,})") for name, number in counts.releases.items()][:_OFFERED],
        "heard": counted(counts.heard),
        "state": counted(counts.states),
        "online": counted(counts.online),
        "class": [(name, f"{name} ({number:,})") for name, number in counts.classes.items()][:_OFFERED],
        "odd": list(_ODD_WORDS.items()),
        "enrolled": [("yes", "yes"), ("no", "no")],
    }


HANDLERS = ((r"", FleetPage),)
