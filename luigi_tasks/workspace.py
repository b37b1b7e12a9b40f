"""Resources of the steps of one run: store, caches, pictures, signed repository and broker.

    workspace = open_workspace(load_settings(pictures="~/pictures"))

Everything is opened at first use, and kept: a workspace is made for one listing of the pictures.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks import addresses
from luigi_tasks.backbone.weights import weights_digest
from luigi_tasks.dataset.archive import shown_archive
from luigi_tasks.dataset.group_names import group_names_digest
from luigi_tasks.dataset.listing import Listing, listing_digest
from luigi_tasks.dataset.presets import name_of_pictures
from luigi_tasks.dataset.records import Inventory, Plan
from luigi_tasks.dataset.shards import PictureLog, make_plan
from luigi_tasks.dataset.sources import PictureSource, open_source
from luigi_tasks.evidence.ledger import Ledger, WorkTrust
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.logs import LUIGI_LOGGER
from luigi_tasks.progress import Progress, ignore_progress
from luigi_tasks.storage.cache import ContentCache
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from securesystemslib.signer import Key, Signer

    from luigi_tasks.dataset.pixel_cache import PixelCache
    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Entry, LeftOut, Picture, ReadPicture, Snapshot
    from luigi_tasks.fleet.actions import Fleet
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger(LUIGI_LOGGER)


def open_workspace(settings: PipelineSettings, listing: str = "") -> Workspace:
    """Return the workspace of a run; nothing is read before it is asked for.

    Args:
        settings: The settings of the run.
        listing: Digest of the list of pictures that the run is for; empty: the pictures as they are now.
    """
    return Workspace(settings, listing)


class Workspace:
    """Store, caches, pictures, signed repository and broker of one run.

    Attributes:
        settings: The settings of the run.
    """

    def __init__(self, settings: PipelineSettings, listing: str = "") -> None:
        self.settings = settings
        self._expected = listing
        self._is_planned = False

    @functools.cached_property
    def store(self) -> Store:
        """Where results and releases lie."""
        return open_store(self.settings.store)

    @functools.cached_property
    def ledger(self) -> Ledger:
        """The store's results, signed with the work key; unsigned where there is no `[trust] root`."""
        trust = self.settings.trust
        if not trust.root.exists():
            return Ledger(self.store, None, self.settings)

        def keys() -> Mapping[str, Key]:
            from luigi_tasks.release.signing import work_keys  # noqa: PLC0415 - imports python-tuf

            return work_keys(self.repository.roots)

        def signer() -> Signer:
            from luigi_tasks.release.signing import open_work_signer  # noqa: PLC0415 - as above

            return open_work_signer(self.repository.roots[-1].signed, trust)

        def disowned() -> frozenset[str]:
            from luigi_tasks.release.signing import disowned_work_keys  # noqa: PLC0415 - as above

            return disowned_work_keys(self.repository.roots)

        opened = WorkTrust(functools.cache(keys), functools.cache(signer), functools.cache(disowned))
        return Ledger(self.store, opened, self.settings)

    @functools.cached_property
    def cache(self) -> ContentCache:
        """This machine's copies of the store's objects, by digest."""
        return ContentCache(self.settings.dataset.cache_dir / "objects")

    # Pictures

    @functools.cached_property
    def source(self) -> PictureSource:
        """The dataset; an archive or a preset is downloaded and unpacked at first use."""
        return open_source(self.settings.dataset, self.settings.store)

    @property
    def shown_url(self) -> str:
        """The dataset's address as messages may show it."""
        return shown_archive(self.settings.dataset.url)

    @functools.cached_property
    def listed(self) -> Listing:
        """The listing of the dataset, whose layout was found."""
        url = self.shown_url
        listed = self.source.listing()
        if words := listed.find_layout(url).in_words():  # before anything is read
            logger.info("%s: %s", url, words)
        return listed

    @functools.cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The list of pictures.

        Raises: InputError if the pictures are not those of the listing that the run is for.
        """
        entries = self.listed.pictures
        if self._expected and self._digest_listing() != self._expected:
            msg = f"{self.shown_url}: pictures came or went since they were listed; run again"
            raise InputError(msg)
        return entries

    @functools.cached_property
    def listing(self) -> str:
        """Digest of the list of pictures."""
        return self._expected or self._digest_listing()

    def _digest_listing(self) -> str:
        layout = self.listed.find_layout(self.shown_url)
        return listing_digest(self.listed.pictures, self.listed.empty_classes(layout))

    @property
    def pictures_name(self) -> str:
        """Name of the dataset in the keys of its results."""
        return name_of_pictures(self.settings.dataset.url)

    @functools.cached_property
    def identity(self) -> addresses.Identity:
        """Values that determine the addresses of this run's results."""
        settings = self.settings
        return addresses.Identity(
            self.pictures_name,
            self.listing,
            settings,
            weights_digest(settings.model),
            group_names_digest(settings.dataset),
        )

    @functools.cached_property
    def log(self) -> PictureLog:
        """Inventories of the dataset that earlier runs saved."""
        return PictureLog(self.ledger, self.pictures_name)

    @functools.cached_property
    def plan(self) -> Plan:
        """Plan of reading the listing: the one recorded with its snapshot, else a new one."""
        document = self._plan_document
        if document.exists():
            plan = document.load(Plan)
            if self.log.has(plan.inventory):
                return plan
            # The inventory was deleted from the store: read all pictures again.
        self._is_planned = True
        size = self.settings.dataset.shard_pictures
        return make_plan(self.log, self.entries, self.pictures_name, size)

    @contextlib.contextmanager
    def keeping(self, pictures: tuple[ReadPicture, ...]) -> Iterator[Callable[[Snapshot], None]]:
        """Save what was read when the block ends, with the groups and sides of the snapshot that it made.

        What was read stays known where the pictures make no classifier.
        """
        kept = Inventory(
            pictures=pictures, holdout_percent=self.log.load(self.plan.inventory).holdout_percent
        )

        def place(snapshot: Snapshot) -> None:
            from luigi_tasks.dataset.groups import describe_groups, remember  # noqa: PLC0415 - as below

            nonlocal kept
            for line in describe_groups(snapshot):
                logger.info("Pictures: %s", line)
            percent = self.settings.dataset.holdout_percent
            kept = Inventory(pictures=remember(pictures, snapshot), holdout_percent=percent)

        try:
            yield place
        except InputError:
            try:
                self._keep_inventory(kept)
            except TransportError as e:
                logger.warning("The inventory could not be saved: %s", e)
            raise
        self._keep_inventory(kept)

    def _keep_inventory(self, inventory: Inventory) -> None:
        """Save an inventory, and the plan: a worker that comes later follows it too."""
        if inventory != self.log.load(self.plan.inventory):
            self.log.save(addresses.inventory(self.identity, self.plan.shards), inventory)
        if self._is_planned:
            self._plan_document.save_list(self.plan, replace=True)

    def passed_over(self) -> tuple[LeftOut, ...]:
        """Return what the listing leaves out: files that are no pictures, and empty classes."""
        return self.listed.passed_over(self.listed.find_layout(self.shown_url))

    @property
    def left_out_place(self) -> str:
        """Address of the list of what the snapshot leaves out."""
        return self.store.url(addresses.left_out(self.identity))

    def keep_left_out(self, left_out: Sequence[LeftOut]) -> str:
        """Save the list of what the snapshot leaves out, and name it in the log; return its address."""
        from luigi_tasks.dataset.left_out import describe, write_csv  # noqa: PLC0415 - as below

        if left_out:
            key = addresses.left_out(self.identity)
            self.store.put(key, write_csv(left_out), content_type="text/csv; charset=utf-8")
        for line in describe(left_out, self.left_out_place):
            logger.warning("%s", line)
        return self.left_out_place

    def describe(self, snapshot: Snapshot) -> str:
        """Return a snapshot in one line, with what it leaves out and where that is listed."""
        from luigi_tasks.dataset.groups import describe_groups  # noqa: PLC0415 - as below
        from luigi_tasks.dataset.left_out import count_reasons  # noqa: PLC0415 - as below

        text = f"{len(snapshot.pictures)} pictures of {len(snapshot.labels)} classes"
        words = "; ".join([text, *[snapshot.layout] * bool(snapshot.layout), *describe_groups(snapshot)])
        if not snapshot.left_out:
            return words
        return f"{words}; left out: {count_reasons(snapshot.left_out)}, listed in {self.left_out_place}"

    @property
    def _plan_document(self) -> StoredDocument:
        return StoredDocument(self.ledger, addresses.plan(self.identity))

    def pixel_cache(self, height: int, width: int) -> PixelCache:
        """Return this machine's decoded pictures of one size."""
        from luigi_tasks.dataset.pixel_cache import PixelCache  # noqa: PLC0415 - a run with nothing to do

        return PixelCache(self.settings.dataset.cache_dir / "pixels", height, width)

    def pixel_loader(self, progress: Progress = ignore_progress) -> PixelLoader:
        """Return a function that loads pictures: (pictures, height, width) to (N, height, width, 3) uint8."""
        from luigi_tasks.dataset.pixels import load_pixels  # noqa: PLC0415 - as above

        def load(
            pictures: Sequence[Picture] | Sequence[ReadPicture], height: int, width: int
        ) -> NDArray[np.uint8]:
            cache = self.pixel_cache(height, width)
            return load_pixels(self.source, pictures, height, width, progress, cache)

        return load

    # Releases

    @functools.cached_property
    def repository(self) -> ReleaseRepository:
        """The signed repository, for changes."""
        from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - imports python-tuf

        return ReleaseRepository(self.store, self.settings.trust, in_use=self._in_use)

    def _in_use(self, state: RepositoryState) -> frozenset[str] | None:
        from luigi_tasks.fleet.in_use import find_in_use  # noqa: PLC0415 - where one is to be dropped

        return find_in_use(self.settings, state)

    @functools.cached_property
    def fleet(self) -> Fleet:
        """The rollouts of the fleet."""
        from luigi_tasks.fleet.actions import Fleet  # noqa: PLC0415 - as above
        from luigi_tasks.fleet.opening import documents_of  # noqa: PLC0415 - as above

        return Fleet(self.settings, documents_of(self.repository), self.repository, self.broker)

    def is_taken_up(self, release: str) -> bool:
        """Whether a release needs no publication: it is rolled out, or waits, or was sent back.

        Raises: as `published`; InputError if the record of a rollout is gone.
        """
        from luigi_tasks.fleet.deployment import is_taken_up  # noqa: PLC0415 - as above

        return is_taken_up(self.fleet, release)

    def published(self) -> RepositoryState:
        """Return what is published, verified; an empty state where nothing is, with or without keys.

        Raises: SettingsError where something is published and `[trust] root` is missing; TrustError;
            TransportError.
        """
        from luigi_tasks.release.published import TIMESTAMP_KEY, empty_state  # noqa: PLC0415 - as above

        if not self.settings.trust.root.exists() and not self.store.exists(TIMESTAMP_KEY):
            return empty_state(self.store)
        return self.repository.load()

    def find_start(self) -> str | None:
        """Return the deployed release if training may go on from its weights, see `is_kept_from_judges`.

        Raises: as `published`.
        """
        from luigi_tasks.release.history import is_kept_from_judges  # noqa: PLC0415 - NumPy

        state = self.published()
        pointer = state.channel(self.settings.release.channel)
        document = state.release(pointer.release) if pointer is not None else None
        if document is None:
            return None
        if not is_kept_from_judges(document, self.settings):
            logger.warning(
                "[training] warm_start: release %s may have learned from pictures that judge now (it was "
                "split by other groups, or its hold-out was smaller); starting from the initial weights",
                document.release,
            )
            return None
        return document.release

    def check_release(self) -> None:
        """Refuse a missing or foreign root, a missing broker, and stages that cannot begin, before training.

        Raises: SettingsError; TrustError; TransportError; InputError.
        """
        self.repository.load()
        self.broker_answers  # noqa: B018 - asked once a run
        if self.settings.rollout.stages:
            from luigi_tasks.fleet.deployment import check_stages  # noqa: PLC0415 - without stages, not needed

            check_stages(self.fleet)

    @functools.cached_property
    def broker_answers(self) -> bool:
        """Whether there is a broker; one that does not answer stops a run before anything is trained.

        Raises: TransportError; SettingsError.
        """
        if self.broker.is_set:
            self.broker.check()
        return self.broker.is_set

    def calibration_key(self, scheme: str, snapshot_digest: str) -> str:
        """Return the key of the backbone that a calibration set belongs to."""
        tuned = addresses.tuned(self.identity, snapshot_digest) if self.settings.tunes else None
        return addresses.calibrated_backbone(self.identity, scheme, tuned)

    @functools.cached_property
    def broker(self) -> BrokerClient:
        """The MQTT broker that announcements go to."""
        from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415 - as above

        return BrokerClient(self.settings.broker)
