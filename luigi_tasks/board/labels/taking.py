"""What TakeLabelled would do with the labels of the desk, and what it did."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.addresses import without_passwords
from edge_client.contract.errors import EdgeError
from edge_client.contract.text import one_line
from luigi_tasks.board.labels.grid import count_to_take
from luigi_tasks.board.runs.kinds import shown_place
from luigi_tasks.board.runs.view import shown_run
from luigi_tasks.labelling.folder import LABELS_CSV, LISTING
from luigi_tasks.labelling.records import Taken  # noqa: TC001 - the model's
from luigi_tasks.labelling.taken import TAKEN

if TYPE_CHECKING:
    from luigi_tasks.board.runs.runs import Runs
    from luigi_tasks.labelling.desk import Desk
    from luigi_tasks.settings.values import PipelineSettings

TAKE = "TakeLabelled"
_RUNS_SHOWN = 5


class TakeRun(msgspec.Struct, frozen=True):
    """A run of TakeLabelled that the board started."""

    id: str
    state: str
    words: str
    started_at: float
    by: str


class TakeModel(msgspec.Struct, frozen=True):
    """The page before labels are taken.

    Attributes:
        to_take: Decisions that would be carried out.
        counts: Frames by label that would go into the dataset.
        discarded: Frames that would be deleted.
        relabelled: Pictures of the dataset that would go to another class, as texts.
        removed: Pictures of the dataset that would be removed.
        fresh: Labels that would start a class.
        fault: What is refused as it is; empty: nothing.
        least: Pictures of a class that a snapshot needs.
        dataset: Address of the dataset.
        taken: What the last run did.
        runs: Runs of TakeLabelled that the board started, newest first.
        is_stale: Whether the inbox is to be listed before it is known what remains.
    """

    to_take: int
    counts: dict[str, int] = {}
    discarded: int = 0
    relabelled: list[tuple[str, str]] = []
    removed: list[str] = []
    fresh: tuple[str, ...] = ()
    fault: str = ""
    least: int = 0
    dataset: str = ""
    taken: Taken | None = None
    runs: list[TakeRun] = []
    is_stale: bool = False


def preview(desk: Desk, settings: PipelineSettings, board_runs: Runs, listed_at: float) -> TakeModel:
    """Return what TakeLabelled would do: the dataset is listed, and nothing is changed.

    Args:
        desk: What was decided.
        settings: All settings.
        board_runs: Runs of the board.
        listed_at: When the inbox was listed last, seconds since 1970.
    Raises: DeviceError.
    """
    to_take = count_to_take(desk)
    found = TakeModel(
        to_take=to_take,
        least=settings.dataset.min_images_per_class,
        dataset=shown_place(settings.dataset.url),
        taken=desk.taken(),
        runs=[
            TakeRun(one.id, one.state, shown_run(board_runs, one).words, one.started_at, one.by)
            for one in [one for one in board_runs.all() if one.task == TAKE][:_RUNS_SHOWN]
        ],
        is_stale=_is_stale(desk, listed_at),
    )
    if not to_take or found.is_stale:
        return found
    try:
        return msgspec.structs.replace(found, **_plan(desk, settings))
    except EdgeError as e:
        return msgspec.structs.replace(found, fault=one_line(without_passwords(str(e))))


def _is_stale(desk: Desk, listed_at: float) -> bool:
    """Whether labels were taken after the inbox was listed: what is decided on may be done."""
    times = {TAKEN: 0.0, LISTING: 0.0}
    for name in times:
        with contextlib.suppress(OSError):
            times[name] = (desk.folder / name).stat().st_mtime
    return times[TAKEN] > max(times[LISTING], listed_at)


def _plan(desk: Desk, settings: PipelineSettings) -> dict[str, Any]:
    from luigi_tasks.labelling.class_folders import open_class_folders  # noqa: PLC0415 - only where labels are taken
    from luigi_tasks.labelling.intake import plan_intake  # noqa: PLC0415 - as above
    from luigi_tasks.labelling.labels_file import read_labels_file  # noqa: PLC0415 - as above

    file = read_labels_file(desk.folder / LABELS_CSV)
    folders = open_class_folders(settings.dataset, settings.store)
    plan = plan_intake(file, folders, new_labels=True)
    counts = collections.Counter(one.folder for one in plan.moves)
    discarded = counts.pop("", 0)
    return {
        "counts": dict(sorted(counts.items())),
        "discarded": discarded,
        "relabelled": [(one.path, one.folder) for one in plan.changes if one.to],
        "removed": [one.path for one in plan.changes if not one.to],
        "fresh": plan.fresh,
    }
