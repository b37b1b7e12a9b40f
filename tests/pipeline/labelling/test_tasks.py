"""The labelling loop through Luigi, up to the next snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import luigi
import pytest

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.names import inbox_key
from luigi_tasks import DatasetSnapshot, ListInbox, TakeLabelled, artifacts, label_listing
from luigi_tasks.labelling.desk import Choice, Desk
from luigi_tasks.labelling.records import DoubtfulPicture, DoubtfulRecord, LabellingRecord
from luigi_tasks.settings.sections import load_settings
from tests.fakes.datasets import class_folders, picture_bytes, write_tree
from tests.fakes.inbox import (
    fill_in,
    hand_in,
    home,
    in_inbox,
    jpeg,
    list_into,
    read_csv,
    relabel,
    sha256,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from luigi_tasks.dataset.records import Snapshot


@pytest.fixture
def configured(tmp_path, inbox_settings) -> Iterator[Path]:
    """luigi.cfg of this process: the test's store and a dataset folder, which is returned."""
    folder = write_tree(tmp_path / "dataset", class_folders({"cat": 16, "dog": 16}))
    config = luigi.configuration.get_config()
    values = {
        "store": {
            "url": inbox_settings.url,
            "endpoint_url": inbox_settings.endpoint_url,
            "region": "us-east-1",
        },
        "dataset": {"url": str(folder), "cache_dir": str(tmp_path / "cache")},
        "model": {"input_size": "32"},
    }
    before = {section: dict(config.items(section)) for section in values if config.has_section(section)}
    for section, options in values.items():
        for name, value in options.items():
            config.set(section, name, value)
    yield folder
    for section, options in values.items():
        for name in options:
            if name in before.get(section, {}):
                config.set(section, name, before[section][name])
            else:
                config.remove_option(section, name)


def build(task: luigi.Task) -> bool:
    return bool(luigi.build([task], local_scheduler=True, log_level="WARNING"))


def snapshot_of(folder: Path) -> Snapshot:
    task = DatasetSnapshot(pictures=str(folder))
    assert build(task)
    return artifacts.load_snapshot(task.own_target())


def test_the_loop_closes_the_next_snapshot_has_what_was_labelled(store, configured, tmp_path):
    before = snapshot_of(configured)
    for number in range(3):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number))
    to = tmp_path / "to"
    assert build(ListInbox(to=str(to)))
    page = (to / "index.html").read_text(encoding="utf-8")
    assert '<option value="cat">' in page
    labels = fill_in(to, {"cam1/0.jpg": "cat", "cam1/1.jpg": "dog", "cam1/2.jpg": "-"})
    assert build(TakeLabelled(labels=str(labels)))
    assert in_inbox(store) == []
    after = snapshot_of(configured)
    assert after.digest != before.digest
    new = set(after.pictures) - set(before.pictures)
    assert {(one.path, one.sha256, one.label) for one in new} >= {
        (home("cat", jpeg(0)), sha256(jpeg(0)), "cat"),
        (home("dog", jpeg(1)), sha256(jpeg(1)), "dog"),
    }
    assert len(after.pictures) == len(before.pictures) + 2
    assert load_settings().dataset.url == str(configured)


