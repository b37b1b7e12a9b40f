"""Frames in the inbox, a person who labels them, and datasets that take them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import InboxRecord
from luigi_tasks.labelling import labels_file as labelling
from luigi_tasks.labelling.class_folders import open_class_folders
from luigi_tasks.labelling.folder import fill_folder
from luigi_tasks.labelling.inbox import FrameName
from luigi_tasks.labelling.intake import IntakeResult, move_labelled
from luigi_tasks.labelling.labels_file import read_labels_file, write_labels
from luigi_tasks.progress import ignore_progress
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.datasets import class_folders, dataset_settings, picture_bytes, write_tree

if TYPE_CHECKING:
    from typing import TypeVar

    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.labelling.records import LabellingRecord
    from luigi_tasks.settings.values import StoreSettings
    from luigi_tasks.storage.store import Store

    StoreT = TypeVar("StoreT", bound=S3Store)


LABELS = ("cat", "dog")


def jpeg(seed: int) -> bytes:
    return picture_bytes(seed, size=16, suffix="JPEG")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def with_clients(store: StoreT, clients: dict[int, Any]) -> StoreT:
    store._clients = clients
    return store


class StoreAround:
    """Delegates to another store; a subclass overrides what misbehaves."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def record_of(device: str, name: str, picture: bytes, /, **changes) -> InboxRecord:
    record = InboxRecord(
        device=device,
        picture=name,
        sha256=sha256(picture),
        why="unsure",
        label="cat",
        confidence=0.41,
        top={"cat": 0.41, "dog": 0.4},
        release="0123456789abcdef0123",
        channel="stable",
        at="2025-05-01T10:00:00.000+00:00",
    )
    return msgspec.structs.replace(record, **changes)


def hand_in(store: Store, device: str, name: str, picture: bytes, **changes) -> FrameName:
    """Do what a device does: the picture, then the record."""
    frame = FrameName.of(device, name)
    store.put(frame.keys[0], picture)
    store.put(frame.keys[1], encode_document(record_of(device, name, picture, **changes)))
    return frame


def read_csv(folder: Path) -> list[dict[str, str]]:
    text = (folder / "labels.csv").read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fill_in(folder: Path, labels: dict[str, str]) -> Path:
    """Do what a person does: a label for each frame named."""
    rows = [
        labelling.Row(**{**row, "label": labels.get(row["frame"], row["label"])}) for row in read_csv(folder)
    ]
    path = folder / "labels.csv"
    path.write_bytes(write_labels(rows))
    return path


def relabel(folder: Path, choices: dict[str, tuple[bytes, str]]) -> Path:
    """Write a labels.csv that names pictures of the dataset: content and label by path."""
    rows = [
        labelling.Row(f"pictures/{sha256(data)}.jpg", label, "", "", "", "", "", "", "", path)
        for path, (data, label) in choices.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_bytes(write_labels(rows))
    return folder / "labels.csv"


def list_into(store: Store, folder: Path, labels=LABELS, most: int = 100) -> LabellingRecord:
    return fill_folder(store, folder, labels, most, ignore_progress)


def make_dataset(
    kind: str, tmp_path: Path, settings: StoreSettings, classes: dict[str, int], clients: dict[int, Any]
) -> ClassFolders:
    url = str(tmp_path / "dataset") if kind == "folder" else f"{settings.url}/pictures"
    tree = class_folders(classes)
    if kind == "folder":
        write_tree(Path(url), tree)
    else:
        pictures = with_clients(S3Store(dataclasses.replace(settings, url=url)), clients)
        for path, data in tree.items():
            pictures.put(path, data)
    return open_class_folders(dataset_settings(tmp_path / "cache", url), settings)


def take(
    store: Store, folders: ClassFolders, path: Path, *, new_labels: bool = False, least: int = 2
) -> IntakeResult:
    file = read_labels_file(path)
    return move_labelled(store, folders, file, least, ignore_progress, new_labels=new_labels)


def in_inbox(store: Store) -> list[str]:
    return [one.key.removeprefix("inbox/") for one in store.list_folder("inbox/")]


def from_inbox(folders: ClassFolders) -> dict[str, bytes | None]:
    return {
        f"{folder}/{name}": folders.read(f"{folder}/{name}")
        for folder, names in folders.contents().items()
        for name in names
        if not name.endswith(".png")
    }


def home(label: str, picture: bytes) -> str:
    return f"{label}/inbox-{sha256(picture)[:16]}.jpg"
