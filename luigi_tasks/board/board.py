"""What the pages stand on: settings, threads for what blocks, rights, and the stream of changes."""

from __future__ import annotations

import dataclasses
import functools
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from luigi_tasks.board.access.access import open_access
from luigi_tasks.board.access.acts_told import tell_act
from luigi_tasks.board.access.audit import Audit
from luigi_tasks.board.index.index import Index
from luigi_tasks.board.known_types import make_types_known
from luigi_tasks.board.labels.desk import LabelDesk
from luigi_tasks.board.live.streams import RELEASES, ROLLOUTS, Streams
from luigi_tasks.board.live.watch import Watch
from luigi_tasks.board.pictures.decoding import Pictures
from luigi_tasks.board.pools import Pool
from luigi_tasks.board.releases.reader import ReleaseReader
from luigi_tasks.board.runs.luigid import Luigid
from luigi_tasks.board.runs.runs import Runs
from luigi_tasks.board.trial.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.access.access import Access
    from luigi_tasks.board.releases.known import Published
    from luigi_tasks.board.rollouts.reading import RolloutReader
    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Board:
    """The parts of a board.

    Attributes:
        settings: Settings of all sections.
        access: Who may do what.
        audit: History of what was done.
        streams: Pages that are open, and what is told to them.
        index: The newest snapshot and the registry, to be asked.
        watch: Looks at the bucket, and tells the pages what changed.
        labels: The desk at which people label.
        pictures: What decodes pictures; nothing else does.
        luigid: Steps of the pipeline's runs.
        pools: Threads for what blocks, by part of the board.
    """

    settings: PipelineSettings
    access: Access
    audit: Audit
    streams: Streams
    index: Index
    watch: Watch
    labels: LabelDesk
    pictures: Pictures
    luigid: Luigid = dataclasses.field(default_factory=Luigid)
    pools: dict[str, Pool] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def rollouts(self) -> RolloutReader:
        """Reader of rollouts, with what it keeps."""
        from luigi_tasks.board.rollouts.reading import RolloutReader  # noqa: PLC0415 - imports python-tuf

        return RolloutReader(self.settings, self.index)

    @functools.cached_property
    def runs(self) -> Runs:
        """Runs that were started here."""
        return Runs(self.folder)

    @property
    def folder(self) -> Path:
        """Where the board keeps its files."""
        return Path(self.settings.board.state_dir).expanduser()

    @property
    def prefix(self) -> str:
        """Path below which the browser sees the pages; begins and ends with a slash."""
        path = urllib.parse.urlsplit(self.settings.board.url).path.strip("/")
        return f"/{path}/" if path else "/"

    def fleet_view(self) -> FleetView:
        """Return pointers and rollouts as they are now, without devices: those are in the index; it blocks.

        Raises: TransportError, SettingsError, TrustError while the bucket cannot be read.
        """
        return self.watch.view()

    def look_now(self, *topics: str) -> None:
        """Look at the bucket at once, since something was changed; all open pages are told.

        Args:
            topics: What was changed, see `streams`.
        """
        self.watch.look_now(*topics)

    @functools.cached_property
    def releases(self) -> ReleaseReader:
        """What is published, read once for all pages."""
        return ReleaseReader(self.settings)

    def published(self) -> Published:
        """Return what is published, as new as what the board was told of; it blocks.

        Raises: TrustError if the repository cannot be trusted; TransportError; SettingsError.
        """
        told = self.streams.versions
        return self.releases.read(f"{told.get(RELEASES, '')} {told.get(ROLLOUTS, '')}")

    @functools.cached_property
    def trials(self) -> Trials:
        """Pictures that people try."""
        return Trials(self.settings, self.folder / "releases", self.pictures, Pool("try"), self.published)

    async def in_thread(self, work: Callable[[], T], part: str = "the board", limit_s: float = 60.0) -> T:
        """Return what a function that blocks returns; it runs in a thread.

        Args:
            work: The function.
            part: Whose threads it takes: those of another part may all hang in a store that is away.
            limit_s: Time to wait for it, seconds.
        Raises: TransportError if it takes longer, or too many wait already.
        """
        if part not in self.pools:
            self.pools[part] = Pool(part)
        return await self.pools[part].run(work, limit_s)


def open_board(settings: PipelineSettings) -> Board:
    """Return the board of these settings; only its folder is read.

    Raises: SettingsError, DeviceError.
    """
    make_types_known()
    folder = Path(settings.board.state_dir).expanduser()
    streams, index, pictures = Streams(), Index(settings, folder), Pictures()
    return Board(
        settings=settings,
        access=open_access(settings.board, folder),
        audit=Audit(folder, lambda act: tell_act(settings, act)),
        streams=streams,
        index=index,
        watch=Watch(settings, index, streams),
        labels=LabelDesk(settings, folder, streams, Pool("pictures of label")),
        pictures=pictures,
    )
