"""The second run on a dataset: only pictures that are new or changed are read."""

from __future__ import annotations

import os

import msgspec
import pytest

from luigi_tasks.dataset.bucket_source import BucketSource
from luigi_tasks.dataset.pixel_cache import PixelCache
from luigi_tasks.dataset.pixels import read_pictures
from luigi_tasks.dataset.records import Inventory
from luigi_tasks.dataset.shards import SMALL_AT_MOST, PictureLog, make_plan
from luigi_tasks.dataset.sources import FolderSource
from luigi_tasks.evidence.ledger import Ledger
from luigi_tasks.progress import ignore_progress
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.datasets import class_folders, picture_bytes, write_tree

SHARD_PICTURES = 8


class Folder:
    """Pictures in a folder."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir()
        self.source = FolderSource(folder)

    def put(self, tree):
        write_tree(self._folder, tree)

    def delete(self, path):
        (self._folder / path).unlink()


class Bucket:
    """Pictures below a prefix of a real bucket."""

    def __init__(self, settings):
        self.source = BucketSource(settings.url + "/pictures", settings)

    def put(self, tree):
        for path, data in tree.items():
            self.source.client.put_object(Bucket=self.source.bucket, Key=self.source.prefix + path, Body=data)

    def delete(self, path):
        self.source.client.delete_object(Bucket=self.source.bucket, Key=self.source.prefix + path)


class Reader:
    """Does what ReadShard and DatasetSnapshot do, and records which pictures were opened."""

    def __init__(self, source, store, cache):
        self.log = PictureLog(Ledger(store), source.url)
        self.opened: list[str] = []
        self._source, self._cache, self._store = source, cache, store
        self.url, self.threads = source.url, 1

    def read(self, path):
        self.opened.append(path)
        return self._source.read(path)

    def listing(self):
        return self._source.listing().pictures

    def plan(self):
        return make_plan(self.log, self.listing(), self.url, SHARD_PICTURES)

    def next_run(self) -> None:
        """Forget what this process knows of the store."""
        self.log = PictureLog(Ledger(self._store), self.url)

    def update_log(self) -> list[str]:
        """Bring the log up to date; return what was opened for that."""
        self.opened.clear()
        plan = self.plan()
        gone = set(plan.gone)
        found = [one for one in self.log.load(plan.inventory).pictures if one.path not in gone]
        for shard in plan.new:
            found += read_pictures(self, shard.pictures, shard.key, 4, 4, ignore_progress, self._cache)
        found.sort(key=lambda one: one.path)
        assert [one.path for one in found] == [one.path for one in self.listing()]
        assert {one.shard for one in found} == set(plan.shards)
        if plan.new or plan.gone:
            self.log.save(
                f"inventory-{len(found)}-{'-'.join(plan.shards)[:60]}", Inventory(pictures=tuple(found))
            )
        return sorted(self.opened)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path, store_settings):
    return Folder(tmp_path / "pictures") if request.param == "folder" else Bucket(store_settings)


@pytest.fixture
def reader(place, store_settings, tmp_path):
    place.put(class_folders({"a": 12, "b": 12}))
    return Reader(place.source, S3Store(store_settings), PixelCache(tmp_path / "cache", 4, 4))


def test_first_run_reads_everything_in_shards_of_nearly_equal_size(reader):
    plan = reader.plan()
    assert [len(one.pictures) for one in plan.new] == [8, 8, 8]
    assert len(reader.update_log()) == 24


def test_unchanged_pictures_are_not_read_again(reader):
    reader.update_log()
    assert reader.update_log() == []
    assert reader.plan().new == ()


def test_only_new_pictures_are_read_also_where_a_class_has_none(reader, place):
    reader.update_log()
    place.put({"a/new.png": picture_bytes(1), "c/first.png": picture_bytes(2)})
    assert reader.update_log() == ["a/new.png", "c/first.png"]
    assert reader.update_log() == []


def test_only_a_changed_picture_is_read_again(reader, place):
    """In a bucket by its ETag, also where the size is the same; in a folder by size or mtime."""
    reader.update_log()
    place.put({"a/003.png": picture_bytes(77)})
    assert reader.update_log() == ["a/003.png"]


def test_a_fault_is_not_found_twice_but_for_one_that_an_earlier_version_found(reader, place):
    """Its decoder refused whole pictures: broken metadata alone is no fault any more."""
    place.put({"a/broken.png": b"x"})
    assert "a/broken.png" in reader.update_log()
    assert reader.update_log() == []
    key = reader.log.newest()
    before = [
        msgspec.structs.replace(one, reason="") if one.fault else one for one in reader.log.load(key).pictures
    ]
    reader.log.save("of-an-earlier-version", Inventory(pictures=tuple(before)))
    assert reader.update_log() == ["a/broken.png"]
    assert reader.update_log() == []


def test_removed_pictures_cost_nothing(reader, place):
    reader.update_log()
    place.delete("b/001.png")
    assert reader.plan().gone == ("b/001.png",)
    assert reader.update_log() == []


def test_touched_picture_is_read_and_found_to_be_the_same(tmp_path, store_settings):
    folder = write_tree(tmp_path / "p", class_folders({"a": 3, "b": 3}))
    reader = Reader(FolderSource(folder), S3Store(store_settings), PixelCache(tmp_path / "cache", 4, 4))
    reader.update_log()
    before = {one.path: one.sha256 for one in reader.log.load(reader.log.newest()).pictures}
    os.utime(folder / "a/001.png", ns=(1, 1))
    assert reader.update_log() == ["a/001.png"]
    assert {one.path: one.sha256 for one in reader.log.load(reader.log.newest()).pictures} == before


def test_a_year_of_small_shards_becomes_few(tmp_path, store_settings):
    folder = write_tree(tmp_path / "p", class_folders({"a": 3, "b": 3}))
    reader = Reader(FolderSource(folder), S3Store(store_settings), PixelCache(tmp_path / "cache", 4, 4))
    for number in range(SMALL_AT_MOST + 3):
        write_tree(folder, {f"a/later-{number:03}.png": picture_bytes(number)})
        reader.update_log()
    assert len(reader.plan().shards) <= SMALL_AT_MOST


def test_without_its_inventory_everything_is_read_again(reader, store_settings):
    reader.update_log()
    store = S3Store(store_settings)
    listed = store.client.list_objects_v2(Bucket=store.bucket, Prefix=store.prefix + "work/inventories/")
    for one in listed["Contents"]:
        if not one["Key"].endswith("newest.json"):
            store.client.delete_object(Bucket=store.bucket, Key=one["Key"])
    reader.next_run()
    assert len(reader.update_log()) == 24
