"""Class folders that take pictures, on disk and below an S3 prefix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_client.contract.errors import SettingsError
from luigi_tasks.dataset.sources import open_source
from luigi_tasks.labelling.class_folders import open_class_folders
from tests.fakes.datasets import dataset_settings
from tests.fakes.inbox import (
    fill_in,
    from_inbox,
    hand_in,
    home,
    jpeg,
    list_into,
    make_dataset,
    take,
)


@pytest.mark.parametrize(
    "url",
    [
        "preset:digits",
        "preset:flowers",
        "https://example.org/p.zip",
        "s3://bucket/p.zip",
        "/no/pictures.tar.gz",
        str(Path(__file__)),
        "ftp://x",
    ],
)
def test_a_dataset_that_cannot_receive_pictures_is_an_error_with_the_way_out(tmp_path, store_settings, url):
    with pytest.raises(SettingsError, match=r"no labelled pictures can be added; copy its class folders"):
        open_class_folders(dataset_settings(tmp_path, url), store_settings)


SPLITS = {"train/cat": 3, "train/dog": 3, "valid/cat": 2, "valid/dog": 2}


@pytest.mark.parametrize(
    ("kind", "classes", "where"),
    [
        ("folder", SPLITS, "train/cat"),
        ("bucket", {f"pictures/{one}": count for one, count in SPLITS.items()}, "pictures/train/cat"),
        ("folder", {"cat/train": 3, "cat/test": 2, "dog/train": 3, "dog/test": 2}, "cat/train"),
        ("bucket", {"photos/cat": 3, "photos/dog": 3}, "photos/cat"),
    ],
    ids=["split", "wrapped split", "split below", "wrapped"],
)
def test_labelled_frames_lie_with_the_training_pictures_of_their_class(
    store, tmp_path, store_settings, clients, kind, classes, where
):
    folders = make_dataset(kind, tmp_path, store_settings, classes, clients)
    assert set(folders.contents()) == {"cat", "dog"}
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    done = take(store, folders, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert done.moved == 1
    assert from_inbox(folders) == {home("cat", jpeg(0)): jpeg(0)}
    source = open_source(dataset_settings(tmp_path / "cache", folders.url), store_settings)
    listing = source.listing()
    new = f"{where}/{home('cat', jpeg(0)).partition('/')[2]}"
    assert new in {one.path for one in listing.pictures}
    layout = listing.find_layout(folders.url)
    assert layout.class_folder(new) == "cat"
    assert layout.given_split(new) in {"", "train"}


def test_a_dataset_starts_with_its_first_labelled_frames(store, tmp_path, store_settings, clients):
    for kind in ("folder", "bucket"):
        folders = make_dataset(kind, tmp_path, store_settings, {}, clients)
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        assert folders.contents() == {}
        hand_in(store, "cam1", "a.jpg", jpeg(0))
        list_into(store, tmp_path / "to", labels=())
        path = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
        assert take(store, folders, path, new_labels=True).moved == 1
        assert list(from_inbox(folders)) == [home("cat", jpeg(0))]
