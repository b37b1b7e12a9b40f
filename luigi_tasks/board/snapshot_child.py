"""What compares two long lists of pictures, in a process of its own.

A list of 600,000 pictures takes some 400 MB when it is read, which the board's own process does not have.
The settings are those of the board; it is asked on standard input and answers on standard output, in JSON.

    python -m luigi_tasks.board.snapshot_child  < {"first": "1a2b...", "second": "3c4d..."}
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from edge_client.contract.errors import EdgeError, InputError, TransportError
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
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "luigi_tasks.board.snapshot_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(msgspec.json.encode(order)), limit_s)
        return msgspec.json.decode(out, type=Compared)
    except asyncio.TimeoutError:
        msg = f"the pictures of the two releases were not compared within {limit_s:.0f} s"
        raise TransportError(msg) from None
    except msgspec.DecodeError as e:
        msg = f"the process that compares pictures ended with {process.returncode}; see the board's log"
        raise TransportError(msg) from e
    finally:
        if process.returncode is None:
            process.kill()


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


def main() -> int:
    """Compare what standard input names."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        compared = Compared(change=compare(order))
    except EdgeError as e:
        compared = Compared(missing=str(e))
    sys.stdout.buffer.write(msgspec.json.encode(compared))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
