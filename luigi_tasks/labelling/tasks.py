"""The tasks of the labelling loop: what devices were unsure of, labelled by a person, into the dataset.

ListInbox -> a person fills in labels.csv -> TakeLabelled -> the next Deploy finds new pictures
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.names import INBOX_FOLDER
from luigi_tasks.logs import LUIGI_LOGGER, for_page, log_errors_as_messages
from luigi_tasks.luigid import Reschedulable
from luigi_tasks.progress import TaskProgress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import Store

NAMED_AT_MOST = 20

logger = logging.getLogger(LUIGI_LOGGER)


class LabellingTask(Reschedulable):
    """A step before or after a person's work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Luigi's
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        log_errors_as_messages()

    @functools.cached_property
    def store(self) -> Store:
        """Holds the inbox."""
        return open_store(load_settings().store)

    def complete(self) -> bool:
        """Whether there is nothing to do; errors are reported by `run`."""
        try:
            return bool(self.output().exists())  # type: ignore[no-untyped-call]
        except EdgeError:
            return False

    def run(self) -> None:
        """Do the step, with its progress on luigid's page."""
        with TaskProgress(self) as progress:
            message = self.work(progress)
        self.set_status_message(for_page(message))  # type: ignore[misc]
        logger.info("%s: %s", self.task_family, message)

    def work(self, progress: Progress) -> str:
        """Do the step; return its result in one line."""
        raise NotImplementedError


class FolderTarget(luigi.Target):
    """Exists while the folder shows the inbox as it is now.

    Addressed by the inbox's listing and not by the folder alone: new frames arrive, and a person who
    runs the task again wants to see them. While nothing changed, the folder is left alone.
    """

    def __init__(
        self, store: Store, folder: Path, list_labels: Callable[[], tuple[str, ...]], most: int
    ) -> None:
        self.store = store
        self.folder = folder
        self.list_labels = list_labels
        self.most = most

    def exists(self) -> bool:
        """Whether there is nothing to list."""
        from luigi_tasks.labelling.folder import folder_digest, is_listed  # noqa: PLC0415
        from luigi_tasks.labelling.inbox import list_inbox  # noqa: PLC0415 - a Deploy does without

        digest = folder_digest(list_inbox(self.store), self.list_labels(), self.most)
        return is_listed(self.folder, digest)


class FramesMovedTarget(luigi.Target):
    """Exists when no frame that was decided on is left in the inbox, and no picture in a wrong class."""

    def __init__(self, store: Store, labels: Path) -> None:
        self.store = store
        self.labels = labels

    def exists(self) -> bool:
        """Whether nothing that was decided is left to do."""
        from luigi_tasks.labelling.class_folders import open_class_folders  # noqa: PLC0415
        from luigi_tasks.labelling.intake import decided  # noqa: PLC0415
        from luigi_tasks.labelling.labels_file import read_labels_file  # noqa: PLC0415
        from luigi_tasks.labelling.relabel import is_carried_out  # noqa: PLC0415

        file = read_labels_file(self.labels)
        keys = {key for name in decided(file.frames) for key in name.keys}
        if keys & {one.key for one in self.store.list_folder(f"{INBOX_FOLDER}/")}:
            return False
        if not any(row.label for row in file.pictures):
            return True
        settings = load_settings()
        return is_carried_out(file.pictures, open_class_folders(settings.dataset, settings.store).paths())


class ListInbox(LabellingTask):
    """A folder for a person to label: pictures, labels.csv, and a page that fills it in."""

    to = luigi.Parameter(description="local folder; one that was listed into before keeps its labels")
    most = luigi.IntParameter(default=1000, description="frames to list; the devices take turns")

    def output(self) -> FolderTarget:
        """Exists while the folder shows the inbox, with the classes of the dataset."""
        folder = Path(self.to).expanduser()
        return FolderTarget(self.store, folder, lambda: known_labels(load_settings()), int(self.most))

    def work(self, progress: Progress) -> str:
        """Copy the frames whose record matches their picture."""
        from luigi_tasks.labelling.folder import LABELS_CSV, PAGE, fill_folder  # noqa: PLC0415

        target = self.output()
        record = fill_folder(target.store, target.folder, target.list_labels(), target.most, progress)
        for one in record.skipped[:NAMED_AT_MOST]:
            logger.warning("%s: skipped, %s", one.key, one.reason)
        more = f", {record.waiting} more wait (--most)" if record.waiting else ""
        skipped = f", {len(record.skipped)} objects skipped (listing.json)" if record.skipped else ""
        return (
            f"{record.pictures} frames{more}{skipped}. Open {target.folder / PAGE}, or fill in "
            f"{target.folder / LABELS_CSV}; then luigi --module luigi_tasks TakeLabelled --labels FILE"
        )


class TakeLabelled(LabellingTask):
    """Labelled frames in the dataset, and out of the inbox; the next snapshot has them.

    Pictures of the dataset that the file names move to the class that was chosen for them.
    """

    labels = luigi.Parameter(description="the labels.csv that was filled in; `-` throws a frame away")
    new_labels = luigi.BoolParameter(
        default=False, description="labels that are no class of the dataset start one"
    )

    def output(self) -> FramesMovedTarget:
        """Exists when no frame that was decided on is left in the inbox."""
        return FramesMovedTarget(self.store, Path(self.labels).expanduser())

    def work(self, progress: Progress) -> str:
        """Verify, move, then remove."""
        from luigi_tasks.labelling.class_folders import open_class_folders  # noqa: PLC0415
        from luigi_tasks.labelling.intake import move_labelled  # noqa: PLC0415
        from luigi_tasks.labelling.labels_file import read_labels_file  # noqa: PLC0415
        from luigi_tasks.labelling.taken import save_taken  # noqa: PLC0415

        settings, target = load_settings(), self.output()
        least = settings.dataset.min_images_per_class
        done = move_labelled(
            target.store,
            open_class_folders(settings.dataset, settings.store),
            read_labels_file(target.labels),
            least,
            progress,
            new_labels=bool(self.new_labels),
        )
        save_taken(target.labels.parent, done)
        for one in done.skipped[:NAMED_AT_MOST]:
            logger.warning("%s: stays in the inbox, %s", one.key, one.reason)
        for folder, count in done.small.items():
            logger.warning(
                "New class %r has %d pictures, [dataset] min_images_per_class is %d: until it has that "
                "many, Deploy leaves it out",
                folder,
                count,
                least,
            )
        stay = f", {len(done.skipped)} skipped" if done.skipped else ""
        if done.relabelled or done.removed:
            moved = f"{done.relabelled} pictures of the dataset into another class, {done.removed} removed"
            stay = f"; {moved}{stay}"
        return (
            f"{done.moved} frames into {settings.dataset.url}, {done.discarded} thrown away{stay}. "
            "Next: luigi --module luigi_tasks Deploy"
        )


def known_labels(settings: PipelineSettings) -> tuple[str, ...]:
    """Return the classes of the dataset; none where it cannot be listed: the page also takes new ones."""
    from luigi_tasks.dataset.layout import name_folders  # noqa: PLC0415
    from luigi_tasks.dataset.sources import open_source  # noqa: PLC0415

    try:
        listing = open_source(settings.dataset, settings.store).listing()
        layout = listing.find_layout(settings.dataset.url)
        return tuple(sorted(name_folders(listing.classes(layout)).values()))
    except InputError as e:
        logger.warning("No classes to offer: %s", e)
        return ()
