"""Listing and taking that are killed at any write lose no frame and no label."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from edge_client.disk import write_durably
from luigi_tasks.labelling import folder as labelling
from luigi_tasks.labelling.class_folders import BucketFolders, LocalFolders
from luigi_tasks.labelling.inbox import list_inbox
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.datasets import class_folders
from tests.fakes.inbox import (
    LABELS,
    StoreAround,
    fill_in,
    from_inbox,
    hand_in,
    home,
    in_inbox,
    jpeg,
    list_into,
    read_csv,
    relabel,
    sha256,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.storage.store import Store


class KilledError(Exception):
    """The process ends here."""


class Fuse:
    """Lets so many calls through, then ends the process at each."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.blown = False

    def burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.blown = True
            raise KilledError


class DyingStore(StoreAround):
    """The real store, until the fuse blows; before a call or right after it was done."""

    def __init__(self, store: Store, fuse: Fuse, *, after: bool) -> None:
        super().__init__(store)
        self.fuse, self.after = fuse, after

    def _guard(self, call: Callable[[], object]) -> object:
        if not self.after:
            self.fuse.burn()
        result = call()
        if self.after:
            self.fuse.burn()
        return result

    def put(self, key, data, *, content_type="application/octet-stream"):
        self._guard(lambda: self._store.put(key, data, content_type=content_type))

    def delete(self, key):
        self._guard(lambda: self._store.delete(key))


class DyingFolders:
    """The real dataset, until the fuse blows."""

    def __init__(self, folders: ClassFolders, fuse: Fuse, *, after: bool) -> None:
        self.url, self._folders, self._fuse, self._after = folders.url, folders, fuse, after

    def contents(self) -> dict[str, frozenset[str]]:
        return self._folders.contents()

    def read(self, path: str) -> bytes | None:
        return self._folders.read(path)

    def write(self, path: str, data: bytes) -> None:
        self._guard(lambda: self._folders.write(path, data))

    def writing(self) -> contextlib.AbstractContextManager[None]:
        return self._folders.writing()

    def paths(self) -> dict[str, str]:
        return self._folders.paths()

    def place_of(self, path: str, folder: str) -> str:
        return self._folders.place_of(path, folder)

    def read_path(self, path: str) -> bytes | None:
        return self._folders.read_path(path)

    def write_path(self, path: str, data: bytes) -> None:
        self._guard(lambda: self._folders.write_path(path, data))

    def remove_path(self, path: str) -> None:
        self._guard(lambda: self._folders.remove_path(path))

    def why_not_removable(self, path: str) -> str:
        return self._folders.why_not_removable(path)

    def _guard(self, call: Callable[[], None]) -> None:
        if not self._after:
            self._fuse.burn()
        call()
        if self._after:
            self._fuse.burn()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_taking_that_was_killed_at_any_write_is_finished_by_the_next_run(
    dataset, tmp_path, store, monkeypatch, after
):
    monkeypatch.setattr("luigi_tasks.labelling.intake.THREADS", 1)  # so that each count of calls is one place
    calls, survived = 0, 0
    while True:
        device = f"cam{calls}"
        pictures = [jpeg(100 * (calls + 1) + number) for number in range(3)]
        names = [hand_in(store, device, f"{number}.jpg", one) for number, one in enumerate(pictures)]
        list_into(store, tmp_path / device)
        choice = dict(zip(map(str, names), ("cat", "otter", "-"), strict=True))
        path = fill_in(tmp_path / device, choice)
        fuse = Fuse(calls)
        dying = cast("Store", DyingStore(store, fuse, after=after))
        try:
            take(dying, DyingFolders(dataset, fuse, after=after), path, new_labels=True)
        except KilledError:
            survived += 1
        in_dataset, waiting = from_inbox(dataset), in_inbox(store)
        for number, label in enumerate(("cat", "otter")):
            there = home(label, pictures[number]) in in_dataset
            assert there or f"{device}/{number}.jpg" in waiting, "the only copy is lost"
        done = take(store, dataset, path, new_labels=True)
        assert done.skipped == ()
        assert in_inbox(store) == []
        in_dataset = from_inbox(dataset)
        assert in_dataset[home("cat", pictures[0])] == pictures[0]
        assert in_dataset[home("otter", pictures[1])] == pictures[1]
        assert len(in_dataset) == 2 * (calls + 1)
        if not fuse.blown:
            break
        calls += 1
    assert survived == 8  # two writes, and two removals of each of three frames


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_picture_of_the_dataset_is_never_lost_by_a_killed_move(dataset, tmp_path, monkeypatch, after):
    monkeypatch.setattr("luigi_tasks.labelling.intake.THREADS", 1)
    store, picture = folder_store(tmp_path / "store"), class_folders({"cat": 2, "dog": 2})["cat/000.png"]
    path = relabel(tmp_path / "to", {"cat/000.png": (picture, "dog"), "dog/001.png": (b"", "")})
    for calls in range(5):
        fuse = Fuse(calls)
        with contextlib.suppress(KilledError):
            take(store, DyingFolders(dataset, fuse, after=after), path)
        there = [one for one in dataset.paths() if dataset.read_path(one) == picture]
        assert there, "the only copy is lost"
        if not fuse.blown:
            break
    assert calls > 0
    [at] = there
    assert at.startswith("dog/000")
    assert len(dataset.paths()) == 4


