"""The index as the pages ask it; every thread has a connection of its own."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.errors import TransportError
from luigi_tasks.board.index.child import Child
from luigi_tasks.board.index.database import FILE, DamagedIndexError, open_index, read_content
from luigi_tasks.board.index.history import read_mix
from luigi_tasks.board.index.loading import load, source_of
from luigi_tasks.board.index.past import fill_past
from luigi_tasks.board.index.queries import Finder, find_device
from luigi_tasks.board.index.records import Counts, IndexState, TablePart
from luigi_tasks.fleet.snapshots import Snapshot
from luigi_tasks.fleet.view import FleetView, snapshot_doubts, snapshot_in_words

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

    from luigi_tasks.board.index.records import DeviceDetail, DeviceQuery, IndexContent, Mix
    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")

logger = logging.getLogger("edge-fleet")

# Fleets up to this are read in a thread: a process of its own takes a second to start.
SMALL_ROWS = 2000
# A million devices take some minutes.
LOAD_TIMEOUT_S = 1800.0


class Index:
    """The newest index; another one takes its place while pages ask.

    Args:
        settings: All settings.
        folder: Where it lies.

    Attributes:
        faults: What stands in the way of a newer one, by what is tried; the pages show it.
        is_loading: Whether a newer one is being made.
    """

    def __init__(self, settings: PipelineSettings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._open = threading.local()
        self._content: IndexContent | None = None
        self._generation = 0
        self._finder = Finder()
        self._child, self._past_child = Child(LOAD_TIMEOUT_S), Child(LOAD_TIMEOUT_S)
        self.faults: dict[str, str] = {}
        self.is_loading = False

    @property
    def version(self) -> str:
        """Version of the index that the pages see; empty: there is none."""
        return self._content.version if self._content is not None else ""

    @property
    def rows(self) -> int:
        """Rows in it."""
        return self._content.rows if self._content is not None else 0

    def find(self) -> None:
        """Take what lies in the folder, if it is of this fleet."""
        try:
            connection = open_index(self._folder / FILE)
            content = read_content(connection)
            connection.close()
        except FileNotFoundError:
            return
        except DamagedIndexError as e:
            logger.warning("%s: damaged (%s); made anew", self._folder / FILE, e)
            return
        if content.source == source_of(self._settings):
            self._take(content)

    def load(self, version: str, rows: int | None) -> None:
        """Make the index of a version, unless another board with the same folder just did.

        Args:
            version: Names what was looked at.
            rows: Rows that are expected; None: unknown.
        Raises: LoadError, TransportError, SettingsError, TrustError; the index before stays then.
        """
        self.is_loading = True
        try:
            self.find()
            if self.version == version:
                return
            if rows is not None and rows <= SMALL_ROWS:
                self._take(load(self._settings, self._folder, version))
            else:
                self._take(self._child.load(self._settings, self._folder, version))
        finally:
            self.is_loading = False

    def fill_past(self) -> int:
        """Fill the history with what older snapshots tell; return how many were read. Raises: as `load`."""
        if self.rows <= SMALL_ROWS:
            return fill_past(self._settings, self._folder)
        return self._past_child.fill_past(self._settings, self._folder)

    def close(self) -> None:
        """End the children, if there are any."""
        self._child.close()
        self._past_child.close()

    def state(self) -> IndexState:
        """Return which moment the pages show, and how complete it is."""
        content = self._content
        faults = tuple(self.faults.values())
        if content is None:
            words = "" if faults else "The fleet is being read for the first time"
            return IndexState(words=words, is_loading=not faults, faults=faults)
        view = self._view(content)
        head = content.head
        return IndexState(
            version=content.version,
            words=snapshot_in_words(view),
            taken_at=head.taken_at if head else None,
            collector=head.collector if head else "",
            registered=self.counts().devices,
            heard=head.heard if head else 0,
            rows=content.rows,
            has_registry=content.has_registry,
            is_old=view.is_old,
            doubts=snapshot_doubts(view),
            is_loading=self.is_loading,
            rejected=head.rejected if head else {},
            faults=tuple(dict.fromkeys((*faults, *content.faults))),
            notes=content.notes,
        )

    def devices(self, query: DeviceQuery) -> TablePart:
        """Return a part of the table of devices.

        Raises: TransportError if the index is damaged; it is made anew then.
        """
        if self._content is None:
            return TablePart(query=query, total=0, devices=())
        return self._ask(lambda connection, content: self._finder.find(connection, query, content))

    def device(self, device: str) -> tuple[DeviceDetail, ...]:
        """Return the channels of a device, by name; empty: nothing is known of it. Raises: as `devices`."""
        if self._content is None:
            return ()
        return self._ask(lambda connection, _: find_device(connection, device))

    def counts(self, channel: str = "") -> Counts:
        """Return the counts of a channel; of the empty name those of the whole fleet."""
        content = self._content
        return Counts() if content is None else content.counts.get(channel) or Counts()

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that a device follows or reported on."""
        content = self._content
        return () if content is None else tuple(name for name in content.counts if name)

    def mix(self, channel: str = "", since_s: float = 86400.0) -> Mix:
        """Return the devices by release over time.

        Args:
            channel: A channel; empty: the whole fleet.
            since_s: How far back, seconds before the newest snapshot.
        """
        content = self._content
        newest = content.head.taken_at if content is not None and content.head is not None else time.time()
        return read_mix(self._folder, channel, newest - since_s)

    def _view(self, content: IndexContent) -> FleetView:
        snapshot = Snapshot(content.head, ()) if content.head is not None else None
        return FleetView(
            fleet=content.fleet,
            now=time.time(),
            snapshot=snapshot,
            notes=content.notes,
            snapshot_s=self._settings.fleet.snapshot_s,
        )

    def _take(self, content: IndexContent) -> None:
        self._content = content
        self._generation += 1

    def _ask(self, question: Callable[[sqlite3.Connection, IndexContent], T]) -> T:
        try:
            return question(*self._connection())
        except (DamagedIndexError, FileNotFoundError) as e:
            self._content, self._open = None, threading.local()
            (self._folder / FILE).unlink(missing_ok=True)
            msg = f"{self._folder / FILE}: damaged ({e}); it is made anew: load the page again in a moment"
            raise TransportError(msg) from e

    def _connection(self) -> tuple[sqlite3.Connection, IndexContent]:
        """Return this thread's connection to the newest index, and what that is made of."""
        known: tuple[int, sqlite3.Connection, IndexContent] | None = getattr(self._open, "known", None)
        generation = self._generation
        if known is None or known[0] != generation:
            connection = open_index(self._folder / FILE)
            known = (generation, connection, read_content(connection))
            self._open.known = known
        return known[1], known[2]
