"""The list of doubtful labels that a person reads: order, reasons, CSV and page."""

from __future__ import annotations

import csv
import io

import numpy as np

from luigi_tasks.dataset.records import SIMILAR, TRAIN, Picture, Snapshot
from luigi_tasks.labelling.doubtful import describe_doubts, load_thumbnails, render_page, write_csv
from luigi_tasks.training.label_noise import LabelDoubts


def snapshot_of(*pictures: tuple[str, str]) -> Snapshot:
    """Pictures by path and group; the first folder is the class."""
    found = tuple(
        Picture(
            path=path,
            sha256=f"{number:064x}",
            label=path.partition("/")[0],
            split=TRAIN,
            group=group or f"{number:064x}",
            joined=SIMILAR if group else "",
        )
        for number, (path, group) in enumerate(pictures)
    )
    return Snapshot(digest="d" * 20, labels=tuple(sorted({one.label for one in found})), pictures=found)


def doubts_of(chances: list[float], probable: list[int], classes: int = 2) -> LabelDoubts:
    count = len(chances)
    return LabelDoubts(
        np.array(chances),
        np.array(probable),
        np.full((count, classes), 0.5, np.float32),
        np.full((count, classes), 7),
        0.125,
    )


def test_the_doubtful_are_listed_worst_first_with_what_they_probably_are():
    snapshot = snapshot_of(("cat/1.png", ""), ("cat/2.png", ""), ("dog/3.png", ""), ("dog/4.png", ""))
    record = describe_doubts(snapshot, doubts_of([0.6, 0.1, 0.9, 0.49], [1, 1, 0, 0]))
    assert [(one.path, one.label, one.probable) for one in record.doubtful] == [
        ("dog/3.png", "dog", "cat"),
        ("cat/1.png", "cat", "dog"),
    ]
    assert (record.pictures, record.wrong_share) == (4, 0.125)
    assert "7 of the 14 most similar pictures are cat" in record.doubtful[0].why


def test_of_near_duplicates_in_two_classes_those_of_the_rarer_label_are_listed_whatever_their_scores():
    snapshot = snapshot_of(("cat/1.png", "g"), ("cat/2.png", "g"), ("dog/3.png", "g"), ("emu/4.png", ""))
    [found] = describe_doubts(snapshot, doubts_of([0.0] * 4, [1, 1, 2, 0], classes=3)).doubtful
    assert (found.path, found.probable) == ("dog/3.png", "cat")
    assert found.why.startswith("nearly the same picture as cat/1.png")


def test_of_two_near_duplicates_in_two_classes_both_are_listed():
    snapshot = snapshot_of(("cat/1.png", "g"), ("dog/2.png", "g"), ("dog/3.png", ""))
    record = describe_doubts(snapshot, doubts_of([0.0] * 3, [1, 0, 0]))
    assert [(one.path, one.probable) for one in record.doubtful] == [
        ("cat/1.png", "dog"),
        ("dog/2.png", "cat"),
    ]


def test_a_table_has_one_row_for_each_and_no_formula():
    snapshot = snapshot_of(("=cmd/1.png", ""), ("dog/2.png", ""))
    record = describe_doubts(snapshot, doubts_of([0.75, 0.0], [1, 0]))
    [row] = csv.DictReader(io.StringIO(write_csv(record.doubtful).decode("utf-8-sig")))
    assert row["probable label"] == "dog"
    assert row["score"] == "0.7500"
    assert not row["path"].startswith("=")


def test_a_page_shows_the_pictures_and_escapes_their_names():
    snapshot = snapshot_of(("cat/<b>.png", ""), ("dog/2.png", ""))
    record = describe_doubts(snapshot, doubts_of([0.75, 0.0], [1, 0]))
    asked = []

    def load(pictures, height, width):
        asked.extend(pictures)
        return np.zeros((len(pictures), height, width, 3), np.uint8)

    page = render_page(record, load_thumbnails(record, snapshot.pictures, load), "file:///pictures")
    assert [one.path for one in asked] == ["cat/<b>.png"]
    assert page.count("data:image/png;base64,") == 1
    assert "1 of 2 labels are doubtful" in page
    assert "cat/&lt;b&gt;.png" in page
    assert "<b>.png" not in page


def test_a_page_of_a_clean_set_says_so():
    snapshot = snapshot_of(("cat/1.png", ""), ("dog/2.png", ""))
    record = describe_doubts(snapshot, doubts_of([0.0, 0.0], [1, 0]))
    assert "Not one." in render_page(record, {}, "file:///pictures")
