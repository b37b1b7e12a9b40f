"""The folder that a person labels: listed from the inbox, and labels.csv on its way through spreadsheets."""

from __future__ import annotations

import pytest

from edge_client.contract.errors import InputError
from luigi_tasks.labelling.inbox import FrameName
from luigi_tasks.labelling.intake import decided
from luigi_tasks.labelling.labels_file import COLUMNS, read_labels
from tests.fakes.inbox import (
    fill_in,
    hand_in,
    jpeg,
    list_into,
    read_csv,
    sha256,
)


def test_kept_frames_become_a_folder_to_label(store, tmp_path):
    first, second = jpeg(1), jpeg(2)
    hand_in(store, "cam1", "a.jpg", first)
    hand_in(store, "cam2", "b.jpg", second, label="otter", why="disagreement", release=None)
    record = list_into(store, tmp_path)
    assert (record.pictures, record.waiting, record.skipped) == (2, 0, ())
    rows = read_csv(tmp_path)
    assert tuple(rows[0]) == COLUMNS == (
        "picture", "label", "suggested", "confidence", "why", "device", "release", "at", "frame",
    )  # fmt: skip
    assert [row["label"] for row in rows] == ["", ""]
    assert [tuple(row.values())[2:] for row in rows] == [
        ("cat", "0.4100", "unsure", "cam1", "0123456789abcdef0123", "2025-05-01T10:00:00.000+00:00",
         "cam1/a.jpg"),
        ("otter", "0.4100", "disagreement", "cam2", "", "2025-05-01T10:00:00.000+00:00", "cam2/b.jpg"),
    ]  # fmt: skip
    assert [(tmp_path / row["picture"]).read_bytes() for row in rows] == [first, second]


def test_an_empty_inbox_is_an_empty_folder(store, tmp_path):
    assert list_into(store, tmp_path).pictures == 0
    assert read_csv(tmp_path) == []
    assert "nothing to label" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_devices_take_turns_so_that_none_crowds_out_the_others(store, tmp_path):
    for number in range(5):
        hand_in(store, "a-noisy", f"{number}.jpg", jpeg(number))
    for number in range(2):
        hand_in(store, "quiet", f"{number}.jpg", jpeg(10 + number))
    record = list_into(store, tmp_path, most=4)
    assert [row["frame"] for row in read_csv(tmp_path)] == [
        "a-noisy/0.jpg", "quiet/0.jpg", "a-noisy/1.jpg", "quiet/1.jpg",
    ]  # fmt: skip
    assert record.waiting == 3
    # What is decided keeps its place, whatever comes later or however few are listed.
    fill_in(tmp_path, {"a-noisy/1.jpg": "cat", "quiet/1.jpg": "-"})
    hand_in(store, "new", "0.jpg", jpeg(20))
    (tmp_path / "listing.json").unlink()
    list_into(store, tmp_path, most=3)
    assert {row["frame"]: row["label"] for row in read_csv(tmp_path)} == {
        "a-noisy/0.jpg": "", "a-noisy/1.jpg": "cat", "quiet/1.jpg": "-",
    }  # fmt: skip
    list_into(store, tmp_path, most=1)
    assert {row["frame"]: row["label"] for row in read_csv(tmp_path)} == {
        "a-noisy/1.jpg": "cat", "quiet/1.jpg": "-",
    }  # fmt: skip


def test_labels_already_filled_in_survive_another_listing(store, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    gone = hand_in(store, "cam1", "b.jpg", jpeg(2))
    hand_in(store, "cam1", "c.jpg", jpeg(3))
    list_into(store, tmp_path)
    fill_in(tmp_path, {"cam1/a.jpg": "dog", "cam1/b.jpg": "-", "cam1/c.jpg": "cat"})
    for key in gone.keys:
        store.delete(key)
    hand_in(store, "cam1", "c.jpg", jpeg(33))  # another picture: the label was not for this one
    hand_in(store, "cam1", "d.jpg", jpeg(4))
    list_into(store, tmp_path)
    assert {row["frame"]: row["label"] for row in read_csv(tmp_path)} == {
        "cam1/a.jpg": "dog",
        "cam1/c.jpg": "",
        "cam1/d.jpg": "",
    }
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        f"{sha256(jpeg(seed))}.jpg" for seed in (1, 33, 4)
    }


def test_another_file_named_labels_csv_is_not_overwritten(store, tmp_path):
    (tmp_path / "labels.csv").write_text("my,own,file\n1,2,3\n")
    with pytest.raises(InputError, match=r"would be overwritten.*Give another folder"):
        list_into(store, tmp_path)
    assert (tmp_path / "labels.csv").read_text() == "my,own,file\n1,2,3\n"


# labels.csv on its way through spreadsheets.


FORMULAS = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\t=1", " =1", "\r\n=1", "＝1", "\x00=1", "\u202e=1"]  # noqa: RUF001


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_device_is_a_formula_in_a_spreadsheet(store, tmp_path, text):
    hand_in(store, "cam1", "a.jpg", jpeg(1), label=text, why=text, release=text, at=text)
    list_into(store, tmp_path)
    [row] = read_csv(tmp_path)
    for column in ("suggested", "why", "release", "at"):
        assert row[column].startswith("'"), row
        assert row[column].isprintable()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path, delimiter, encoding, end):
    digest = sha256(b"x")
    lines = [
        ["Label", "picture", "frame", "notes"],
        ["größe", f"pictures/{digest}.jpg", "cam1/a.jpg", ""],
        ["", "", "", ""],
        ["", f"pictures\\{digest}.jpg", "cam1/b.jpg", "mine"],
    ]
    text = end.join(delimiter.join(line) for line in lines) + end
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    rows = read_labels(tmp_path / "l.csv")
    assert [(row.line, str(row.name), row.sha256, row.label) for row in rows] == [
        (2, "cam1/a.jpg", digest, "größe"),
        (4, "cam1/b.jpg", digest, ""),
    ]
    assert decided(rows) == (FrameName("cam1", "a.jpg"),)


def csv_of(*rows: str) -> bytes:
    return "\n".join(["picture,label,frame", *rows]).encode()


GOOD_PICTURE = f"pictures/{'0' * 64}.jpg"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no column picture, label, frame"),
        (b"a,b\n1,2\n", "no column picture, label, frame"),
        ("picture,label,frame\n".encode("utf-16"), "not UTF-8"),
        (csv_of("pictures/../x.jpg,cat,cam1/a.jpg"), "line 2: picture 'pictures/../x.jpg'"),
        (csv_of(f"{GOOD_PICTURE},cat,../a.jpg"), "line 2: device id '..'"),
        (csv_of(f"{GOOD_PICTURE},cat,cam1/../../x.jpg"), "line 2: inbox file '../../x.jpg'"),
        (csv_of(f"{GOOD_PICTURE},cat,cam1/x.json"), "ends in .jpg"),
        (csv_of("x", f"{GOOD_PICTURE},cat"), "line 2: .*; line 3: "),
        (csv_of('"' + "x" * 200_000 + '",cat,cam1/a.jpg'), "not a CSV file"),
    ],
)
def test_a_file_that_is_no_labels_csv_is_refused_with_its_lines(tmp_path, content, named):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_labels(tmp_path / "l.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.csv: No such file.*give the filled-in labels.csv"):
        read_labels(tmp_path / "none.csv")
