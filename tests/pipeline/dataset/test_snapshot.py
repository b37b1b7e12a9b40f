"""What a snapshot promises: every usable picture once, a split that stays, and faults by name."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import unicodedata
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import InputError
from luigi_tasks.dataset import found, sources
from luigi_tasks.dataset.bucket_source import BucketSource
from luigi_tasks.dataset.records import HOLDOUT, TRAIN, ReadPicture, Snapshot, SnapshotSummary
from luigi_tasks.dataset.sources import FolderSource
from luigi_tasks.dataset.splits import ShardSplit, choose_splits, find_moved, is_learned_from
from luigi_tasks.progress import ignore_progress
from tests.fakes.datasets import class_folders, dataset_settings, picture_bytes, write_tree
from tests.fakes.snapshots import reasons, snap, take_snapshot


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def decompression_bomb():
    """A PNG of 100,000 x 100,000 pixels in under 200 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_a_snapshot_names_every_picture_with_its_hash_label_and_split(tmp_path):
    tree = class_folders({"roses": 12, "daisies": 8})
    reports = []
    write_tree(tmp_path / "p", tree)
    snapshot = take_snapshot(
        FolderSource(tmp_path / "p"), dataset_settings(tmp_path), lambda *report: reports.append(report)
    )
    assert snapshot.labels == ("daisies", "roses")
    assert {(one.path, one.sha256, one.label) for one in snapshot.pictures} == {
        (path, sha256(data), path.split("/")[0]) for path, data in tree.items()
    }
    assert snapshot.left_out == ()
    assert snapshot.layout == ""
    assert sorted(snapshot.split(TRAIN) + snapshot.split(HOLDOUT), key=lambda one: one.sha256) == list(
        snapshot.pictures
    )
    assert reports == [("reading pictures", done, 20) for done in range(1, 21)]


def test_a_snapshot_survives_being_stored(tmp_path):
    snapshot = snap(tmp_path / "p", class_folders({"ä": 12, "b": 8}))
    data = encode_document(snapshot)
    assert decode_document(Snapshot, data, source="s", limit_bytes=1 << 20) == snapshot
    summary = SnapshotSummary.of(snapshot)
    assert summary.train_pictures + summary.holdout_pictures == 20
    assert (summary.digest, summary.labels, summary.left_out) == (snapshot.digest, ("b", "ä"), 0)


def test_the_same_pictures_under_other_names_are_the_same_snapshot(tmp_path):
    tree = class_folders({"a": 10, "b": 10})
    renamed = {path.replace("/0", "/2024/x-"): data for path, data in reversed(tree.items())}
    first, second = snap(tmp_path / "1", tree), snap(tmp_path / "2", renamed)
    assert first.digest == second.digest
    assert [(one.sha256, one.split) for one in first.pictures] == [
        (one.sha256, one.split) for one in second.pictures
    ]


def test_another_label_picture_or_split_is_another_snapshot(tmp_path):
    tree = class_folders({"a": 10, "b": 10})
    relabelled = {path.replace("b/", "c/"): data for path, data in tree.items()}
    swapped = {**tree, "a/000.png": tree["b/000.png"], "b/000.png": tree["a/000.png"]}
    digests = [
        snap(tmp_path / "p", tree).digest,
        snap(tmp_path / "p", holdout_percent=60.0).digest,
        snap(tmp_path / "relabelled", relabelled).digest,
        snap(tmp_path / "swapped", swapped).digest,
        snap(tmp_path / "p", {"a/new.png": picture_bytes(77)}).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_pictures_in_a_bucket_give_the_snapshot_that_a_folder_gives(tmp_path, store_settings):
    tree = class_folders({"a": 10, "b": 10})
    source = BucketSource(store_settings.url + "/pictures", store_settings)
    for path, data in tree.items():
        source.client.put_object(Bucket=source.bucket, Key=source.prefix + path, Body=data)
    assert take_snapshot(source, dataset_settings(tmp_path), ignore_progress) == snap(tmp_path / "p", tree)


# --- the split ----------------------------------------------------------------------------------


def test_no_picture_moves_when_others_arrive_or_leave(tmp_path):
    first = snap(tmp_path / "1", class_folders({"a": 80, "b": 80}))
    splits = {one.sha256: one.split for one in first.pictures}
    more = snap(tmp_path / "2", class_folders({"a": 120, "b": 60, "c": 40}))
    common = [one for one in more.pictures if one.sha256 in splits]
    assert len(common) == 80 + 60
    assert all(one.split == splits[one.sha256] for one in common)


hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    found=st.dictionaries(hashes, st.sampled_from("abc"), min_size=1, max_size=60),
    percent=st.floats(1, 90),
)
def test_every_class_of_two_has_pictures_to_learn_and_to_judge(found, percent):
    splits = choose_splits(found, percent)
    assert splits.keys() == found.keys()
    for label in set(found.values()):
        digests = [digest for digest in found if found[digest] == label]
        if len(digests) >= 2:
            assert {splits[digest] for digest in digests} == {TRAIN, HOLDOUT}
    # Hold-out pictures are those of the lowest hashes, so the order of arrival decides nothing.
    for label in set(found.values()):
        in_order = [splits[digest] for digest in sorted(found) if found[digest] == label]
        assert in_order == sorted(in_order)  # "holdout" < "train"


