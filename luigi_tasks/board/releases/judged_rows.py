"""What the gate judged lately, for the page of candidates."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError
from edge_client.contract.times import seconds_of
from luigi_tasks.gate.words import mark_verdict

if TYPE_CHECKING:
    import concurrent.futures

    from luigi_tasks.board.releases.known import Published
    from luigi_tasks.release.judged import Judged
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.storage.store import ListedObject

# The newest ones; earlier ones are seldom asked for, and each is read from the store.
SHOWN = 30
# Listing all that was ever judged takes a request for each 250 candidates.
_KEEP_S = 15.0


@dataclasses.dataclass(frozen=True)
class JudgedRow:
    """A candidate.

    Attributes:
        name: Names its evaluation in `work/`.
        release: Id that it has, or would have had.
        at: When it was judged, seconds since 1970.
        outcome: `passed`, `refused` or `thin`.
        words: The verdict in words.
        reasons: Why it was not published, or what was thin.
        is_signed: Whether the release is signed now.
        accuracy: On the hold-out.
        interval: Its interval at 95 %.
        pictures: Pictures of the hold-out.
        champion: Release that it was compared with; empty: none.
        model_bytes: Size of its model.
    """

    name: str
    release: str
    at: float
    outcome: str
    words: str
    reasons: tuple[str, ...]
    is_signed: bool
    accuracy: float
    interval: tuple[float, float] | None
    pictures: int
    champion: str
    model_bytes: int


@dataclasses.dataclass(frozen=True)
class JudgedList:
    """The page.

    Attributes:
        rows: Newest first.
        names: Signed releases.
        notes: What could not be shown.
        at_most: So many are shown.
    """

    rows: tuple[JudgedRow, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]
    at_most: int = SHOWN


class JudgedReader:
    """Reads what the gate judged; what was read once is kept by the ETag of its statement."""

    def __init__(self, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._listed: tuple[float, list[ListedObject]] = (0.0, [])
        self._known: dict[tuple[str, str], Judged | str] = {}

    def read(self, published: Published, state: RepositoryState) -> JudgedList:
        """Return the page.

        Raises: TransportError; SettingsError.
        """
        from luigi_tasks.release.judged import list_judged  # noqa: PLC0415 - imports python-tuf

        if not state.roots:
            return JudgedList((), (), ())
        with self._lock:
            until, listed = self._listed
            if time.monotonic() > until:
                listed = list_judged(state.store, SHOWN)
                self._listed = time.monotonic() + _KEEP_S, listed
            found = list(self._pool.map(lambda one: self._load(state, one), listed))
            names = {(one.key, one.etag) for one in listed}
            self._known = {name: one for name, one in self._known.items() if name in names}
        rows = [_row(one, published) for one in found if not isinstance(one, str)]
        rows.sort(key=lambda row: -row.at)
        faults = dict.fromkeys(one for one in found if isinstance(one, str))
        return JudgedList(tuple(rows), published.order, tuple(faults))

    def _load(self, state: RepositoryState, listed: ListedObject) -> Judged | str:
        """Return what was judged, or why that is not shown."""
        from luigi_tasks.release.judged import load_judged, name_of  # noqa: PLC0415 - imports python-tuf

        name = (listed.key, listed.etag)
        if name not in self._known:
            try:
                self._known[name] = load_judged(state, name_of(listed))
            except EdgeError as e:
                return str(e)
        return self._known[name]


def _row(judged: Judged, published: Published) -> JudgedRow:
    record = judged.evaluation
    mark = mark_verdict(record.verdict)
    return JudgedRow(
        name=judged.name,
        release=record.release,
        at=seconds_of(record.at),
        outcome=mark.mark,
        words=mark.word,
        reasons=record.verdict.reasons or record.verdict.thin,
        is_signed=published.has(record.release),
        accuracy=record.candidate.accuracy,
        interval=record.candidate.interval,
        pictures=record.candidate.pictures,
        champion=record.champion_release or "",
        model_bytes=record.model_bytes,
    )
