"""Pictures of the dataset whose label was doubted go where a person says, whole, verified, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from edge_client.contract.errors import InputError
from tests.fakes.datasets import class_folders, picture_bytes
from tests.fakes.inbox import (
    StoreAround,
    fill_in,
    hand_in,
    jpeg,
    list_into,
    make_dataset,
    read_csv,
    relabel,
    sha256,
    take,
)

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store

TREE = class_folders({"cat": 2, "dog": 2})


def test_a_picture_moves_is_confirmed_or_removed_as_was_decided(store, dataset, tmp_path):
    choices = {
        "cat/000.png": (TREE["cat/000.png"], "otter"),
        "cat/001.png": (TREE["cat/001.png"], "cat"),
        "dog/000.png": (TREE["dog/000.png"], "-"),
    }
    path = relabel(tmp_path / "to", choices)
    with pytest.raises(InputError, match=r"'otter' \(line 2\) is not a class"):
        take(store, dataset, path)
    for _ in range(2):  # the second time, there is nothing to do
        done = take(store, dataset, path, new_labels=True)
        assert done.skipped == ()
        assert dataset.paths() == {"cat/001.png": "cat", "dog/001.png": "dog", "otter/000.png": "otter"}
        assert dataset.read_path("otter/000.png") == TREE["cat/000.png"]


def test_a_picture_keeps_its_side_of_a_split(store, tmp_path, store_settings, clients):
    classes = {"train/cat": 2, "train/dog": 2, "test/cat": 2, "test/dog": 2}
    folders = make_dataset("folder", tmp_path, store_settings, classes, clients)
    tree = class_folders(classes)
    path = relabel(tmp_path / "to", {"test/dog/000.png": (tree["test/dog/000.png"], "cat")})
    assert take(store, folders, path).relabelled == 1
    there = {path for path in folders.paths() if path.startswith("test/")}
    assert len(there) == 4
    assert "test/dog/000.png" not in there
    [moved] = [one for one in there if one.startswith("test/cat/000-")]  # 000.png was taken by another
    assert folders.read_path(moved) == tree["test/dog/000.png"]
    assert folders.read_path("test/cat/000.png") == tree["test/cat/000.png"]


def test_a_picture_that_changed_or_lies_behind_a_link_stays(store, tmp_path, store_settings, clients):
    folders = make_dataset("folder", tmp_path, store_settings, {"cat": 2, "dog": 2}, clients)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.png").write_bytes(picture_bytes(77))
    (tmp_path / "dataset/eel").symlink_to(elsewhere)
    choices = {"cat/000.png": (b"another", "dog"), "eel/x.png": (picture_bytes(77), "cat")}
    done = take(store, folders, relabel(tmp_path / "to", choices))
    assert (done.relabelled, done.removed) == (0, 0)
    assert [one.key for one in done.skipped] == ["cat/000.png", "eel/x.png"]
    assert "changed since its label was doubted" in done.skipped[0].reason
    assert "behind a link" in done.skipped[1].reason
    assert folders.read_path("cat/000.png") == TREE["cat/000.png"]
    assert (elsewhere / "x.png").exists()
    assert folders.read_path("cat/x.png") is None


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "cat/../../outside.txt", "cat/none.png"])
def test_a_path_that_is_no_picture_of_the_dataset_is_left_alone(store, dataset, tmp_path, path):
    (tmp_path / "outside.txt").write_bytes(b"mine")
    done = take(store, dataset, relabel(tmp_path / "to", {path: (b"mine", "-")}))
    assert (done.removed, done.skipped) == (0, ())
    assert (tmp_path / "outside.txt").read_bytes() == b"mine"
    assert len(dataset.paths()) == 4


def test_listing_again_keeps_decisions_and_reads_only_what_is_new(store, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    hand_in(store, "cam1", "bad.jpg", b"no picture")
    list_into(store, tmp_path)
    file = relabel(tmp_path / "x", {"cat/000.png": (b"x", "dog")})
    of_dataset = file.read_text("utf-8-sig").splitlines()[1]
    text = fill_in(tmp_path, {"cam1/a.jpg": "cat"}).read_text("utf-8-sig").splitlines()
    bad = f'"pictures/{sha256(b"no picture")}.jpg","-","","","","","","","cam1/bad.jpg",""'
    (tmp_path / "labels.csv").write_text("\n".join([f'{text[0]},"path"', f'{text[1]},""', of_dataset, bad]))
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    noting = NotingStore(store)
    list_into(cast("Store", noting), tmp_path)
    assert sorted(noting.read) == ["inbox/cam1/b.jpg", "inbox/cam1/b.json"]
    rows = {row["frame"] or row["path"]: row["label"] for row in read_csv(tmp_path)}
    assert rows == {"cam1/a.jpg": "cat", "cam1/b.jpg": "", "cat/000.png": "dog", "cam1/bad.jpg": "-"}


class NotingStore(StoreAround):
    """Notes the keys that are read."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.read: list[str] = []

    def get(self, key, **limit):
        self.read.append(key)
        return self._store.get(key, **limit)
