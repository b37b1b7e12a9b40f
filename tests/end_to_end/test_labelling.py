"""The labelling loop as a user runs it: `luigi --module luigi_tasks ListInbox`, labels, `TakeLabelled`."""

from __future__ import annotations

import csv
import hashlib
import io

import pytest
from pipeline_under_test import PipelineUnderTest

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import InboxRecord
from edge_client.contract.names import inbox_key

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = pytest.mark.timeout(300)

FAILED = 30  # luigi.cfg: task_failed


@pytest.fixture
def pipeline(tmp_path, object_store, mqtt_broker, scheduler):
    """A pipeline with twenty pictures a class."""
    with PipelineUnderTest(tmp_path, store=object_store, broker=mqtt_broker, scheduler=scheduler) as pipeline:
        pipeline.write_digits(per_class=20)
        yield pipeline


def hand_in(pipeline: PipelineUnderTest, name: str, picture: bytes) -> None:
    """Do what a device does."""
    record = InboxRecord(
        device="cam1",
        picture=f"{name}.jpg",
        sha256=hashlib.sha256(picture).hexdigest(),
        why="unsure",
        label="7",
        confidence=0.3,
    )
    for file, data in ((f"{name}.jpg", picture), (f"{name}.json", encode_document(record))):
        key = f"{pipeline.name}/{inbox_key('cam1', file)}"
        pipeline.store.client().put_object(Bucket=pipeline.store.bucket, Key=key, Body=data)


def test_what_devices_were_unsure_of_is_in_the_next_snapshot(pipeline, tmp_path):
    from tests.fakes.datasets import picture_bytes  # noqa: PLC0415 - needs Luigi

    pictures = {name: picture_bytes(number, suffix="JPEG") for number, name in enumerate("ab")}
    for name, picture in pictures.items():
        hand_in(pipeline, name, picture)
    run = pipeline.luigi("ListInbox", "--to", str(tmp_path / "to"), report_imports=True)
    assert run.returncode == 0, run.stderr
    assert "2 frames" in run.stderr
    assert "TakeLabelled --labels" in run.stderr
    assert "tensorflow imported: False" in run.stdout

    labels = tmp_path / "to/labels.csv"
    text = labels.read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    rows[0]["label"], rows[1]["label"] = "7", "seven"
    with labels.open("w", newline="", encoding="utf-8") as file:  # a spreadsheet of a European setting
        writer = csv.DictWriter(file, rows[0], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)

    refused = pipeline.luigi("TakeLabelled", "--labels", str(labels))
    assert refused.returncode == FAILED
    assert "InputError: labels.csv: 'seven' (line 3) is not a class of" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(pipeline.pictures.rglob("inbox-*"))

    labels.write_text(labels.read_text(encoding="utf-8").replace("seven", "-"), encoding="utf-8")
    taken = pipeline.luigi("TakeLabelled", "--labels", str(labels))
    assert taken.returncode == 0, taken.stderr
    assert "1 frames into" in taken.stderr
    [picture] = pipeline.pictures.rglob("inbox-*")
    assert picture.parent.name == "7"
    assert picture.read_bytes() == pictures["a"]

    snapshot = pipeline.luigi("DatasetSnapshot")
    assert snapshot.returncode == 0, snapshot.stderr
    again = pipeline.luigi("TakeLabelled", "--labels", str(labels))
    assert again.returncode == 0
    assert "frames into" not in again.stderr
