"""Trials of pictures with releases: what the page *Try* does, without HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.errors import DeviceError, InputError, SettingsError
from edge_client.contract.picture_file import MAX_FILE_BYTES
from edge_client.contract.text import excerpt
from edge_client.contract.times import utc_now
from luigi_tasks.board.pools import READ_S
from luigi_tasks.board.trial.answers import (
    BY_CHANNEL,
    TriedPicture,
    TryModel,
    answer_of,
    document_of,
    fault_of,
    picture_of,
    read_choices,
    resolve,
    short,
)
from luigi_tasks.board.trial.release_folders import ReleaseFolders
from luigi_tasks.board.trial.sent_frames import FRAME_SIDE, SentFrame, send_frame
from luigi_tasks.board.trial.upload import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.board.pictures.decoding import PictureMemory, Pictures
    from luigi_tasks.board.pictures.orders import PictureReply, ReleaseFolder
    from luigi_tasks.board.pools import Pool
    from luigi_tasks.board.releases.known import Published
    from luigi_tasks.board.trial.answers import Choice
    from luigi_tasks.board.trial.upload import FormFile
    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")

if TYPE_CHECKING:
    _Asked = tuple[Choice, ReleaseDocument, ReleaseFolder]

_RUNTIMES = ("ai_edge_litert", "tflite_runtime")
_THUMBNAIL_SIDE = 480
# A release that nobody tried yet is downloaded first.
_DOWNLOAD_S = 60.0


def check_answered(reply: PictureReply) -> PictureReply:
    """Return a reply in which a release says something.

    Raises: DeviceError if none does.
    """
    faults = [f"release {short(one.release)}: {one.fault}" for one in reply.answers if one.fault]
    if len(faults) == len(reply.answers):
        raise DeviceError("; ".join(faults))
    return reply


class Trials:
    """Pictures that come, releases that answer.

    Attributes:
        uploads: What comes.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        folder: Path,
        pictures: Pictures,
        threads: Pool,
        read: Callable[[], Published],
    ) -> None:
        """Read nothing yet.

        Args:
            settings: Settings of all sections.
            folder: Where releases are kept.
            pictures: What decodes and classifies.
            threads: Where the store is read.
            read: Returns the signed releases.
        """
        self.uploads = Uploads()
        self._read = read
        self._channel = settings.release.channel
        self._folders = ReleaseFolders(folder)
        self._pictures = pictures
        self._threads = threads

    async def model(self) -> TryModel:
        """Return what can be chosen.

        Raises: TransportError; TrustError.
        """
        runtime = any(importlib.util.find_spec(name) is not None for name in _RUNTIMES)
        try:
            return await self._in_thread(lambda: self._read_model(runtime=runtime), READ_S)
        except SettingsError as e:
            return TryModel(self._channel, problem=str(e), runtime=runtime, limit_bytes=MAX_FILE_BYTES)

    def _read_model(self, *, runtime: bool) -> TryModel:
        published = self._read()
        channels, releases = read_choices(published, self._channel)
        return TryModel(
            self._channel, channels, releases, len(published.order), "", runtime, limit_bytes=MAX_FILE_BYTES
        )

    async def answer(
        self,
        memory: PictureMemory,
        files: Sequence[FormFile],
        values: Sequence[str],
        *,
        shows: bool,
        top: int,
    ) -> tuple[TriedPicture, ...]:
        """Return what releases say of pictures.

        Args:
            memory: Has the pictures; it stays open until this returned.
            files: Where they are.
            values: Which releases, see `Choice`.
            shows: Whether pictures come back: a thumbnail, and what each model saw.
            top: So many labels of each release; 0: all.
        Raises: InputError for a choice that there is not, and for a single picture that cannot be decoded;
            BusyError, DeviceError, TransportError, TrustError.
        """
        with contextlib.ExitStack() as held:
            asked = await self._in_thread(lambda: self._choose(held, values))
            side = _THUMBNAIL_SIDE if shows else 0
            found = []
            for file in files:
                try:
                    reply = check_answered(await self._work(memory, file, asked, side))
                except (InputError, DeviceError) as e:
                    if len(files) == 1:
                        raise
                    found.append(fault_of(file.name, file.size_bytes, e))
                    continue
                answers = tuple(
                    answer_of(choice, document, one, shows=shows, top=top)
                    for (choice, document, _), one in zip(asked, reply.answers, strict=True)
                )
                found.append(picture_of(file.name, file.size_bytes, reply, answers))
        return tuple(found)

    async def send(self, memory: PictureMemory, file: FormFile, value: str) -> SentFrame:
        """Write a picture into the inbox, with what a release says of it.

        Args:
            memory: Has the picture; it stays open until this returned.
            file: Where it is.
            value: Which release, see `Choice`.
        Raises: As `answer`.
        """
        with contextlib.ExitStack() as held:
            asked = await self._in_thread(lambda: self._choose(held, [value]))
            reply = check_answered(await self._work(memory, file, asked, FRAME_SIDE))
            channel = value.removeprefix(BY_CHANNEL) if value.startswith(BY_CHANNEL) else ""
            return await self._in_thread(
                lambda: send_frame(self._read().state.store, reply, channel, utc_now())
            )

    def _choose(self, held: contextlib.ExitStack, values: Sequence[str]) -> list[_Asked]:
        published = self._read()
        asked = []
        for choice in [resolve(published, one) for one in values]:
            document = document_of(published, choice.release)
            folder = held.enter_context(self._folders.holding(published.state, choice.release))
            asked.append((choice, document, folder))
        return asked

    async def _work(
        self, memory: PictureMemory, file: FormFile, asked: Sequence[_Asked], side: int
    ) -> PictureReply:
        return await self._pictures.work(
            memory,
            name=excerpt(file.name) or "the picture",
            start=file.start,
            size_bytes=file.size_bytes,
            side=side,
            releases=tuple(folder for _, _, folder in asked),
        )

    async def _in_thread(self, work: Callable[[], T], limit_s: float = _DOWNLOAD_S) -> T:
        return await self._threads.run(work, limit_s)