def folder_store(folder: Path) -> FolderStore:
    return FolderStore(StoreSettings(folder.as_uri(), "", "", "when_required", conditional_writes=True))


def files_of(dataset: ClassFolders) -> list[str]:
    """Every file of a dataset, also hidden ones."""
    if isinstance(dataset, BucketFolders):
        return [one.key for one in dataset._store.list_folder("")]
    return [str(path.relative_to(dataset.url)) for path in Path(dataset.url).rglob("*") if path.is_file()]


def killed_at_its_next_sync(act: Callable[[], object]) -> None:
    """Run a function in a process that is killed (SIGKILL) between writing a file and renaming it."""
    child = os.fork()
    if child == 0:
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
        act()
        os._exit(0)
    os.waitpid(child, 0)


def test_hidden_copies_of_a_killed_run_are_removed_by_the_next_but_never_those_of_a_running_one(
    dataset, tmp_path
):
    store = folder_store(tmp_path / "store")
    name = hand_in(store, "cam1", "a.jpg", jpeg(1))
    list_into(store, tmp_path / "to")
    path = fill_in(tmp_path / "to", {str(name): "cat"})
    before = files_of(dataset)
    killed_at_its_next_sync(lambda: take(store, dataset, path))
    left = sorted({*files_of(dataset)} - {*before})
    is_local = isinstance(dataset, LocalFolders)
    assert len([one for one in left if one.startswith("cat/.inbox-")]) == is_local, "in a bucket, none appear"
    own = Path(dataset.url, "cat", ".notes.jpg.12345678")
    if is_local:
        own.write_bytes(b"a person's")
        with dataset.writing():
            copy = Path(dataset.url, "cat", ".inbox-0123456789abcdef.jpg.abcdefgh")
            copy.write_bytes(b"of the running one")
            take(store, dataset, path)
            assert copy.exists()
    take(store, dataset, path)
    hidden = [one for one in files_of(dataset) if "/." in f"/{one}"]
    assert hidden == (["cat/.notes.jpg.12345678"] if is_local else [])
    assert from_inbox(dataset) == {home("cat", jpeg(1)): jpeg(1)}


def test_hidden_copies_of_a_killed_listing_are_removed_by_the_next(tmp_path):
    store = folder_store(tmp_path / "store")
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    killed_at_its_next_sync(lambda: list_into(store, tmp_path / "to"))
    assert [path.name[:2] for path in (tmp_path / "to/pictures").iterdir()] == ["." + sha256(jpeg(1))[0]]
    list_into(store, tmp_path / "to")
    assert [path.name for path in (tmp_path / "to/pictures").iterdir()] == [f"{sha256(jpeg(1))}.jpg"]


def test_listing_that_was_killed_is_done_again(store, tmp_path, monkeypatch):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    list_into(store, tmp_path / "to")
    fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    for calls in range(20):
        fuse = Fuse(calls)

        def write(path, data, fuse=fuse):
            fuse.burn()
            write_durably(path, data)

        monkeypatch.setattr(labelling, "write_durably", write)
        digest = labelling.folder_digest(list_inbox(store), LABELS, 100)
        try:
            list_into(store, tmp_path / "to")
        except KilledError:
            assert not labelling.is_listed(tmp_path / "to", digest)
            assert read_csv(tmp_path / "to")[0]["label"] == "cat"
            continue
        assert labelling.is_listed(tmp_path / "to", digest)
        break
    assert calls == 4  # the new picture, the file, the page, the listing
    assert [row["label"] for row in read_csv(tmp_path / "to")] == ["cat", ""]
