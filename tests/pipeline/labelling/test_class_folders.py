"""Class folders that take pictures, on disk and below an S3 prefix."""

from __future__ import annotations

import shutil

import pytest

from edge_client.contract.errors import SettingsError
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


@pytest.mark.parametrize("url", ["digits", "flowers", "https://example.org/p.zip", "ftp://x", ""])
def test_a_dataset_that_cannot_receive_pictures_is_an_error_with_the_way_out(tmp_path, store_settings, url):
    with pytest.raises(SettingsError, match=r"no labelled pictures can be added; copy its class folders"):
        open_class_folders(dataset_settings(tmp_path, url), store_settings)


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
