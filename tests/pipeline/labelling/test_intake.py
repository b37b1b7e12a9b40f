"""Labelled frames move into the dataset, verified, and only then leave the inbox."""

from __future__ import annotations

import dataclasses

import pytest

from edge_client.contract.errors import InputError
from luigi_tasks.labelling import labels_file as labelling
from luigi_tasks.labelling.inbox import FrameName
from luigi_tasks.labelling.intake import plan_moves
from luigi_tasks.labelling.labels_file import write_labels
from tests.fakes.inbox import (
    fill_in,
    from_inbox,
    hand_in,
    home,
    in_inbox,
    jpeg,
    list_into,
    make_dataset,
    sha256,
    take,
)


def test_labelled_frames_move_into_their_class_and_the_rest_stays(store, dataset, tmp_path):
    for number in range(4):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number))
    list_into(store, tmp_path / "to")
    path = fill_in(tmp_path / "to", {"cam1/0.jpg": "cat", "cam1/1.jpg": " dog ", "cam1/2.jpg": "-"})
    done = take(store, dataset, path)
    assert (done.moved, done.discarded, done.skipped, dict(done.small)) == (2, 1, (), {})
    assert from_inbox(dataset) == {home("cat", jpeg(0)): jpeg(0), home("dog", jpeg(1)): jpeg(1)}
    assert in_inbox(store) == ["cam1/3.jpg", "cam1/3.json"]
    again = take(store, dataset, path)
    assert (again.moved, again.skipped) == (2, ())
    assert len(from_inbox(dataset)) == 2


def test_a_taken_picture_is_as_readable_as_its_folder(store, tmp_path, store_settings, clients):
    folders = make_dataset("folder", tmp_path, store_settings, {"cat": 2, "dog": 2}, clients)
    (tmp_path / "dataset/cat").chmod(0o750)
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    take(store, folders, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert (tmp_path / "dataset" / home("cat", jpeg(0))).stat().st_mode & 0o777 == 0o640


def test_two_frames_of_one_content_become_one_picture(store, dataset, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    hand_in(store, "cam2", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat", "cam2/a.jpg": "cat"}))
    assert done.skipped == ()
    assert list(from_inbox(dataset)) == [home("cat", jpeg(0))]
    assert in_inbox(store) == []


def test_a_picture_that_changed_after_a_person_saw_it_is_not_taken(store, dataset, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        hand_in(store, "cam1", name, jpeg(ord(name[0])))
    list_into(store, tmp_path / "to")
    hand_in(store, "cam1", "a.jpg", jpeg(66))
    hand_in(store, "cam1", "b.jpg", jpeg(67))
    path = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat", "cam1/b.jpg": "-", "cam1/c.jpg": "dog"})
    done = take(store, dataset, path)
    assert (done.moved, done.discarded) == (1, 0)
    assert [(one.key, "changed since it was listed" in one.reason) for one in done.skipped] == [
        ("cam1/a.jpg", True),
        ("cam1/b.jpg", True),
    ]
    assert list(from_inbox(dataset)) == [home("dog", jpeg(ord("c")))]
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json", "cam1/b.jpg", "cam1/b.json"]


def test_what_is_no_picture_never_reaches_the_dataset_whatever_its_label(store, dataset, tmp_path):
    script = b"\xff\xd8\xff but no picture"
    name = hand_in(store, "cam1", "a.jpg", script)
    row = labelling.Row(f"pictures/{sha256(script)}.jpg", "cat", "", "", "", "cam1", "", "", str(name))
    (tmp_path / "labels.csv").write_bytes(write_labels([row]))
    done = take(store, dataset, tmp_path / "labels.csv")
    assert "cannot be decoded" in done.skipped[0].reason or "complete picture" in done.skipped[0].reason
    assert from_inbox(dataset) == {}
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]


def test_a_name_that_is_taken_by_another_picture_is_left_alone(store, dataset, tmp_path):
    """Two contents with the same first 64 bits can be made on purpose."""
    dataset.write(home("cat", jpeg(0)), jpeg(1))
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert "is another picture" in done.skipped[0].reason
    assert dataset.read(home("cat", jpeg(0))) == jpeg(1)
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]


def test_a_frame_that_is_gone_is_named(store, dataset, tmp_path):
    name = hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    for key in name.keys:
        store.delete(key)
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert done.moved == 0
    assert "gone from the inbox" in done.skipped[0].reason


def labelled(*labels: str, seeds: tuple[int, ...] = ()) -> tuple[labelling.Labelled, ...]:
    digests = [sha256(jpeg(seed)) for seed in seeds or range(len(labels))]
    return tuple(
        labelling.Labelled(number + 2, FrameName("cam1", f"{number}.jpg"), digest, label)
        for number, (label, digest) in enumerate(zip(labels, digests, strict=True))
    )


CONTENTS = {"cat": frozenset({"1.png"}), "dog": frozenset({home("dog", jpeg(50))[4:]}), "é": frozenset({"1"})}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (labelled("cat", "caat"), r"'caat' \(line 3\) is not a class of DATA; did you mean 'cat'\?.*--new-"),
        (labelled("zebra", "cat", "zebra"), r"'zebra' \(line 2, 4\) is not a class"),
        (labelled("Cat"), "differs only in case from the class 'cat'; write it so"),
        (labelled("a/b"), "cannot name a class folder"),
        (labelled("..\\b"), "cannot name a class folder"),
        (labelled(".."), "cannot name a class folder"),
        (labelled(".git"), "cannot name a class folder"),
        (labelled("__MACOSX"), "cannot name a class folder"),
        (labelled("x" * 300), "cannot name a class folder"),
        (labelled("a\nb"), "one line of visible text"),
        (labelled("=HYPERLINK(1)"), "a spreadsheet takes it for a formula"),
        (labelled("cat", "dog", seeds=(1, 1)), "lines 2 and 3 label the same picture differently"),
        (labelled("cat", seeds=(50,)), r"line 2: the dataset has this picture as dog/inbox-\w{16}.jpg"),
    ],
)  # fmt: skip
def test_faults_of_labels_are_named_before_anything_is_moved(rows, named):
    with pytest.raises(InputError, match=named) as caught:
        plan_moves(rows, CONTENTS, "DATA", new_labels=False)
    assert "Nothing was moved" in str(caught.value)


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        plan_moves(labelled("caat", "doog", "Cat"), CONTENTS, "DATA", new_labels=False)
    assert all(one in str(caught.value) for one in ("caat", "doog", "Cat"))


