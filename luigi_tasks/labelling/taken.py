"""What the last TakeLabelled did with the labels of a labelling folder; the board shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.documents import encode_document
from edge_client.contract.times import utc_now
from edge_client.disk import write_durably
from luigi_tasks.labelling.folder import LISTING
from luigi_tasks.labelling.records import SkippedObject, Taken

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.labelling.intake import IntakeResult

TAKEN = "taken.json"


def save_taken(folder: Path, done: IntakeResult) -> None:
    """Write the result next to the labels, if they lie in a labelling folder.

    Raises: DeviceError.
    """
    if not (folder / LISTING).is_file():
        return  # a file that a person saved among others
    record = Taken(
        at=utc_now(),
        moved=done.moved,
        discarded=done.discarded,
        relabelled=done.relabelled,
        removed=done.removed,
        skipped=tuple(SkippedObject(key=one.key, reason=one.reason) for one in done.skipped),
        small=dict(done.small),
    )
    write_durably(folder / TAKEN, encode_document(record))
