"""What is in a report."""

from __future__ import annotations

import threading

import msgspec
import pytest

from edge_client.contract.documents import encode_compact
from edge_client.contract.messages import Comparison, DeviceStatus
from edge_client.contract.report import (
    FETCHING,
    IDLE,
    OFFERED,
    PROBATION,
    REPORT_LIMIT_BYTES,
    SHADOW,
)
from edge_client.contract.signed_report import open_report
from edge_client.machine import machine_fingerprint
from edge_client.reporting.figures import Failed, Figures, Held
from edge_client.reporting.reporter import Reported, Reports, stage_of
from edge_client.reporting.status import StatusBoard
from edge_client.settings.file import load_settings

pytestmark = pytest.mark.runtime

SERVES = DeviceStatus(
    device="camera-1", channel="stable", state="serving", release="a", latest="a", decision="serves"
)
SHADOW_OF_B = Comparison(release="b", frames=1)
STAGES = {
    "serves": ({}, IDLE),
    "no release yet": ({"release": None, "latest": None, "decision": ""}, IDLE),
    "on probation": ({"probation": True}, PROBATION),
    "first look": ({"release": None, "latest": "b", "decision": ""}, OFFERED),
    "held": ({"latest": "b", "decision": "held", "offered": "b"}, OFFERED),
    "fetching": ({"latest": "b", "decision": "", "state": "updating"}, FETCHING),
    "in shadow mode": ({"latest": "b", "decision": "install", "shadow": SHADOW_OF_B}, SHADOW),
    "refused": ({"latest": "b", "decision": "refused"}, IDLE),
    "not in the share": ({"latest": "b", "decision": "not_in_share"}, IDLE),
    "tried again later": ({"latest": "b", "decision": "postponed"}, OFFERED),
    "steady first": ({"latest": "a", "intended": "b"}, OFFERED),
    "fetches the steady one first": (
        {"release": None, "latest": "a", "intended": "b", "state": "updating"},
        OFFERED,
    ),
    "repairs its files": ({"state": "updating"}, IDLE),
    "on probation, and the channel has moved on": ({"probation": True, "latest": "b"}, OFFERED),
}


@pytest.mark.parametrize(("changes", "stage"), STAGES.values(), ids=STAGES)
def test_a_stage_is_of_the_release_that_the_device_is_to_have(changes, stage):
    assert stage_of(msgspec.structs.replace(SERVES, **{"decision": "", **changes})) == stage


class Line:
    """One channel's reports, sent to a list."""

    def __init__(self, folder, **device: object) -> None:
        file = folder / "device.toml"
        text = "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in device.items())
        file.write_text(
            f'[device]\nid = "camera-1"\nstate_dir = "{folder}/state"\n{text}'
            '[store]\nbase_url = "https://s3.example/b"\n[source]\npath = "/camera"\n'
        )
        self.sent: list[bytes] = []
        self.connected, self.stop = True, threading.Event()
        self.figures = Figures(None)
        self.board = StatusBoard(
            SERVES, file=folder / "status.json", publish=lambda _payload: True, interval_s=1.0
        )
        reported = Reported("stable", "", self.board, self.figures)
        self.reports = Reports(
            load_settings(file), [reported], connected=lambda: self.connected, send=self._send
        )

    def _send(self, _topic: str, payload: bytes) -> bool:
        self.sent.append(payload)
        return True


def test_a_report_is_never_too_large_to_be_read(tmp_path):
    device = Line(tmp_path, tags=[f"{'t' * 60}{number}" for number in range(32)], site="s" * 64)
    hostile = '"\x00\x1b\N{PILE OF POO}' * 3000
    device.board.change(warning=hostile, last_error=hostile)
    failures = {"c": Failed(hostile, "worse", "2026-01-01T00:00:00+00:00")}
    device.figures.show(Held(serving="a"))
    for release in "abc":
        for number in range(200):
            label = f"{number:03}" + "\N{PILE OF POO}" * 15
            device.figures.count(release, 0.07 * 1.09**number, 0.9, label, unsure=False)
    device.figures.show(Held(serving="a", previous="b", refused="c", failures=failures))
    device.reports.step(device.stop)
    [payload] = device.sent
    report = open_report(payload, "a topic", None).report
    assert len(encode_compact(report)) <= REPORT_LIMIT_BYTES
    assert [one.frames for one in report.releases] == [200, 200, 200]
    assert len(report.tags) == 32
    assert report.warning.isprintable()
    assert report.releases[0].labels, "of the serving release to the last"


def test_without_a_connection_nothing_is_made(tmp_path):
    device = Line(tmp_path)
    device.connected = False
    device.reports.step(device.stop)
    assert device.sent == []
    device.connected = True
    device.reports.note_connection()
    device.reports.step(device.stop)
    report = open_report(device.sent[0], "a topic", None).report
    assert report.sequence == 1, "no number is lost for what was not sent"


def test_each_change_of_the_state_is_told_and_no_other(tmp_path):
    device = Line(tmp_path)
    device.reports.step(device.stop)
    device.board.change(last_error="a frame was broken")
    device.board.change(decision="held", latest="b", offered="b", waits_for="window")
    device.reports.step(device.stop)
    assert len(device.sent) == 2
    report = open_report(device.sent[1], "a topic", None).report
    assert (report.offered, report.waits_for, report.last_error) == ("b", "window", "a frame was broken")


def test_two_machines_have_different_fingerprints_and_none_tells_its_id(tmp_path):
    def machine(serial: str, identity: str, fleet: str = "shop") -> str:
        for name, text in (("serial", serial), ("id", identity)):
            (tmp_path / name).write_text(text)
        return machine_fingerprint(fleet, tmp_path / "serial", tmp_path / "id")

    found = machine("10000000a\0", "5f1e")
    assert found == machine("10000000a\0", "5f1e\n")
    others = {machine("10000000b\0", "5f1e"), machine("", "5f1e"), machine("", "5f1f")}
    others |= {machine("10000000a\0", "5f1e", "other")}
    assert len(others | {found}) == 5
    assert "5f1e" not in found
    assert machine("", "") == ""