def test_one_frame_under_two_labels_is_refused_and_under_one_is_taken_once():
    [row] = labelled("cat")
    twice = (row, dataclasses.replace(row, line=9))
    assert len(plan_moves(twice, CONTENTS, "DATA", new_labels=False)) == 1
    for other in ("dog", "-"):
        rows = (row, dataclasses.replace(row, line=9, label=other))
        with pytest.raises(InputError, match="lines 2 and 9"):
            plan_moves(rows, CONTENTS, "DATA", new_labels=False)


def test_a_copy_may_be_thrown_away():
    moves = plan_moves(labelled("cat", "-", seeds=(1, 1)), CONTENTS, "DATA", new_labels=False)
    assert [one.path for one in moves] == [home("cat", jpeg(1)), ""]


def test_a_label_in_the_other_unicode_form_is_the_class_that_is_there():
    [move] = plan_moves(labelled("e\u0301"), CONTENTS, "DATA", new_labels=False)
    assert move.path.startswith("é/")


def test_new_labels_start_classes_only_when_asked_for(store, dataset, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    hand_in(store, "cam1", "b.jpg", jpeg(1))
    list_into(store, tmp_path / "to")
    path = fill_in(tmp_path / "to", {"cam1/a.jpg": "otter", "cam1/b.jpg": "cat"})
    with pytest.raises(InputError, match="'otter'"):
        take(store, dataset, path)
    assert from_inbox(dataset) == {}
    assert len(in_inbox(store)) == 4
    done = take(store, dataset, path, new_labels=True, least=15)
    assert done.moved == 2
    assert dict(done.small) == {"otter": 1}
    assert from_inbox(dataset).keys() == {home("otter", jpeg(0)), home("cat", jpeg(1))}
