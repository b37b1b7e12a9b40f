"""Which folder is the class, and which split folders give: understood, or refused by name."""

from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.layout import find_layout
from luigi_tasks.dataset.records import HOLDOUT, TRAIN
from tests.fakes.datasets import picture_bytes
from tests.fakes.snapshots import reasons, snap

# Folders of pictures -> class and given split of each; None: no split is given.
UNDERSTOOD = {
    "classes": ({"roses": "roses", "tulips": "tulips"}, {}),
    "nested": ({"roses/2024/may": "roses", "roses": "roses", "tulips/2023": "tulips"}, {}),
    "wrapped": ({"photos/roses": "roses", "photos/tulips/x": "tulips"}, {}),
    "wrapped twice": ({"a/b/roses": "roses", "a/b/tulips": "tulips"}, {}),
    "a single class with folders in it": ({"a/roses": "roses", "a/tulips": "tulips"}, {}),
    "train and test": (
        {"train/roses": "roses", "train/tulips": "tulips", "test/roses": "roses", "test/tulips/x": "tulips"},
        {"train": TRAIN, "test": HOLDOUT},
    ),
    "train and valid": (
        {"train/roses": "roses", "train/tulips": "tulips", "valid/roses": "roses", "valid/tulips": "tulips"},
        {"train": TRAIN, "valid": HOLDOUT},
    ),
    "all three, wrapped, in any case": (
        {
            "data/images/Train/roses": "roses",
            "data/images/Train/tulips": "tulips",
            "data/images/VALIDATION/roses": "roses",
            "data/images/Test_set/tulips": "tulips",
        },
        {"data/images/Train": TRAIN, "data/images/VALIDATION": TRAIN, "data/images/Test_set": HOLDOUT},
    ),
    "a split twice, as archives have it": (
        {"Training_set/training_set/a": "a", "Training_set/training_set/b": "b", "test_set/test_set/a/x": "a"}
        | {"test_set/test_set/b": "b"},
        {"Training_set": TRAIN, "test_set": HOLDOUT},
    ),
    "a split with the name of the set": (
        {"seg_train/a": "a", "seg_train/b": "b", "seg_test/a": "a", "seg_test/b": "b"},
        {"seg_train": TRAIN, "seg_test": HOLDOUT},
    ),
    "classes that sound like a split": ({"freight_train/x": "freight_train", "car": "car"}, {}),
    "a class train": (
        {"train/steam": "train", "train/freight": "train", "car/small": "car", "bus": "bus"},
        {},
    ),
    "kin": (
        {"training/a": "a", "val2017/a": "a", "testing/b": "b", "training/b": "b"},
        {"training": TRAIN, "val2017": TRAIN, "testing": HOLDOUT},
    ),
    "the split below the classes": (
        {"roses/train": "roses", "roses/test": "roses", "tulips/train": "tulips", "tulips/test/1": "tulips"},
        {"roses/train": TRAIN, "roses/test": HOLDOUT, "tulips/train": TRAIN, "tulips/test": HOLDOUT},
    ),
    "a train among vehicles": ({"train": "train", "bus": "bus", "train/steam": "train"}, {}),
    "training pictures alone": ({"train/roses": "roses", "train/tulips": "tulips"}, {}),
    "the same subfolders in each class": (
        {"good/cam1": "good", "good/cam2": "good", "bad/cam1": "bad", "bad/cam2": "bad", "ugly": "ugly"},
        {},
    ),
    "a class of pictures": ({"images": "images", "data": "data"}, {}),
    "parts of a split in some classes": (
        {"roses/train": "roses", "roses/test": "roses", "tulips": "tulips"},
        {},
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_folders_are_understood(name: str) -> None:
    classes, sides = UNDERSTOOD[name]
    layout = find_layout(classes, "DATA")
    assert {folder: layout.class_folder(f"{folder}/1.jpg") for folder in classes} == classes
    for folder in classes:
        right = next((side for top, side in sides.items() if f"{folder}/".startswith(f"{top}/")), "")
        assert layout.given_split(f"{folder}/1.jpg") == right
    # New pictures of a class are learned from, and lie in its folder.
    for label in classes.values():
        new = f"{layout.folder_of(label)}/new.jpg"
        assert layout.class_folder(new) == label
        assert layout.given_split(new) in {TRAIN, ""}
    assert bool(layout.in_words()) == (bool(sides) or not any(one in classes for one in classes.values()))


REFUSED = {
    "pictures right below a split": (
        ["train", "valid/roses", "valid/tulips"],
        "'train', 'valid' look like a split, but pictures lie directly in 'train'; a classifier",
    ),
    "unlabelled test pictures": (["train/roses", "train/tulips", "test"], "lie directly in 'test'"),
    "a split next to classes": (
        ["train/roses", "test/roses", "tulips"],
        "'test', 'train' look like a split, but lie next to 'tulips'; move .* or rename them if they",
    ),
    "predictions next to a split": (
        ["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a", "seg_pred/seg_pred"],
        "'seg_test', 'seg_train' look like a split, but lie next to 'seg_pred'",
    ),
    "training pictures next to others": (
        ["Training/a", "Training/b", "Validierung/a", "Validierung/b"],
        "'Training' looks like a split, but lies next to 'Validierung'",
    ),
    "training pictures next to unlabelled ones": (["train/a", "train/b", "unlabeled"], "next to 'unlabeled'"),
    "a split below one side": (["train/train/a", "train/train/b", "test/a", "test/b"], "'train/train' is no"),
    "a side without classes": (
        ["train/n01/images", "train/n02/images", "val/images", "test/images"],
        "'test/images', 'val/images' are no class",
    ),
    "no training pictures": (["test/roses", "valid/roses"], "without training pictures; add a folder train"),
    "detection": (
        ["images", "labels"],
        "'images', 'labels' are no classes, but the folders of a data set for",
    ),
    "detection, split above": (["train/images", "valid/images"], "'images' is no class"),
    "detection, split below": (["images/train", "images/val"], "lie directly in 'train', 'val'"),
    "COCO": (["train2017", "val2017"], "lie directly in 'train2017', 'val2017'"),
    "VOC": (["JPEGImages", "SegmentationClass"], "object detection or segmentation"),
    "pictures alone": (["images"], "'images' is no class"),
    "forms of the same pictures (PlantVillage)": (
        ["set/color/a", "set/color/b", "set/segmented/a", "set/segmented/b"],
        r"'set/color', 'set/segmented' hold the same folders \('a', 'b'\); give the folder .*DATA/set/color",
    ),
    "a copy in the data": (
        ["all/roses", "all/tulips", "roses", "tulips"],
        "'all' holds the other folders once",
    ),
    "a data set next to Frigate's own": (
        ["dataset/open", "dataset/closed", "train"],
        r"'dataset' holds folders \('closed', 'open'\), next to 'train'; .*--pictures DATA/dataset\)",
    ),
    "a project with pictures of its own": (["data/x/a", "data/x/b", "docs"], "'data' holds folders"),
    "a split next to a test of single pictures": (
        ["New (x)/train/a", "New (x)/train/b", "New (x)/valid/a", "New (x)/valid/b", "test/test"],
        r"'New \(x\)' holds a split \('train', 'valid'\), next to 'test'; .*--pictures 'DATA/New \(x\)'\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_may_mean_something_else_are_refused_by_name(name: str) -> None:
    folders, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        find_layout(folders, "DATA")


names = st.sampled_from(["train", "Valid", "test", "images", "labels", "roses", "tulips", "a", "", "é"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@given(folders=st.lists(paths, min_size=1, max_size=6))
def test_any_folders_are_refused_or_give_classes_that_are_in_the_path(folders):
    try:
        layout = find_layout(folders, "DATA")
    except InputError as e:
        assert str(e).startswith("DATA: ")  # noqa: PT017 - either is right
        return
    for folder in folders:
        found = layout.class_folder(f"{folder}/1.jpg")
        assert not found or found in folder.split("/")
        assert layout.given_split(f"{folder}/1.jpg") in {TRAIN, HOLDOUT, ""}
        if found:
            new = f"{layout.folder_of(found)}/new.jpg"
            assert layout.class_folder(new) == found
            assert layout.given_split(new) in {TRAIN, ""}


def pictures(**counts: int) -> dict[str, bytes]:
    """So many pictures in each folder; `train__roses` is train/roses."""
    return {
        f"{folder.replace('__', '/')}/{number}.png": picture_bytes(1000 * index + number)
        for index, (folder, count) in enumerate(counts.items())
        for number in range(count)
    }


def sides(snapshot):
    """Number of pictures by the top folder, label and split."""
    return collections.Counter((one.path.split("/")[0], one.label, one.split) for one in snapshot.pictures)


def test_the_split_of_the_folders_is_taken(tmp_path):
    tree = pictures(train__a=9, train__b=9, valid__a=3, valid__b=3, test__a=4, test__b=4)
    snapshot = snap(tmp_path / "p", tree)
    assert snapshot.labels == ("a", "b")
    assert sides(snapshot) == {
        ("train", "a", TRAIN): 9,
        ("train", "b", TRAIN): 9,
        ("valid", "a", TRAIN): 3,
        ("valid", "b", TRAIN): 3,
        ("test", "a", HOLDOUT): 4,
        ("test", "b", HOLDOUT): 4,
    }
    assert snapshot.layout == (
        "the split is that of the folders: test is the hold-out, train is learned from, valid is learned from"
    )


def test_a_class_on_one_side_only_is_split_as_usual(tmp_path):
    snapshot = snap(tmp_path / "p", pictures(train__a=40, test__a=4, train__b=40, test__c=40))
    found = sides(snapshot)
    assert found["train", "a", TRAIN] == 40
    for folder, label in (("train", "b"), ("test", "c")):
        assert found[folder, label, TRAIN] > found[folder, label, HOLDOUT] > 0


def test_frames_of_videos_that_were_divided_one_by_one_stand_together_and_leave_both_sides(tmp_path):
    tree = {
        f"{'test' if frame == 4 else 'train'}/{label}/v{video}-{frame}.png": picture_bytes(number)
        for number, (label, video, frame) in enumerate(itertools.product("ab", range(12), range(5)))
    }
    snapshot = snap(tmp_path / "p", tree, group=r"/./v\d+")
    videos = collections.defaultdict(set)
    for one in snapshot.pictures:
        videos[one.label, one.path.split("/")[2].split("-")[0]].add(one.split)
    assert {len(found) for found in videos.values()} == {1}
    for label in "ab":
        held = [one.split == HOLDOUT for one in snapshot.pictures if one.label == label]
        assert 0.05 < sum(held) / len(held) < 0.4
    assert "pictures stand with their groups" in snapshot.layout


def test_a_scene_of_both_folders_is_hold_out(tmp_path):
    tree = pictures(train__a=20, train__b=20, test__a=5, test__b=5)
    named = tmp_path / "groups.csv"
    named.write_text("path,group\ntrain/a/0.png,one\ntest/a/0.png,one\n")
    found = {one.path: one.split for one in snap(tmp_path / "p", tree, group=str(named)).pictures}
    wrong = [path for path, side in found.items() if (side == HOLDOUT) != path.startswith("test/")]
    assert wrong == ["train/a/0.png"]


def test_a_copy_in_the_test_folder_is_never_learned_from(tmp_path):
    tree = pictures(train__a=9, train__b=9, test__a=4, test__b=4)
    tree["test/a/copy.png"] = tree["train/a/0.png"]
    snapshot = snap(tmp_path / "p", tree)
    [copy] = [one for one in snapshot.pictures if one.path in {"test/a/copy.png", "train/a/0.png"}]
    assert copy.split == HOLDOUT


def test_an_empty_class_below_a_split_is_named_once(tmp_path):
    tree = pictures(train__a=9, train__b=9, test__a=4, test__b=4) | {"train/c/1.txt": b""}
    (tmp_path / "p/test/c").mkdir(parents=True)
    assert reasons(snap(tmp_path / "p", tree)) == {
        "c/": "class without usable pictures",
        "train/c/1.txt": "no picture",
    }


def test_pictures_next_to_wrapped_classes_are_left_out(tmp_path):
    tree = pictures(photos__a=20, photos__b=20) | {
        "photos/cover.png": picture_bytes(99),
        "photos/README": b"x",
    }
    snapshot = snap(tmp_path / "p", tree)
    assert snapshot.labels == ("a", "b")
    assert snapshot.layout == "the classes are the folders in photos/"
    assert reasons(snapshot) == {"photos/cover.png": "in no class folder"}


def test_folders_of_a_camera_are_no_classes(tmp_path):
    tree = pictures(DCIM__a=20, DCIM__b=20) | {"MISC/AUTPRINT.MRK": b"x", "PRIVATE/INDEX.BDM": b"x"}
    assert snap(tmp_path / "p", tree | {"INFO/1.dat": b"x"}).labels == ("a", "b")
