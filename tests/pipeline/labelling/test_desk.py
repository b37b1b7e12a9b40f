"""Several people label one folder: each choice counts once, none is lost, and TakeLabelled reads them all."""

from __future__ import annotations

import concurrent.futures
import os
import signal

import pytest

from edge_client.contract.documents import encode_compact
from luigi_tasks.labelling.desk import OF_DATASET, Choice, Desk
from luigi_tasks.labelling.labels_file import read_labels_file
from luigi_tasks.labelling.records import DoubtfulPicture, DoubtsFound
from luigi_tasks.labelling.similar import find_groups
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.inbox import hand_in, jpeg, list_into, read_csv, sha256, take

DOUBTED = DoubtfulPicture(
    path="cat/000.png", sha256=sha256(b"x"), label="cat", probable="dog", score=0.9, why="=1+1"
)


@pytest.fixture
def store(tmp_path_factory) -> FolderStore:
    """An inbox in a folder: a desk knows no store."""
    url = tmp_path_factory.mktemp("inbox").as_uri()
    return FolderStore(StoreSettings(url, "", "", "when_required", conditional_writes=True))


@pytest.fixture
def desk(store, tmp_path) -> Desk:
    """A desk with three frames, one that is no picture, and a doubtful picture of the dataset."""
    for number in range(3):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number))
    hand_in(store, "cam1", "bad.jpg", b"no picture")
    list_into(store, tmp_path)
    doubts = DoubtsFound(key="k", doubtful=(DOUBTED,), pictures=4)
    (tmp_path / "doubtful.json").write_bytes(encode_compact(doubts))
    return Desk(tmp_path)


def test_what_was_chosen_is_in_the_file_that_is_taken(desk, store, dataset):
    chosen = [Choice("cam1/0.jpg", "cat"), Choice("cam1/1.jpg", "-"), Choice("cam1/bad.jpg", "-")]
    assert [one.fault for one in desk.choose(chosen, "ann")] == ["", "", ""]
    done = take(store, dataset, desk.folder / "labels.csv")
    assert (done.moved, done.discarded, done.skipped) == (1, 2, ())
    list_into(store, desk.folder)
    assert desk.chosen() == {}
    [outcome] = desk.choose([Choice("cam1/0.jpg", "dog")], "bob")
    assert "not here any more" in outcome.fault


def test_the_second_of_two_people_sees_what_the_first_chose(desk):
    other = Desk(desk.folder)  # another process
    assert other.chosen() == {}
    desk.choose([Choice("cam1/0.jpg", "cat")], "ann")
    [refused, same] = other.choose([Choice("cam1/0.jpg", "dog"), Choice("cam1/0.jpg", "cat")], "bob")
    assert (refused.label, refused.by, refused.fault) == ("cat", "ann", "ann chose 'cat' meanwhile")
    assert (same.label, same.by, same.fault) == ("cat", "ann", "")
    [outcome] = other.choose([Choice("cam1/0.jpg", "dog", was="cat")], "bob")
    assert outcome.fault == ""
    assert desk.chosen() == {"cam1/0.jpg": "dog"}
    assert desk.who("cam1/0.jpg") == "bob"


def test_many_at_once_lose_nothing(desk):
    desks = [desk, Desk(desk.folder)]

    def label(number: int) -> str:
        choice = Choice(f"cam1/{number % 3}.jpg", "cat" if number % 3 else "dog")
        return str(desks[number % 2].choose([choice], "x")[0].fault)

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(label, range(24))) == {""}
    assert desk.chosen() == {"cam1/0.jpg": "dog", "cam1/1.jpg": "cat", "cam1/2.jpg": "cat"}


def test_labels_are_judged_and_a_new_class_is_confirmed(desk):
    for label, fault in {
        "a/b": "cannot name a class folder",
        ".git": "cannot name a class folder",
        "a\nb": "one line of visible text",
        "Cat": "differs only in case",
        "x" * 300: "at most 255 bytes",
    }.items():
        [outcome] = desk.choose([Choice("cam1/0.jpg", label)], "", new_class=True)
        assert fault in outcome.fault
        assert not outcome.is_new
    [outcome] = desk.choose([Choice("cam1/0.jpg", " otter ")], "")
    assert (outcome.is_new, outcome.label) == (True, "")
    [outcome] = desk.choose([Choice("cam1/0.jpg", " otter ")], "", new_class=True)
    assert (outcome.fault, outcome.label) == ("", "otter")
    assert desk.labels() == ("cat", "dog", "otter")
    [outcome] = desk.choose([Choice("cam1/bad.jpg", "cat")], "")
    assert "can only be thrown away" in outcome.fault


def test_a_doubtful_picture_of_the_dataset_is_a_row_while_it_is_decided(desk):
    name = OF_DATASET + DOUBTED.path
    desk.choose([Choice(name, "dog")], "ann")
    [row] = [one for one in read_csv(desk.folder) if one["path"]]
    assert (row["path"], row["label"], row["frame"], row["why"]) == (DOUBTED.path, "dog", "", "'=1+1")
    [picture] = read_labels_file(desk.folder / "labels.csv").pictures
    assert (picture.path, picture.sha256, picture.label) == (DOUBTED.path, DOUBTED.sha256, "dog")
    desk.choose([Choice(name, "", was="dog")], "ann")
    assert "path" not in read_csv(desk.folder)[0]
    assert len(read_csv(desk.folder)) == 3


def test_a_process_that_is_killed_at_any_moment_leaves_the_old_or_the_new_labels(desk):
    desk.choose([Choice("cam1/0.jpg", "cat")], "ann")
    for call in ("fsync", "rename", "replace", "write"):
        child = os.fork()
        if child == 0:
            for name in {"fsync", call}:
                setattr(os, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            Desk(desk.folder).choose([Choice("cam1/1.jpg", "dog")], "bob")
            os._exit(0)
        os.waitpid(child, 0)
        assert desk.chosen() == {"cam1/0.jpg": "cat"}
    assert desk.choose([Choice("cam1/1.jpg", "dog")], "bob")[0].fault == ""
    assert desk.who("cam1/0.jpg") == "ann"


def test_another_place_of_the_decisions_gives_those_since(desk):
    start, nothing = desk.since(0)
    assert (start, nothing) == (0, [])
    desk.choose([Choice("cam1/0.jpg", "cat")], "ann")
    end, found = desk.since(start)
    assert found == [("cam1/0.jpg", "cat", "ann")]
    assert desk.since(end) == (end, [])
    assert desk.since(end + 1) == (end, None)


def test_like_frames_with_the_same_prediction_are_a_group(store, tmp_path):
    times = {"a": "10:00:00", "b": "10:00:08", "c": "10:00:30", "d": "10:00:32", "e": "none"}
    for name, at in times.items():
        label = "dog" if name == "d" else "cat"
        hand_in(store, "cam1", f"{name}.jpg", jpeg(ord(name)), at=f"2025-05-01T{at}+00:00", label=label)
    hand_in(store, "cam2", "a.jpg", jpeg(1), at="2025-05-01T10:00:01+00:00")
    record = list_into(store, tmp_path)
    groups = find_groups(record.frames, 10.0)
    assert groups == {one.frame: one.group for one in record.frames}
    assert groups["cam1/a.jpg"] == groups["cam1/b.jpg"]
    assert len(set(groups.values())) == 5
