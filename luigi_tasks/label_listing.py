"""Brings a labelling folder of the board up to date: `python -m luigi_tasks.label_listing FOLDER MOST`.

The board starts it as a process of its own: frames of devices are decoded here and not there, within a limit
of memory. It writes `DONE TOTAL` lines while it reads, and in the end the files of `labelling/folder.py` and
`doubtful.json`. Luigi's `ListInbox` does the first part too.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.children import die_with_parent, prefer_as_oom_victim
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import one_line
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.labelling.records import DoubtsFound
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.workspace import Workspace

DOUBTFUL = "doubtful.json"
# Four frames are decoded at a time; large addresses are reserved by libraries, not used.
_MEMORY_BYTES = 4 << 30
# So many frames are there to see within seconds, before the rest is read.
_FIRST = 200
_LISTS_TRIED = 5
_TOLD_EACH = 20
_FOLDER = "work/doubtful/"


def main(arguments: Sequence[str]) -> int:
    """List the inbox and find the doubtful labels; return 0, or 1 after one line about what is wrong."""
    folder, most = Path(arguments[0]), int(arguments[1])
    try:
        from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports luigi
        from luigi_tasks.workspace import Workspace  # noqa: PLC0415 - as above

        settings = load_settings()
        workspace = Workspace(settings)
        labels, paths, fault = _look_at_dataset(settings)
        doubts = _find_doubts(workspace, paths, fault)
        _list(workspace, folder, labels, most, paths)
        _save(folder, doubts)
    except EdgeError as e:
        sys.stderr.write(f"{one_line(str(e))}\n")
        return 1
    return 0


def _list(
    workspace: Workspace, folder: Path, labels: tuple[str, ...], most: int, paths: dict[str, str] | None
) -> None:
    from luigi_tasks.labelling.folder import (  # noqa: PLC0415 - not for a wrong setting
        LABELS_CSV,
        fill_folder,
        find_listing,
        folder_digest,
        is_listed,
    )
    from luigi_tasks.labelling.inbox import list_inbox  # noqa: PLC0415 - not for a wrong setting

    known = None if paths is None else frozenset(paths)
    digest = folder_digest(list_inbox(workspace.store), labels, most)
    if is_listed(folder, digest) and not _has_carried_out(folder / LABELS_CSV, known):
        return
    if find_listing(folder) is None:
        fill_folder(workspace.store, folder, labels, min(_FIRST, most), _tell, known)
        sys.stdout.write("first\n")
        sys.stdout.flush()
    fill_folder(workspace.store, folder, labels, most, _tell, known)


def _has_carried_out(path: Path, known: frozenset[str] | None) -> bool:
    """Whether the file has decisions about pictures that are not where they were: they were carried out."""
    from luigi_tasks.labelling.labels_file import read_rows  # noqa: PLC0415 - not for a wrong setting

    return known is not None and any(row.path and row.path not in known for row in read_rows(path))


def _tell(_what: str, done: int, total: int) -> None:
    if done % _TOLD_EACH and done != total:
        return
    sys.stdout.write(f"{done} {total}\n")
    sys.stdout.flush()


def _look_at_dataset(settings: PipelineSettings) -> tuple[tuple[str, ...], dict[str, str] | None, str]:
    """Return the classes of the dataset, the class folder of each picture, and why it cannot be changed."""
    from luigi_tasks.dataset.layout import name_folders  # noqa: PLC0415 - not for a wrong setting
    from luigi_tasks.labelling.class_folders import open_class_folders  # noqa: PLC0415 - as above
    from luigi_tasks.labelling.tasks import known_labels  # noqa: PLC0415 - as above

    fault = ""
    try:
        folders: ClassFolders = open_class_folders(settings.dataset, settings.store)
        contents, paths = folders.contents(), folders.paths()
        return tuple(sorted(name_folders(contents).values())), paths, ""
    except EdgeError as e:
        fault = str(e)
    try:
        return known_labels(settings), None, fault
    except EdgeError:
        return (), None, fault


def _find_doubts(workspace: Workspace, paths: dict[str, str] | None, fault: str) -> DoubtsFound:
    """Return the newest list of doubtful labels that is what was signed."""
    from luigi_tasks.evidence.records import StoredDocument  # noqa: PLC0415 - not for a wrong setting
    from luigi_tasks.labelling.records import DoubtfulRecord, DoubtsFound  # noqa: PLC0415 - as above

    listed = [one for one in workspace.store.list_folder(_FOLDER) if one.key.endswith(f"/{DOUBTFUL}")]
    listed.sort(key=lambda one: -(one.written_at or 0.0))
    for one in listed[:_LISTS_TRIED]:
        try:
            record = StoredDocument(workspace.ledger, one.key).find(DoubtfulRecord)
        except InputError:  # damaged: an older one does instead
            continue
        if record is None:
            continue
        there = [row for row in record.doubtful if paths is None or row.path in paths]
        return DoubtsFound(
            key=one.key,
            at=one.written_at or 0.0,
            dataset=workspace.shown_url,
            fault=fault,
            pictures=record.pictures,
            wrong_share=record.wrong_share,
            doubtful=tuple(there),
            gone=len(record.doubtful) - len(there),
        )
    return DoubtsFound(dataset=workspace.shown_url if workspace.settings.dataset.url else "", fault=fault)


def _save(folder: Path, doubts: DoubtsFound) -> None:
    from edge_client.contract.documents import encode_compact  # noqa: PLC0415 - as above

    data, path = encode_compact(doubts), folder / DOUBTFUL
    if not path.is_file() or path.read_bytes() != data:
        write_durably(path, data)


if __name__ == "__main__":
    die_with_parent()
    prefer_as_oom_victim()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.exit(main(sys.argv[1:]))