def test_the_holdout_has_its_share():
    found = {sha256(str(number).encode()): "a" for number in range(20_000)}
    splits = list(choose_splits(found, 20.0).values())
    assert 0.19 < splits.count(HOLDOUT) / len(splits) < 0.21


def test_the_limit_is_on_the_first_32_bits():
    found = {f"{position:08x}" + "0" * 56: "a" for position in (0, 0x33333333, 0x33333334, 0xFFFFFFFF)}
    assert list(choose_splits(found, 20.0).values()) == [HOLDOUT, HOLDOUT, TRAIN, TRAIN]


def test_the_split_is_the_rule_of_each_picture_where_no_class_is_small():
    found = {sha256(str(number).encode()): "ab"[number % 2] for number in range(2_000)}
    splits = choose_splits(found, 12.5)
    assert {one for one, split in splits.items() if split == TRAIN} == {
        one for one in found if is_learned_from(one, 12.5)
    }


@given(
    found=st.dictionaries(hashes, st.sampled_from("abc"), min_size=1, max_size=40), percent=st.floats(1, 90)
)
def test_a_shard_knows_its_split_by_the_few_pictures_that_were_moved(found, percent):
    splits = choose_splits(found, percent)
    read = [
        ReadPicture(one, 1, "", one, "", f"shard {number % 3}") for number, one in enumerate(sorted(found))
    ]
    moved = find_moved(read, splits, percent)
    for shard in {one.shard for one in read}:
        own = [one.sha256 for one in read if one.shard == shard]
        split = ShardSplit.find(own, moved.get(shard, ()), 7, percent)
        assert split.holdout == {one for one in own if splits[one] == HOLDOUT}
        assert split.train_pictures == 7
    summary = SnapshotSummary.of(Snapshot(digest="d", labels=(), pictures=(), moved=moved))
    assert summary.moved.keys() == moved.keys()
    assert all(summary.moved.values())


# --- copies -------------------------------------------------------------------------------------


def test_copies_within_a_class_count_once(tmp_path):
    tree = class_folders({"a": 5, "b": 5})
    snapshot = snap(
        tmp_path / "p", {**tree, "a/zz-copy.png": tree["a/000.png"], "b/sub/copy.png": tree["b/001.png"]}
    )
    assert len(snapshot.pictures) == 10
    assert snapshot.digest == snap(tmp_path / "plain", tree).digest
    assert "a/000.png" in {one.path for one in snapshot.pictures}


def test_copies_do_not_fill_up_a_class(tmp_path):
    tree = class_folders({"a": 5, "b": 5, "c": 1})
    copies = {f"c/{number}.png": tree["c/000.png"] for number in range(9)}
    with pytest.raises(InputError, match=r"10 in a class that is too small .'c' has 1 usable different"):
        snap(tmp_path / "p", tree | copies)


def test_a_picture_in_two_classes_is_left_out_with_all_its_copies(tmp_path):
    """TrashNet has three such pictures."""
    tree = class_folders({"a": 60, "b": 60})
    tree |= {"b/x.png": tree["a/003.png"], "b/y.png": tree["a/003.png"], "a/z.png": tree["b/004.png"]}
    snapshot = snap(tmp_path / "p", tree)
    assert reasons(snapshot) == dict.fromkeys(
        ("a/003.png", "b/x.png", "b/y.png", "a/z.png", "b/004.png"), "in two classes"
    )
    words = {one.path: one.words for one in snapshot.left_out}
    assert words["b/y.png"] == "the same picture as a/003.png; keep the right one"
    assert words["a/003.png"] == "the same picture as b/x.png; keep the right one"
    assert len(snapshot.pictures) == 118


