"""Documents that version 0.1 of the client wrote: state on the disk and messages are read by this version."""

from __future__ import annotations

import json

import msgspec
import pytest

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.messages import Announcement, DeviceStatus, InboxRecord, Result
from edge_client.offline.handover import BundleResult
from edge_client.update.slots import Slots
from edge_client.update.slots_document import ProbationRecord, SlotsDocument

PROBATION = {
    "schema": 1,
    "release": "b",
    "crashes": 1,
    "power_cuts": 2,
    "boot": "a-boot",
    "seconds": 3.5,
    "latency_ms": 4.5,
    "unsure_share": 0.25,
}
SLOTS = {
    "schema": 1,
    "current": "b",
    "previous": "a",
    "refused": {"c": "self-test: wrong"},
    "refused_by": "edge-client 0.1.0, ai-edge-litert 2.3",
    "probation": PROBATION,
    "shadow": {**PROBATION, "release": "d"},
}
STATUS = {
    "schema": 1,
    "device": "pi-1",
    "channel": "stable",
    "state": "serving",
    "probation": True,
    "release": "b",
    "previous": "a",
    "latest": "d",
    "why": "channel stable points to it",
    "runtime": "ai-edge-litert 2.3",
    "last_error": "an error",
    "warning": "a warning",
    "refused": "c",
    "frames": 7,
    "latency_ms": 1.5,
    "share_percent": 50.0,
    "update": {"schema": 1, "release": "b", "bytes_pulled": 8, "seconds": 0.5},
    "shadow": {
        "schema": 1,
        "release": "d",
        "frames": 9,
        "agreement": 0.5,
        "latency_ms": 1.0,
        "latency_before_ms": 2.0,
        "seconds_left": 3.0,
    },
    "drift": {"schema": 1, "answers": 200, "labels": 0.1, "confidence": 0.2},
    "inbox": {"schema": 1, "waiting": 1, "uploaded": 2, "error": "full"},
    "changed_at": "2025-06-01T00:00:00.000+00:00",
}
RESULT = {
    "schema": 1,
    "device": "pi-1",
    "source": "a.png",
    "frame": 1,
    "label": "ripe",
    "confidence": 0.9,
    "top": {"ripe": 0.9},
    "release": "b",
    "channel": "stable",
    "latency_ms": 1.0,
    "at": "now",
}
INBOX_RECORD = {
    "schema": 1,
    "device": "pi-1",
    "picture": "x.jpg",
    "sha256": "00",
    "why": "unsure",
    "label": "ripe",
    "confidence": 0.4,
    "top": {"ripe": 0.4},
    "release": "b",
    "channel": "stable",
    "at": "now",
}
RELEASED: dict[str, tuple[type[Document], dict[str, object]]] = {
    "slots": (SlotsDocument, SLOTS),
    "probation": (ProbationRecord, PROBATION),
    "status": (DeviceStatus, STATUS),
    "result": (Result, RESULT),
    "inbox record": (InboxRecord, INBOX_RECORD),
    "bundle result": (BundleResult, {"schema": 1, "message": "done", "error": "TrustError"}),
    "announcement": (
        Announcement,
        {"schema": 1, "channel": "stable", "release": "b", "announced_at": "now"},
    ),
}


def contains(new: object, old: object) -> bool:
    """Whether `new` has all values of `old`, under the same names."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and contains(new[name], value) for name, value in old.items())
    return new == old


@pytest.mark.parametrize("name", RELEASED)
def test_a_document_of_the_released_client_is_read_and_keeps_its_names(name):
    kind, content = RELEASED[name]
    data = json.dumps(content).encode()
    document = decode_document(kind, data, source=name, limit_bytes=1 << 20)
    assert contains(json.loads(encode_document(document)), content)


def test_state_of_the_released_client_serves_on(tmp_path):
    (tmp_path / "slots.json").write_text(json.dumps(SLOTS))
    for release in "abd":
        (tmp_path / "slots" / release).mkdir(parents=True)
    slots = Slots(tmp_path, now=lambda: "2026-01-01T00:00:00.000+00:00")
    assert (slots.current, slots.previous, slots.serving_since) == ("b", "a", None)
    assert slots.refused == SLOTS["refused"]
    assert slots.probation == msgspec.convert(PROBATION, ProbationRecord)
    assert slots.shadow is not None
    assert slots.shadow.release == "d"
    slots.roll_back("too slow", "this software")
    assert (slots.current, slots.serving_since) == ("a", "2026-01-01T00:00:00.000+00:00")
