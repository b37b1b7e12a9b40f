"""List of pictures that probably stand in the wrong class, for a person: as a record, a CSV and a page."""

from __future__ import annotations

import base64
import collections
import csv
import io
from typing import TYPE_CHECKING

from luigi_tasks.cells import guard_formula
from luigi_tasks.dataset.groups import find_contradictions
from luigi_tasks.dataset.pixels import to_png
from luigi_tasks.labelling.records import DoubtfulPicture, DoubtfulRecord
from luigi_tasks.pages import render_template
from luigi_tasks.training.label_noise import DOUBTED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture, Snapshot
    from luigi_tasks.training.label_noise import LabelDoubts

COLUMNS = ("path", "label", "probable label", "score", "why")
SHOWN = 200  # pictures on the page; the CSV has all
THUMBNAIL_PIXELS = 160


def describe_doubts(snapshot: Snapshot, doubts: LabelDoubts) -> DoubtfulRecord:
    """Return the record of a snapshot's doubtful labels."""
    return DoubtfulRecord(
        snapshot=snapshot.digest,
        pictures=len(snapshot.pictures),
        wrong_share=round(doubts.wrong_share, 6),
        doubtful=list_doubtful(snapshot, doubts),
    )


def list_doubtful(snapshot: Snapshot, doubts: LabelDoubts) -> tuple[DoubtfulPicture, ...]:
    """Return the doubtful pictures, worst first.

    Near-duplicates with different labels are doubtful whatever their score: those of the rarer label.

    Args:
        snapshot: The pictures that were looked at.
        doubts: What speaks against each label.
    """
    labels, twins = snapshot.labels, _find_twins(snapshot)
    found = []
    for row, picture in enumerate(snapshot.pictures):
        score, twin = float(doubts.chances[row]), twins.get(picture.sha256)
        if score < DOUBTED and twin is None:
            continue
        number = int(doubts.probable[row]) if score >= DOUBTED or twin is None else labels.index(twin.label)
        nearest = doubts.neighbours[row]
        why = [
            f"{labels[number]} by {doubts.probabilities[row, number]:.0%} for other pictures' labels",
            f"{nearest[number]} of the {nearest.sum()} most similar pictures are {labels[number]}",
        ]
        if twin is not None:
            why.insert(0, f"nearly the same picture as {twin.path}")
        found.append(
            DoubtfulPicture(
                path=picture.path,
                sha256=picture.sha256,
                label=picture.label,
                probable=labels[number],
                score=round(score, 4),
                why="; ".join(why),
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.score, one.path)))


def _find_twins(snapshot: Snapshot) -> dict[str, Picture]:
    """Map a picture's hash to a near-duplicate of another class, where more of its scene are in that class.

    Where two classes have equally many of a scene, the pictures of both are doubtful.
    """
    found = {}
    for scene in find_contradictions(snapshot):
        counts = collections.Counter(one.label for one in scene)
        most = max(counts.values())
        for picture in scene:
            others = [one for one in scene if one.label != picture.label and counts[one.label] == most]
            if others:
                found[picture.sha256] = others[0]
    return found


def write_csv(doubtful: Sequence[DoubtfulPicture]) -> bytes:
    """Return the list as CSV: UTF-8 with a byte order mark for Excel, every cell quoted."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for one in doubtful:
        cells = (one.path, one.label, one.probable, f"{one.score:.4f}", one.why)
        writer.writerow([guard_formula(cell) for cell in cells])
    return file.getvalue().encode("utf-8-sig")


def load_thumbnails(
    record: DoubtfulRecord, pictures: Sequence[Picture], pixels_of: PixelLoader
) -> dict[str, bytes]:
    """Return a PNG of each picture that the page shows, by content hash."""
    shown = {one.sha256 for one in record.doubtful[:SHOWN]}
    wanted = [one for one in pictures if one.sha256 in shown]
    pixels = pixels_of(wanted, THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    return {one.sha256: to_png(pixels[index]) for index, one in enumerate(wanted)}


def render_page(record: DoubtfulRecord, thumbnails: Mapping[str, bytes], dataset: str) -> str:
    """Return the list as one HTML page, without scripts or other files.

    Args:
        record: What was found.
        thumbnails: PNG by content hash.
        dataset: Address of the pictures.
    """
    values = {
        "record": record,
        "shown": record.doubtful[:SHOWN],
        "pictures": {sha256: base64.b64encode(png).decode() for sha256, png in thumbnails.items()},
        "dataset": dataset,
    }
    return render_template("doubtful.html", values)