def test_listing_again_is_nothing_to_do_until_frames_arrive_or_leave(store, configured, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    task = ListInbox(to=str(tmp_path / "to"))
    assert not task.complete()
    assert build(task)
    assert task.complete()
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    assert not task.complete()
    assert build(task)
    assert [row["frame"] for row in read_csv(tmp_path / "to")] == ["cam1/a.jpg", "cam1/b.jpg"]
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    assert task.complete()  # a person's work is no reason to list again
    take_task = TakeLabelled(labels=str(labels))
    assert not take_task.complete()
    assert build(take_task)
    assert take_task.complete()
    assert not task.complete()
    (configured / "eel").mkdir()
    write_tree(configured / "eel", {"1.png": picture_bytes(99)})
    assert build(task)
    assert '<option value="eel">' in (tmp_path / "to/index.html").read_text(encoding="utf-8")


def test_a_frame_handed_in_again_is_taken_again_by_the_same_file(store, configured, tmp_path):
    """A device whose answer from the store was lost uploads once more."""
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert build(ListInbox(to=str(tmp_path / "to")))
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    task = TakeLabelled(labels=str(labels))
    assert build(task)
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert not task.complete()
    assert build(task)
    assert in_inbox(store) == []
    assert sum(path.name.startswith("inbox-") for path in (configured / "cat").iterdir()) == 1


def test_a_picture_of_the_dataset_is_moved_once(store, configured, tmp_path):
    picture = (configured / "cat/000.png").read_bytes()
    (tmp_path / "to").mkdir()
    (tmp_path / "to/listing.json").write_text("{}")  # as in a folder of ListInbox
    path = relabel(tmp_path / "to", {"cat/000.png": (picture, "dog"), "dog/003.png": (b"", "dog")})
    task = TakeLabelled(labels=str(path))
    assert not task.complete()
    assert build(task)
    assert task.complete()
    assert not (configured / "cat/000.png").exists()
    assert picture in [one.read_bytes() for one in (configured / "dog").iterdir()]
    taken = Desk(tmp_path / "to").taken()
    assert taken is not None
    assert (taken.relabelled, taken.removed, taken.skipped) == (1, 0, ())


def test_a_bad_file_fails_the_task_and_moves_nothing(store, configured, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert build(ListInbox(to=str(tmp_path / "to")))
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "caat"})
    assert not build(TakeLabelled(labels=str(labels)))
    assert not build(TakeLabelled(labels=str(tmp_path / "none.csv")))
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]
    assert len(list(configured.rglob("*"))) == 34


def test_listing_json_lists_what_was_skipped(store, tmp_path):
    store.put(inbox_key("cam1", "x.jpg"), jpeg(1))
    list_into(store, tmp_path)
    data = (tmp_path / "listing.json").read_bytes()
    record = decode_document(LabellingRecord, data, source="listing.json", limit_bytes=1 << 20)
    assert [one.key for one in record.skipped] == ["inbox/cam1/x.jpg"]


def test_the_boards_listing_has_frames_classes_and_doubtful_labels(store, configured, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    picture = (configured / "cat/000.png").read_bytes()
    doubted = [
        DoubtfulPicture(path=path, sha256=sha256(picture), label="cat", probable="dog", score=0.9, why="")
        for path in ("cat/000.png", "cat/gone.png")
    ]
    record = DoubtfulRecord(snapshot="s", pictures=32, wrong_share=0.1, doubtful=tuple(doubted))
    store.put("work/doubtful/a/doubtful.json", encode_document(record))
    store.put("work/doubtful/b/doubtful.json", b"{")
    folder = tmp_path / "desk"
    assert label_listing.main([str(folder), "10"]) == 0
    desk = Desk(folder)
    assert ([*desk.frames()], desk.labels()) == (["cam1/a.jpg"], ("cat", "dog"))
    assert [*desk.pictures()] == ["dataset:cat/000.png"]
    assert (desk.doubts().gone, desk.doubts().fault) == (1, "")
    desk.choose([Choice("dataset:cat/000.png", "dog"), Choice("cam1/a.jpg", "cat")], "ann")
    assert build(TakeLabelled(labels=str(folder / "labels.csv")))
    assert label_listing.main([str(folder), "10"]) == 0
    assert (desk.chosen(), [*desk.frames()], [*desk.pictures()]) == ({}, [], [])
    luigi.configuration.get_config().set("dataset", "url", str(tmp_path / "none.zip"))
    assert label_listing.main([str(folder), "10"]) == 0
    assert "an archive or a preset never changes" in desk.doubts().fault
