"""The watcher: it looks at the bucket, has the index made anew, and tells the open pages.

While a page is open there is a look every `[board] look_s`, else 60 times more seldom. What the bucket does
not answer is shown on the pages, and tried again after a time that doubles up to 10 s.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.addresses import without_passwords
from edge_client.contract.errors import EdgeError, TransportError
from edge_client.contract.text import one_line
from luigi_tasks.board.live.looks import digest_of, looks_at
from luigi_tasks.board.live.streams import INBOX, RELEASES, ROLLOUTS, SNAPSHOT
from luigi_tasks.board.shared_reading import SharedReading
from luigi_tasks.fleet.reading import read_outline
from luigi_tasks.fleet.tables import age_in_words
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.index.index import Index
    from luigi_tasks.board.live.looks import Look
    from luigi_tasks.board.live.streams import Streams
    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")

logger = logging.getLogger("edge-fleet")

# So many times more seldom are the looks while no page is open.
IDLE_LOOKS = 60
# Between two tries at a bucket that is away, and at an index that cannot be made, which costs much more.
_BACKOFF_S, _BACKOFF_AT_MOST_S, _LOAD_BACKOFF_AT_MOST_S = 2.0, 10.0, 60.0
# A view that no look confirmed for so many times `look_s` is read again by who asks.
_FRESH_LOOKS, _FRESH_AT_LEAST_S = 3, 2.0
# So long a page waits for a store that is slow before it shows what was read last.
_WAIT_S = 1.5
# Nothing was read yet: the page itself ends sooner.
_FIRST_WAIT_S = 60.0
_BUCKET, _INDEX = "bucket", "index"


class Watch:
    """Looks, on behalf of all pages.

    Args:
        settings: All settings.
        index: The index, which is made anew when its sources changed.
        streams: Where changes are told.
    """

    def __init__(self, settings: PipelineSettings, index: Index, streams: Streams) -> None:
        self._settings = settings
        self._index = index
        self._streams = streams
        self._outline = _Outline(settings)
        self._looks: list[Look] = []
        self._more: list[Look] = []
        self._wanted: set[str] = set()
        self._awake = asyncio.Event()
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures = 0
        self._outlined: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._loading: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._past = ""
        self._failed_version, self._load_again_at, self._load_failures = "", 0.0, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "watch")
        self._loader = concurrent.futures.ThreadPoolExecutor(1, "index")
        self._filler = concurrent.futures.ThreadPoolExecutor(1, "past")
        streams.on_open = self.look_soon

    def add(self, look: Look) -> None:
        """Look at one thing more; before `run`."""
        self._more.append(look)

    async def run(self) -> None:
        """Look until it is closed."""
        self._loop = asyncio.get_running_loop()
        await self._in(self._loader, self._index.find)
        # `asyncio.wait_for` loses a cancellation that comes with what it waits for (until Python 3.12).
        while not self._is_closed:
            wanted, self._wanted = self._wanted, set()
            self._awake.clear()
            try:
                await self._look(wanted)
                self._note(_BUCKET, "")
            except Exception as e:  # noqa: BLE001 - the looks go on, whatever one of them met
                self._fail(e)
            self._looked_at = time.monotonic()
            self._tell_state()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._awake.wait(), self._pause_s())

    def close(self) -> None:
        """End the looks, the threads, and the child that makes an index."""
        self._is_closed = True
        self._awake.set()
        self._index.close()
        for thread in (self._thread, self._loader, self._filler):
            thread.shutdown(wait=False, cancel_futures=True)

    def look_now(self, *topics: str) -> None:
        """Look at once, for instance after something was changed here; from any thread.

        Args:
            topics: What is looked at in any case, such as `rollouts`.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._want, topics)

    def _want(self, topics: tuple[str, ...]) -> None:
        self._wanted.update(topics)
        self._awake.set()

    def look_soon(self) -> None:
        """Look, a while after the last look; from any thread.

        The page that is opened first may come right after a look that nobody waited for.
        """
        least_s = _backoff_s(self._failures) if self._failures else self._settings.board.look_s
        wait_s = self._looked_at + least_s - time.monotonic()
        if wait_s <= 0:
            self.look_now()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.call_later, wait_s, self._awake.set)

    def view(self) -> FleetView:
        """Return the fleet without its devices, not older than a few looks; it blocks.

        Raises: TransportError, SettingsError, TrustError while the bucket was never read.
        """
        fresh_s = max(_FRESH_LOOKS * self._settings.board.look_s, _FRESH_AT_LEAST_S)
        return self._outline.view(fresh_s)

    def known_view(self) -> FleetView | None:
        """Return the fleet without its devices as it was read last; None: it was not read yet."""
        return self._outline.known()

    async def _look(self, wanted: set[str]) -> None:
        if not self._looks:
            self._looks = [*await self._in(self._thread, self._open), *self._more]
        for look in self._looks:
            if look.topic in wanted:
                look.due = 0
        fault = await self._in(self._thread, self._look_at_all)
        versions = self._versions()
        sources = ("snapshots", "registry", "rollouts", "repository")
        found = {name: versions[name] for name in sources}
        if found != self._outlined:  # also where what changed before could not be read
            await self._in(self._thread, self._outline.read)
            self._outlined = found
        if fault is None:
            self._outline.confirm()
        self._tell(ROLLOUTS, versions["rollouts"], versions["repository"])
        self._tell(RELEASES, versions["repository"])
        self._tell(INBOX, versions["inbox"])
        for look in self._more:
            self._tell(look.topic, look.version)
        source = f"{self._settings.store.url} {self._settings.broker.fleet}"
        if all(versions[name] for name in sources):
            self._renew(digest_of([source, *(versions[name] for name in sources)]))
        if fault is not None:
            raise fault

    def _tell(self, topic: str, *versions: str) -> None:
        """Tell the pages what was read; a version that is empty was not."""
        if all(versions):
            self._streams.tell(topic, versions[0] if len(versions) == 1 else digest_of(versions))

    def _look_at_all(self) -> EdgeError | None:
        """Look at all; return what stood in the way. One that is denied does not keep back the others."""
        fault: EdgeError | None = None
        for look in self._looks:
            try:
                look.look()
            except TransportError as e:  # nothing else would be answered either, after as long a time
                return e
            except EdgeError as e:
                fault = fault or e
        return fault

    def _open(self) -> list[Look]:
        store = open_store(self._settings.store)
        return looks_at(store)

    def _versions(self) -> dict[str, str]:
        return {look.name: look.version for look in self._looks}

    def _renew(self, version: str) -> None:
        """Have the index made anew, one at a time, unless it is of this version or failed a moment ago."""
        if self._loading is not None and not self._loading.done():
            return
        has_failed = version == self._failed_version and time.monotonic() < self._load_again_at
        if version != self._index.version and not has_failed:
            self._index.is_loading = True
            self._loading = asyncio.get_running_loop().create_task(self._load(version))

    async def _load(self, version: str) -> None:
        rows = self._outline.rows()
        try:
            await self._in(self._loader, lambda: self._index.load(version, rows))
            self._failed_version, self._load_failures = "", 0
            self._note(_INDEX, "")
        except Exception as e:  # noqa: BLE001 - the index before stays, and the pages say so
            _log(e)
            self._load_failures += 1
            self._failed_version = version
            self._load_again_at = time.monotonic() + _backoff_s(self._load_failures, _LOAD_BACKOFF_AT_MOST_S)
            self._note(_INDEX, f"not all is shown: {_words(e)}")
        self._tell_state()
        self._awake.set()  # the bucket may have moved on meanwhile
        if self._filling is None and not self._failed_version:
            self._filling = asyncio.get_running_loop().create_task(self._fill_past())

    async def _fill_past(self) -> None:
        """Read what older snapshots tell, once."""
        try:
            if await self._in(self._filler, self._index.fill_past):
                self._past = "past"
                self._tell_state()
        except Exception as e:  # noqa: BLE001 - the chart begins later then
            _log(e)

    def _tell_state(self) -> None:
        """Tell which index the pages see, and what is wrong with it."""
        state = self._index.state()
        told = [state.version] if state.version or state.faults else []
        if state.faults or state.is_old or self._past:
            told += ["old" if state.is_old else "", self._past, *state.faults]
        if told:
            self._streams.tell(SNAPSHOT, told[0] if len(told) == 1 else digest_of(told))

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        text = f"the bucket was not read: {_words(error)}"
        if self._index.faults.get(_BUCKET) != text:
            _log(error)
        self._note(_BUCKET, text)

    def _note(self, what: str, text: str) -> None:
        if what == _BUCKET and not text:
            self._failures = 0
        faults = {name: words for name, words in self._index.faults.items() if name != what}
        self._index.faults = {**faults, what: text} if text else faults

    def _pause_s(self) -> float:
        pause_s = self._settings.board.look_s * (1 if len(self._streams) else IDLE_LOOKS)
        if self._failures:
            return max(pause_s, _backoff_s(self._failures))
        return pause_s

    async def _in(self, thread: concurrent.futures.Executor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)