# --- counts -------------------------------------------------------------------------------------


def test_one_class_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"p: only one class \(a\) with 2 usable .* needs at least two"):
        snap(tmp_path / "p", class_folders({"a": 20}))
    with pytest.raises(InputError, match=r"only one class \(a\) .*left out: 1 class without .*left-out\.csv"):
        snap(tmp_path / "p", {"b/notes.txt": b""}, max_left_out_percent=100)


def test_a_class_with_too_few_pictures_is_left_out_and_counted(tmp_path):
    tree = class_folders({"a": 140, "b": 150, "c": 14})
    snapshot = snap(tmp_path / "p", tree, min_images_per_class=15)
    assert snapshot.labels == ("a", "b")
    small = {path: "in a class that is too small" for path in tree if path.startswith("c/")}
    assert reasons(snapshot) == {**small, "c/": "class without usable pictures"}
    with pytest.raises(InputError) as caught:
        snap(tmp_path / "p", min_images_per_class=15, max_left_out_percent=4)
    assert "14 of 304 pictures (4.6%) cannot be used, [dataset] max_left_out_percent is 4" in str(
        caught.value
    )
    assert str(caught.value).count("'c' has 14 usable different pictures") == 1
    assert "All of them: left-out.csv. Repair or remove them, or raise the limit" in str(caught.value)


def test_no_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no pictures found \(but 1 no picture, such as a/notes.txt\)"):
        snap(tmp_path / "p", {"a/notes.txt": b""})


def test_an_empty_class_is_named_and_never_stops_a_run(tmp_path):
    tree = class_folders({"a": 5, "b": 5}) | {"text/1.txt": b"", "broken/1.png": b""}
    (tmp_path / "p" / "nothing" / "in it").mkdir(parents=True)
    found = reasons(snap(tmp_path / "p", tree, max_left_out_percent=10))
    assert found == {
        "broken/": "class without usable pictures",
        "broken/1.png": "undecodable",
        "nothing/": "class without usable pictures",
        "text/": "class without usable pictures",
        "text/1.txt": "no picture",
    }
    (tmp_path / "p/broken/1.png").unlink()
    assert (
        reasons(snap(tmp_path / "p", max_left_out_percent=0))["nothing/"] == "class without usable pictures"
    )


# --- broken and unusual pictures ----------------------------------------------------------------


def test_more_undecodable_pictures_than_allowed_are_named_with_reasons_at_most_five(tmp_path):
    tree = class_folders({"a": 54, "b": 54})
    tree |= {f"a/broken{number:02}.jpg": b"not a picture" for number in range(11)}
    tree["b/truncated.png"] = picture_bytes(1, size=64)[:500]
    with pytest.raises(InputError) as caught:
        snap(tmp_path / "p", tree, max_left_out_percent=9.9)
    message = str(caught.value)
    assert "12 of 120 pictures (10.0%) cannot be used, [dataset] max_left_out_percent is 9.9" in message
    assert "12 undecodable (a/broken00.jpg: not a complete picture" in message
    assert message.count("a/broken") == 5
    assert "; and 7 more)" in message
    assert len(snap(tmp_path / "p", max_left_out_percent=10).pictures) == 108


def test_undecodable_pictures_within_the_limit_are_left_out_and_change_nothing(tmp_path):
    good = class_folders({"a": 30, "b": 30})
    broken = {"b/x.png": b"", "a/y.jpg": b"no", "a/bomb.png": decompression_bomb()}
    snapshot = snap(tmp_path / "p", good | broken)
    assert reasons(snapshot) == dict.fromkeys(sorted(broken), "undecodable")
    assert "pixels are accepted" in snapshot.left_out[0].words
    assert snapshot.digest == snap(tmp_path / "plain", good).digest


def test_files_that_are_no_pictures_are_named_and_do_not_count(tmp_path):
    good = class_folders({"a": 5, "b": 5})
    foreign = {
        "a/labels.txt": b"x",
        "a/1.XML": b"<x/>",
        "b/Thumbs.db": b"x",
        "b/desktop.ini": b"x",
        "b/film.MOV": b"\0\0\0\x14ftypqt  ",
        "b/deep/archive.zip": b"PK",
        "b/unknown.xyz": b"text",
        "b/unknown": b"",
    }
    snapshot = snap(tmp_path / "p", good | foreign, max_left_out_percent=0)
    assert reasons(snapshot) == dict.fromkeys(sorted(foreign), "no picture")
    assert snapshot.digest == snap(tmp_path / "plain", good).digest


