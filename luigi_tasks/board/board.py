"""What the pages stand on: settings, threads for what blocks, rights, and the stream of changes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from luigi_tasks.board.clients import Clients
from luigi_tasks.board.guard import Guard
from luigi_tasks.board.rights import Rights
from luigi_tasks.board.state import read_secret
from luigi_tasks.board.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")

_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Board:
    """The parts of a board.

    Attributes:
        settings: Settings of all sections.
        rights: Who may do what.
        clients: Where requests come from.
        guard: What every request must fulfil.
        streams: Pages that are open, and what is told to them.
        threads: Where what blocks is done: the store, SQLite, luigid.
    """

    settings: PipelineSettings
    rights: Rights
    clients: Clients
    guard: Guard
    streams: Streams
    threads: concurrent.futures.ThreadPoolExecutor

    @property
    def folder(self) -> Path:
        """Where the board keeps its files."""
        return Path(self.settings.board.state_dir).expanduser()

    @property
    def prefix(self) -> str:
        """Path below which the browser sees the pages; begins and ends with a slash."""
        path = urllib.parse.urlsplit(self.settings.board.url).path.strip("/")
        return f"/{path}/" if path else "/"

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Return what a function that blocks returns; it runs in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)


def open_board(settings: PipelineSettings) -> Board:
    """Return the board of these settings; only its folder is read.

    Raises: SettingsError, DeviceError.
    """
    secret = read_secret(Path(settings.board.state_dir).expanduser())
    guard = Guard(settings.board, secret)
    threads = concurrent.futures.ThreadPoolExecutor(_THREADS, "board")
    return Board(settings, Rights(settings.board), Clients(settings.board), guard, Streams(), threads)