class _Outline:
    """The fleet without its devices, as it was read last; for all threads."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._repository: ReleaseRepository | None = None
        self._view: FleetView | None = None
        self._confirmed_at = float("-inf")
        self._reading = SharedReading("outline", self.read)

    def read(self) -> FleetView:
        """Read it."""
        with self._lock:
            if self._repository is None:
                self._repository = ReleaseRepository(open_store(self._settings.store), self._settings.trust)
            view = read_outline(self._settings, self._repository)
            self._confirmed_at, self._view = time.monotonic(), view
            return view

    def confirm(self) -> None:
        """Note that what was read is what there still is."""
        if self._view is not None:
            self._confirmed_at = time.monotonic()

    def view(self, fresh_s: float) -> FleetView:
        """Return it, read anew where no look confirmed it lately; a slow store is waited for a moment."""
        known, age_s = self._view, time.monotonic() - self._confirmed_at
        if known is not None and age_s <= fresh_s:
            return dataclasses.replace(known, now=time.time())
        fault = ""
        try:
            view = self._reading.get(_FIRST_WAIT_S if known is None else _WAIT_S)
        except EdgeError as e:
            if known is None:
                raise
            view, fault = None, str(e)
        if view is not None:
            return dataclasses.replace(view, now=time.time())
        if known is None:
            msg = f"the store did not answer within {_FIRST_WAIT_S:g} s"
            raise TransportError(msg)
        fault = fault or f"the store answers slowly: what is shown was read {age_in_words(age_s)}"
        return dataclasses.replace(known, now=time.time(), faults=(*known.faults, fault))

    def known(self) -> FleetView | None:
        view = self._view
        return None if view is None else dataclasses.replace(view, now=time.time())

    def rows(self) -> int | None:
        """Return about how many rows the fleet has; None: unknown."""
        view = self._view
        if view is None:
            return None
        if view.head is None:
            return 0 if view.registry is None and not view.faults else None
        return max(view.head.devices, view.head.registered)


def _backoff_s(failures: int, at_most_s: float = _BACKOFF_AT_MOST_S) -> float:
    return float(min(_BACKOFF_S * 2 ** min(failures - 1, 10), at_most_s))


def _words(error: Exception) -> str:
    if isinstance(error, EdgeError):
        return one_line(without_passwords(str(error)))
    return f"{type(error).__name__}, see the log"


def _log(error: Exception) -> None:
    if isinstance(error, EdgeError):
        logger.warning("%s", _words(error))
    else:
        logger.error("the watcher met what it does not know", exc_info=error)