def test_a_truncated_picture_without_a_suffix_counts(tmp_path):
    tree = class_folders({"a": 5, "b": 5}) | {"a/IMG_1": picture_bytes(7, size=64, suffix="JPEG")[:900]}
    with pytest.raises(InputError, match=r"1 undecodable .a/IMG_1: .*truncated"):
        snap(tmp_path / "p", tree)


def test_a_picture_on_a_bad_sector_is_left_out(tmp_path, monkeypatch):
    read = found.read_within

    def read_disk(file, size_bytes, path):
        if path == "b/bad.png":
            raise OSError(errno.EIO, "Input/output error", path)
        return read(file, size_bytes, path)

    monkeypatch.setattr(sources, "read_within", read_disk)
    tree = class_folders({"a": 20, "b": 20}) | {"b/bad.png": picture_bytes(7)}
    snapshot = snap(tmp_path / "p", tree)
    assert reasons(snapshot) == {"b/bad.png": "unreadable"}
    assert snapshot.left_out[0].words.startswith("b/bad.png: Input/output error")


def test_a_picture_outside_of_all_class_folders_is_left_out(tmp_path):
    tree = class_folders({"a": 5, "b": 5}) | {"loose.png": picture_bytes(7), "README": b"", "x.txt": b""}
    assert reasons(snap(tmp_path / "p", tree, max_left_out_percent=10)) == {"loose.png": "in no class folder"}


def test_grey_transparent_cmyk_and_other_pictures_are_used(tmp_path):
    image = Image.radial_gradient("L").resize((40, 30))
    rgb = Image.merge("RGB", (image, image.rotate(90), image))
    unusual = {
        "a/grey.png": encoded(image, "PNG"),
        "a/rgba.png": encoded(rgb.convert("RGBA"), "PNG"),
        "a/cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "a/palette.gif": encoded(rgb, "GIF"),
        "a/one.bmp": encoded(rgb, "BMP"),
        "a/one.webp": encoded(rgb, "WEBP"),
        "a/one.tiff": encoded(rgb, "TIFF"),
        "a/wrong-suffix.jpg": encoded(rgb, "PNG"),
    }
    snapshot = snap(tmp_path / "p", unusual | class_folders({"b": 5}))
    assert {one.path for one in snapshot.pictures if one.label == "a"} == set(unusual)


def test_a_picture_that_vanishes_while_reading_is_named(tmp_path):
    folder = write_tree(tmp_path / "p", class_folders({"a": 5, "b": 5}))

    class Vanishing(FolderSource):
        def listing(self):
            listing = super().listing()
            (folder / "b" / "002.png").unlink()
            return listing

    with pytest.raises(InputError, match=r"b/002\.png: No such file.*Run again"):
        take_snapshot(Vanishing(folder), dataset_settings(tmp_path), ignore_progress)


# --- labels -------------------------------------------------------------------------------------


def test_labels_are_composed_unicode_without_outer_blanks(tmp_path):
    decomposed = unicodedata.normalize("NFD", "Rosé")
    assert decomposed != "Rosé"
    snapshot = snap(tmp_path / "p", class_folders({decomposed: 4, " tulip ": 4}))
    assert snapshot.labels == ("Rosé", "tulip")
    assert {one.label for one in snapshot.pictures} == {"Rosé", "tulip"}
    assert all(FolderSource(tmp_path / "p").read(one.path) for one in snapshot.pictures)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Roses", "roses"),
        ("roses", "roses "),
        (unicodedata.normalize("NFD", "Rosé"), "Rosé"),
        ("Straße", "STRASSE"),
    ],
    ids=["case", "blank", "Unicode form", "sharp s"],
)
def test_two_folders_that_would_be_one_class_are_named(tmp_path, one, other):
    with pytest.raises(InputError, match="differ only in case, blanks or Unicode form; merge them") as caught:
        snap(tmp_path / "p", class_folders({one: 3, other: 3, "tulips": 3}))
    assert repr(one) in str(caught.value)
    assert repr(other) in str(caught.value)


@pytest.mark.parametrize("label", ["two\nlines", "bell\a", "line\u2028separator", " "])
def test_a_label_that_is_not_one_line_of_text_is_named(tmp_path, label):
    with pytest.raises(InputError, match="rename it; a label is one line of visible text"):
        snap(tmp_path / "p", class_folders({label: 3, "tulips": 3}))
