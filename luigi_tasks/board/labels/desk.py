"""The desk of the board: its labelling folder, what lists the inbox into it, and copies of the pictures."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import one_line
from luigi_tasks.board.labels.grid import DOUBTFUL, Ordered, find_source
from luigi_tasks.board.labels.grid import INBOX as INBOX_TAB
from luigi_tasks.board.labels.lister import AGAIN_S, AGE_S, Lister
from luigi_tasks.board.labels.thumbnails import Thumbnails
from luigi_tasks.board.live.streams import INBOX, LABELS
from luigi_tasks.labelling.desk import OF_DATASET, Desk
from luigi_tasks.labelling.labels_file import PICTURES
from luigi_tasks.labelling.taken import TAKEN

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.board.live.streams import Streams
    from luigi_tasks.board.pictures.decoding import Pictures
    from luigi_tasks.board.pools import Pool
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger("edge-fleet")

_PICTURE_BYTES = 64 << 20
_READ_S = 20.0


class LabelDesk:
    """What the page Label stands on.

    Args:
        settings: All settings.
        folder: The board's.
        streams: Where changes are told.
        pool: Where disks and stores are read.

    Attributes:
        desk: The labelling folder.
        ordered: Its pictures in their order.
        lister: Lists the inbox into it.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        folder: Path,
        streams: Streams,
        pool: Pool,
    ) -> None:
        self.desk = Desk(folder / "labelling")
        self.ordered = Ordered(self.desk)
        self.lister = Lister(self.desk.folder, self._listed)
        self._settings = settings
        self._streams = streams
        self._pool = pool
        self._thumbnails = Thumbnails(folder / "thumbnails")
        self._loop: asyncio.AbstractEventLoop | None = None

    def refresh(self, tab: str = INBOX_TAB) -> None:
        """List the inbox if it may have changed; at once from the event loop.

        Args:
            tab: What is looked at: nothing tells that there are new doubtful labels.
        """
        self._loop = asyncio.get_running_loop()
        taken = self.desk.folder / TAKEN
        version: object = None
        with contextlib.suppress(OSError):
            version = taken.stat().st_mtime_ns
        age_s = AGAIN_S if tab == DOUBTFUL else AGE_S
        self.lister.start_if_due((self._streams.versions.get(INBOX, ""), version), age_s)

    def tell(self, place: int) -> None:
        """Tell open pages that somebody decided; from the event loop.

        Args:
            place: Where the decisions end.
        """
        self._streams.tell(LABELS, f"{self.lister.state.ended_at}-{place}")

    async def thumbnail(self, pictures: Pictures, sha256: str, side: int) -> bytes:
        """Return a small copy of a picture that the page has, see `has`, as JPEG.

        Raises: InputError if it cannot be shown; TransportError; DeviceError.
        """
        found = await self._pool.run(lambda: self._thumbnails.find(sha256, side), _READ_S)
        if found is not None:
            return found
        name, data = await self._pool.run(lambda: self._read(sha256), _READ_S)
        try:
            made = await pictures.thumbnail(data, side, name)
        except InputError as e:
            self._thumbnails.refuse(sha256, str(e))
            raise
        await self._pool.run(lambda: self._thumbnails.keep(sha256, side, made), _READ_S)
        return made

    def has(self, sha256: str) -> bool:
        """Whether the page has such a picture."""
        return find_source(self.desk, sha256) is not None

    def _read(self, sha256: str) -> tuple[str, bytes]:
        """Return name and content of a picture that the page has."""
        found = find_source(self.desk, sha256)
        if found is None:
            msg = "no such picture here"
            raise InputError(msg)
        name, source = found
        fault = getattr(source, "fault", "")
        if fault:
            raise InputError(fault)
        data = self._read_dataset(source.path) if name.startswith(OF_DATASET) else self._read_copy(sha256)  # type: ignore[union-attr]
        if hashlib.sha256(data).hexdigest() != sha256:
            msg = "it changed since it was listed"
            raise InputError(msg)
        return name, data

    def _read_copy(self, sha256: str) -> bytes:
        try:
            return (self.desk.folder / PICTURES / f"{sha256}.jpg").read_bytes()
        except OSError as e:
            msg = f"its copy cannot be read ({e.strerror}); it is listed again within a minute"
            raise InputError(msg) from e

    def _read_dataset(self, path: str) -> bytes:
        from luigi_tasks.labelling.class_folders import read_picture  # noqa: PLC0415 - lists archives

        data = read_picture(self._settings.dataset, self._settings.store, path)
        if data is None or len(data) > _PICTURE_BYTES:
            msg = "gone from the dataset" if data is None else "too large to be shown"
            raise InputError(msg)
        return data

    def _listed(self) -> None:
        """Tell open pages that the folder has changed; from any thread."""
        try:
            wanted = {one.sha256 for one in self.desk.frames().values()}
            wanted |= {one.sha256 for one in self.desk.pictures().values()}
            if not self.lister.state.is_running:
                self._thumbnails.keep_only(wanted)
            place, _ = self.desk.since(-1)
        except EdgeError as e:
            logger.warning("Label: %s", one_line(str(e)))
            place = 0
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the board ends
                self._loop.call_soon_threadsafe(self.tell, place)
