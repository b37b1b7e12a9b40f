"""The inbox on real S3: whatever a device hands in, a bad frame is skipped and stops no other."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, cast

import pytest
from PIL import Image

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import INBOX_RECORD_LIMIT_BYTES
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.datasets import picture_bytes
from tests.fakes.inbox import (
    StoreAround,
    hand_in,
    jpeg,
    list_into,
    read_csv,
    record_of,
    sha256,
)
from tests.fakes.scans import with_scans

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Attack:
    """Objects put into the inbox, and what is said of `cam1/x.jpg` or another key."""

    name: str
    objects: dict[str, bytes]
    reason: str
    key: str = "cam1/x.jpg"


def frame(picture: bytes = jpeg(7), record: bytes | None = None, **changes) -> dict[str, bytes]:
    honest = encode_document(record_of("cam1", "x.jpg", picture, **changes))
    return {"cam1/x.jpg": picture, "cam1/x.json": honest if record is None else record}


def patched(**changes) -> bytes:
    return json.dumps({**json.loads(frame()["cam1/x.json"]), **changes}).encode()


def large_jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG")
    return file.getvalue()


BOMB = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
LONG = "x" * 62 + ".jpg"

ATTACKS = [
    Attack("no JSON", frame(record=b"\xff\xfe{"), "not a valid InboxRecord"),
    Attack("nothing", frame(record=b""), "not a valid InboxRecord"),
    Attack("nested without end", frame(record=b"[" * 60_000), "not a valid InboxRecord"),
    Attack("wrong types", frame(record=patched(confidence="high")), "not a valid InboxRecord"),
    Attack("newer schema", frame(record=patched(schema=2)), "schema 2"),
    Attack("huge record", frame(record=b" " * (INBOX_RECORD_LIMIT_BYTES + 1)), "at most 65536"),
    Attack("another device's name", frame(device="cam2"), "its record belongs to 'cam2'"),
    Attack("another's name", frame(record=patched(picture="../y")), "its record belongs to 'cam1', '../y'"),
    Attack("confidence over 1", frame(record=patched(confidence=1.5)), "confidence 1.5"),
    Attack("infinite confidence", frame(record=frame()["cam1/x.json"].replace(b"0.41,", b"1e999,")), ""),
    Attack("wrong hash", frame(sha256="0" * 64), "SHA-256 is not the one"),
    Attack("hash that is a path", frame(sha256="../../x"), "SHA-256 is not the one"),
    Attack("no picture", frame(b"#!/bin/sh"), "not a JPEG"),
    Attack("picture of nothing", frame(b""), "not a JPEG"),
    Attack("half a picture", frame(jpeg(7)[:300]), "picture"),
    Attack("decompression bomb", frame(BOMB), "picture"),
    Attack("thousands of scans", frame(with_scans(3000)), "more than 20 scans"),
    Attack("some scans of many pixels", frame(with_scans(15, 3000)), "9000000 pixels in 15 scans"),
    Attack("more pixels than a camera has", frame(large_jpeg(5000)), "more than 16000000 pixels"),
    Attack("larger than a frame", frame(jpeg(7) + bytes(8 << 20)), "at most 8388608"),
    Attack("another format", frame(picture_bytes(7)), "not a JPEG"),
    Attack("no record", {"cam1/x.jpg": jpeg(7)}, "its record x.json is missing"),
    Attack("record alone", {"cam1/x.json": b"{}"}, "no picture of this name", "cam1/x.json"),
    Attack("other files", {"cam1/run.sh": b"rm"}, "no picture of this name", "cam1/run.sh"),
    Attack("no device", {"x.jpg": jpeg(7), "x.json": b"{}"}, "device id 'x.jpg'|inbox file ''", "x.jpg"),
    Attack("deeper", {"cam1/a/x.jpg": jpeg(7)}, "inbox file 'a/x.jpg'", "cam1/a/x.jpg"),
    Attack("strange name", {"cam1/=x y.jpg": jpeg(7)}, "inbox file '=x y.jpg'", "cam1/=x y.jpg"),
    Attack("hidden", {"cam1/.jpg": jpeg(7)}, "inbox file '.jpg'", "cam1/.jpg"),
    Attack("strange device", {"<b>/x.jpg": jpeg(7)}, "device id '<b>'", "<b>/x.jpg"),
    Attack("record's name too long", {f"cam1/{LONG[2:]}": jpeg(7)}, "", f"cam1/{LONG[2:]}"),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.name)
def test_a_bad_frame_is_skipped_with_its_reason_and_stops_no_other(store, tmp_path, attack):
    if attack.name == "hidden" and isinstance(store, FolderStore):
        pytest.skip("no key of a folder store begins with a dot")
    hand_in(store, "cam1", "good.jpg", jpeg(1))
    for name, data in attack.objects.items():
        store.put(f"inbox/{name}", data)
    record = list_into(store, tmp_path)
    assert [row["frame"] for row in read_csv(tmp_path)] == ["cam1/good.jpg"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{sha256(jpeg(1))}.jpg"]
    found = {one.key.removeprefix("inbox/"): one.reason for one in record.skipped}
    assert any(part in found[attack.key] for part in attack.reason.split("|"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>/x.jpg" not in page


def test_a_picture_that_grew_after_the_listing_is_skipped(store, tmp_path, monkeypatch):
    monkeypatch.setattr("luigi_tasks.labelling.inbox.PICTURE_LIMIT_BYTES", 2000)

    class Late(StoreAround):
        """A device that writes between the listing and the reading."""

        def list_unread(self, folder):
            listed = store.list_unread(folder)
            store.put("inbox/cam1/a.jpg", bytes(3000))
            return listed

    hand_in(store, "cam1", "a.jpg", jpeg(1))
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    record = list_into(cast("Store", Late(store)), tmp_path)
    assert [row["frame"] for row in read_csv(tmp_path)] == ["cam1/b.jpg"]
    assert [one.key for one in record.skipped] == ["inbox/cam1/a.jpg"]


def test_text_that_cannot_be_written_and_text_without_end_are_cut_to_a_line(store, tmp_path):
    record = frame(record=patched(label="\ud800a\nb", why="w" * 5000))
    for name, data in record.items():
        store.put(f"inbox/{name}", data)
    listed = list_into(store, tmp_path)
    for row in read_csv(tmp_path):
        assert row["suggested"] == "a b"
        assert len(row["why"]) <= 202
    assert listed.pictures + len(listed.skipped) == 1
