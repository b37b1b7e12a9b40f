"""When a device may move to another release: on request, in a daily window, or at a moment of its own.

The moment is drawn once for each move and kept on the disk, so that a device that starts again does not wait
anew, and one whose clock jumps does not wait for ever. Within a window it is drawn from that window: else a
whole fleet would begin at its first second. A person's request overrides all of it.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import random
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.rollout import IN_WINDOW, ON_REQUEST
from edge_client.contract.times import current_time, parse_time
from edge_client.contract.windows import parse_window
from edge_client.disk import write_durably
from edge_client.update.decision import REQUEST, SPREAD, WINDOW, Hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.contract.windows import DailyWindow
    from edge_client.update.offer import Offer

logger = logging.getLogger(__name__)

MOVE_FILE = "move.json"
MOVE_LIMIT_BYTES = 4096
# Longer moves are not waited for, whatever the document or the file says.
LONGEST_SPREAD_S = 14 * 86400.0
# The last part of a window is for those that are late: a moment is drawn from the rest.
DRAWN_SHARE = 0.9


class PlannedMove(Document, frozen=True, kw_only=True):
    """`move.json`: when this device moves to another release.

    Attributes:
        release: That release.
        rollout: Rollout whose document it was drawn by.
        window: Window in which it was drawn; empty: none.
        at: UTC, ISO 8601.
        wait_s: Seconds from the drawing to `at`: no clock that jumps makes the device wait longer.
    """

    release: str
    rollout: str = ""
    window: str = ""
    at: str
    wait_s: float


class MoveTiming:
    """When the moves of one channel are due."""

    def __init__(
        self,
        file: Path,
        now: Callable[[], datetime.datetime] = current_time,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepare; reads nothing.

        Args:
            file: Where the planned move is kept.
            now: The time, aware; windows are in its local time.
            uniform: Draws a number between two.
        """
        self._file = file
        self._now = now
        self._uniform = uniform

    def hold(self, offer: Offer) -> Hold | None:
        """Return what a release waits for that this device may install otherwise; None: nothing.

        Raises: DeviceError if the moment cannot be kept.
        """
        rolled_out = offer.is_rolled_out
        if rolled_out and offer.apply == ON_REQUEST:
            return Hold(REQUEST, None, "waits for `edge-client update`, as its rollout asks")
        window = None
        if rolled_out and offer.apply == IN_WINDOW:
            try:
                window = parse_window(offer.window)
            except InputError as e:
                return Hold(WINDOW, None, f"waits, because its rollout has no window that can be read: {e}")
        plan = self._read(offer, offer.window if window is not None else "")
        # A spread that the idle document no longer names still holds for a move that was drawn before.
        if window is None and offer.spread_s <= 0 and (offer.rollout or plan is None):
            return None
        return self._hold_until_due(offer, window, plan)

    def forget(self) -> None:
        """Forget the planned move: the device has moved, or is not to move; never fails."""
        with contextlib.suppress(OSError):
            self._file.unlink()

    def _hold_until_due(
        self, offer: Offer, window: DailyWindow | None, plan: PlannedMove | None
    ) -> Hold | None:
        due_in_s = self._due_in_s(plan) if plan is not None else self._plan(offer, window)
        closed = window is not None and window.closes_in_s(self._now().astimezone()) <= 0
        if closed and due_in_s <= 0:  # off, or without a network, while it was open
            due_in_s = self._plan(offer, window)
        if due_in_s <= 0:
            return None
        about = (self._now() + datetime.timedelta(seconds=due_in_s)).astimezone()
        at = f"until {about:%Y-%m-%d %H:%M:%S} (local time)"
        if closed:
            return Hold(WINDOW, due_in_s, f"waits for its window {offer.window}, {at}")
        return Hold(SPREAD, due_in_s, f"waits its part of the time over which the fleet moves, {at}")

    def _plan(self, offer: Offer, window: DailyWindow | None) -> float:
        """Draw and keep the moment of a move; return the seconds until then."""
        wait_s, spread_s = 0.0, min(max(offer.spread_s, 0.0), LONGEST_SPREAD_S)
        if window is not None:
            local = self._now().astimezone()
            wait_s = _real_seconds(local, window.opens_in_s(local))
            left_s = window.length_s if wait_s > 0 else window.closes_in_s(local)
            spread_s = min(spread_s, DRAWN_SHARE * left_s)
        wait_s += self._uniform(0.0, spread_s)
        at = self._now() + datetime.timedelta(seconds=wait_s)
        plan = PlannedMove(
            release=offer.release,
            rollout=offer.rollout,
            window=offer.window if window is not None else "",
            at=at.isoformat(),
            wait_s=wait_s,
        )
        write_durably(self._file, encode_document(plan))
        return wait_s

    def _due_in_s(self, plan: PlannedMove) -> float:
        due_in_s = (parse_time(plan.at) - self._now()).total_seconds()
        if due_in_s <= plan.wait_s:
            return due_in_s
        # The clock went back since: it begins anew, and no longer than it was drawn.
        at = self._now() + datetime.timedelta(seconds=plan.wait_s)
        moved = msgspec.structs.replace(plan, at=at.isoformat())
        write_durably(self._file, encode_document(moved))
        return plan.wait_s

    def _read(self, offer: Offer, window: str) -> PlannedMove | None:
        """Return the planned move, unless it is of another release, rollout or window.

        The idle document, which names no rollout, leaves it as it was drawn.
        """
        try:
            plan = decode_document(
                PlannedMove, self._file.read_bytes(), source=str(self._file), limit_bytes=MOVE_LIMIT_BYTES
            )
        except FileNotFoundError:
            return None
        except (OSError, EdgeError) as e:
            logger.warning("%s: %s; the move is drawn anew", self._file, e)
            return None
        # A day more, for a window that has to open first.
        is_sane = 0 <= plan.wait_s <= LONGEST_SPREAD_S + 86400
        is_of_this = not offer.rollout or (plan.rollout, plan.window) == (offer.rollout, window)
        return plan if plan.release == offer.release and is_of_this and is_sane else None


def _real_seconds(local: datetime.datetime, seconds: float) -> float:
    """Return how long a time of the clock on the wall takes to come, where the clocks change before it."""
    then = (local + datetime.timedelta(seconds=seconds)).astimezone()
    changed = (then.utcoffset() or datetime.timedelta()) - (local.utcoffset() or datetime.timedelta())
    return max(seconds - changed.total_seconds(), 0.0)
