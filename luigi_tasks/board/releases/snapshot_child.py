"""What compares two long lists of pictures, in a process of its own.

A list of 600,000 pictures takes some 400 MB when it is read, which the board's own process does not have.

    python -m luigi_tasks.board.releases.snapshot_child  < {"first": "1a2b...", "second": "3c4d..."}
"""

from __future__ import annotations

import msgspec

from edge_client.contract.errors import EdgeError, InputError
from luigi_tasks.board.json_child import answer_order, ask_child
from luigi_tasks.release.kept_snapshot import SnapshotChange, compare_snapshots, load_snapshot

LIMIT_S = 60.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Two releases whose pictures are compared."""

    first: str
    second: str


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What differs, or why that is not known."""

    change: SnapshotChange | None = None
    missing: str = ""


async def compare_in_child(order: Order, limit_s: float = LIMIT_S) -> Compared:
    """Return what a child says.

    Raises: TransportError if it ends or takes too long.
    """
    what = f"comparison of the pictures of {order.first} and {order.second}"
    return await ask_child(__name__, order, Compared, limit_s, what)


def compare(order: Order) -> SnapshotChange:
    """Compare the pictures of two releases.

    Raises: EdgeError.
    """
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - in the child alone
    from luigi_tasks.release.verify import trace_release  # noqa: PLC0415 - as above
    from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports Luigi
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

    settings = load_settings()
    state = ReleaseRepository(open_store(settings.store), settings.trust).load()
    found = []
    for release in (order.first, order.second):
        document = state.release(release)
        if document is None:
            msg = f"release {release}: not signed here (any more)"
            raise InputError(msg)
        found.append((release, load_snapshot(state, trace_release(state, release), document.snapshot)))
    return compare_snapshots(state, found[0], found[1])


def answer(order: Order) -> Compared:
    """Return what differs, or why that is not known."""
    try:
        return Compared(change=compare(order))
    except EdgeError as e:
        return Compared(missing=str(e))


if __name__ == "__main__":
    raise SystemExit(answer_order(Order, answer))
