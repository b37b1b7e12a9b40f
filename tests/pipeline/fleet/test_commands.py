"""`edge-fleet`: what a person and a program see, and the exit codes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.contract.errors import InputError
from edge_client.contract.report import DeviceReport, ReleaseFigures
from edge_client.contract.rollout import Member, RolloutDocument, rollout_hash
from edge_client.contract.times import utc_now
from luigi_tasks import edge_fleet
from luigi_tasks.fleet.actions import open_fleet
from luigi_tasks.fleet.records import EnrolledDevice, RolloutEvent, RolloutPlan, RolloutRecord, StageRecord
from luigi_tasks.fleet.tables import shown, table
from tests.fakes.command_fleet import CommandFleet, Terminal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandFleet:
    """A fleet of which nothing is published."""
    return CommandFleet(tmp_path, monkeypatch)


def test_releases_are_listed_with_what_the_channels_say(fleet):
    assert fleet.run("releases")[:2] == (0, f"{fleet.bucket.as_uri()}: no release is signed here yet\n")
    first, second = fleet.publish(1), fleet.publish(2)
    fleet.publish(1, channel="beta")

    code, text, _ = fleet.run("releases")

    assert code == 0
    line = next(one for one in text.splitlines() if second.release in one)
    assert "stable: steady" in line
    found = json.loads(fleet.run("releases", "--json")[1])
    assert {one["release"]: one["channels"] for one in found["releases"]} == {
        second.release: {"stable": "steady"},
        first.release: {"beta": "steady"},
    }


def test_a_wrong_command_ends_with_2_and_wrong_settings_too(fleet, monkeypatch):
    assert fleet.run("relases")[0] == 2
    assert fleet.run("devices", "--state", "sent-back")[0] == 2
    assert fleet.run("rollouts", "--state", "running")[0] == 2
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "")
    code, text, error = fleet.run("releases")
    assert (code, text) == (2, "")
    assert error.startswith("edge-fleet: LUIGI_CONFIG_PATH is empty")


# --- what devices reported --------------------------------------------------------------------------

HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\u202e[red]markup[/red]\nsecond line"


@dataclasses.dataclass(frozen=True)
class Running:
    """A fleet in which a rollout runs.

    Attributes:
        fleet: The fleet.
        steady: The steady release.
        release: The release that is rolled out.
    """

    fleet: CommandFleet
    steady: str
    release: str


def report(device: str, release: str, **more: Any) -> DeviceReport:
    return DeviceReport(
        **{
            "fleet": "fleet",
            "device": device,
            "channel": "stable",
            "interval_s": 30.0,
            "client": "0.1.0",
            "release": release,
            **more,
        }
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return a fleet that the tests of this module only look at."""
    with pytest.MonkeyPatch.context() as patch:
        yield begin_rollout(CommandFleet(tmp_path_factory.mktemp("running"), patch))


def begin_rollout(fleet: CommandFleet) -> Running:
    """cam-1 has the release of the rollout, cam-2 sent it back, cam-3 waits, cam-4 never reported."""
    release, steady = fleet.publish(2).release, fleet.publish(1).release
    fleet.enroll(
        EnrolledDevice(device="cam-1", site="shop-7", tags=("outdoor", "line=3")),
        EnrolledDevice(device="cam-2", site="shop-7", device_class="zero2w"),
        EnrolledDevice(device="cam-3", site="shop-8", tags=("outdoor",)),
        EnrolledDevice(device="cam-4", site="shop-8"),
        EnrolledDevice(device="gone", retired_at="2026-11-01T00:00:00.000+00:00"),
    )
    threshold = max(rollout_hash("r1", "device", Member(one)) for one in ("cam-1", "cam-2")) + 1
    fleet.roll_out(
        RolloutRecord(
            id="r1",
            channel="stable",
            release=release,
            from_release=steady,
            state="paused",
            stages=(StageRecord(number=1, size=2, threshold=threshold, opened_at=time.time() - 7500),),
            created_at=utc_now(),
            created_by="ann",
            events=(
                RolloutEvent(at=utc_now(), what="opened", who="ann", why="new apples"),
                RolloutEvent(at=utc_now(), what="paused", who="AdvanceRollout", why="2 of 2 fail", stage=1),
            ),
        ),
        RolloutDocument(channel="stable", id="r1", release=release, from_release=steady, threshold=threshold),
    )
    back = ReleaseFigures(
        release=release, probation="sent_back", reason="latency 900 ms against 300 ms", reason_code="slow"
    )
    fleet.report(
        report("cam-1", release, site="shop-7", offered=release, tags=("outdoor", "line=3")),
        report(
            "cam-2",
            steady,
            site="shop-7",
            device_class="zero2w",
            offered=release,
            releases=(back,),
            rollout="r1",
        ),
        report("cam-3", steady, site="shop-8", tags=("outdoor",), last_error=HOSTILE, warning=HOSTILE),
        report("gone", steady),
        report("stranger", HOSTILE[:60], runtime=HOSTILE, site="日本"),
    )
    return Running(fleet, steady, release)


def test_status_shows_what_was_reported_and_how_complete_it_is(running):
    code, text, error = running.fleet.run("status")
    assert (code, error) == (0, "")
    assert "4 devices" in text
    assert "3 of 4 registered devices heard" in text
    assert re.search(r"As of .* UTC, 3\d s ago \(collector c1\)", text)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines[running.steady].split()[1:] == ["2", "50%", "steady"]
    assert lines[running.release].split()[1:] == ["1", "25%", "rolled", "out"]
    assert lines["unknown"].split()[1:] == ["1", "25%"]
    assert "rollout r1" in text
    assert "stage 1 of 5 (1d): 2 devices, open 2 h ago" in text
    assert "2 of 2 fail" in text
    assert "2 devices in reports and not in the registry" in text
    told = json.loads(running.fleet.run("status", "--json")[1])
    assert told["snapshot"]["heard"] == 3
    assert told["channels"]["stable"]["releases"] == {running.steady: 2, running.release: 1, "unknown": 1}
    assert told["channels"]["stable"]["strangers"] == 2
    assert told["channels"]["stable"]["rollout"]["state"] == "paused"


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ((), ["cam-1", "cam-2", "cam-3", "cam-4", "gone", "stranger"]),
        (("--site", "shop-7"), ["cam-1", "cam-2"]),
        (("--site", "shop-7", "--site", "shop-8", "--tag", "outdoor"), ["cam-1", "cam-3"]),
        (("--tag", "outdoor", "--tag", "line=3"), ["cam-1"]),
        (("--class", "zero2w"), ["cam-2"]),
        (("--release", "unknown"), ["cam-4"]),
        (("--state", "never"), ["cam-4"]),
        (("--state", "sent_back", "--state", "stranger"), ["cam-2", "gone", "stranger"]),
        (("--state", "enrolled", "--limit", "2", "--offset", "1"), ["cam-2", "cam-3"]),
        (("--channel", "beta"), []),
    ],
)
def test_filters_and_pages_choose_devices(running, options, devices):
    told = json.loads(running.fleet.run("devices", "--json", *options)[1])
    assert [one["device"] for one in told["devices"]] == devices
    code, text, _ = running.fleet.run("devices", *options)
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == devices
    assert "registered devices heard" in text.splitlines()[-1]


@pytest.mark.parametrize("command", ["devices", "status", "why stranger", "why cam-3"])
@pytest.mark.parametrize("columns", [0, 20, 80, 200])
def test_what_devices_say_cannot_reach_a_terminal(running, command, columns):
    code, text, _ = running.fleet.run(*command.split(), columns=columns)
    assert code == 0
    assert columns or command == "status" or "[red]markup[/red]" in text
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours of ours
    assert all(one.isprintable() or one == "\n" for one in text)
    assert command != "devices" or all(f"cam-{number}" in text for number in (1, 2, 3, 4))
    assert running.fleet.run(*command.split(), "--json")[1].rstrip("\n").isprintable()


def test_why_asks_for_the_bundle_where_reports_are_rejected_that_no_enrolled_key_signed(fleet):
    fleet.publish(0)
    fleet.enroll(EnrolledDevice(device="cam-1", key="PEM"))
    fleet.report()
    assert "is that bundle installed on it?" not in fleet.run("why", "cam-1")[1]
    fleet.report(age_s=20.0, rejected={"unsigned": 12})
    assert "is that bundle installed on it?" in fleet.run("why", "cam-1")[1]


def test_why_tells_that_a_client_of_an_earlier_version_waits_for_the_channel(fleet):
    running = begin_rollout(fleet)
    fleet.report(report("cam-2", running.steady, client="", interval_s=0.0))
    text = fleet.run("why", "cam-2")[1]
    assert "its client knows no rollouts, and waits until the channel moves" in text
    assert "its own settings differ" not in text, "such a client tells no class"


def test_why_explains_each_device_by_what_is_signed_and_what_it_said(running):
    def why(device):
        code, text, _ = running.fleet.run("why", device)
        assert code == 0
        assert "As of " in text
        return text

    assert f"serves {running.release}, as it ought to" in why("cam-1")
    sent_back = why("cam-2")
    assert f"serves {running.steady}, and ought to have {running.release}" in sent_back
    assert "it sent it back: latency 900 ms against 300 ms" in sent_back
    assert "counts as: sent_back" in sent_back
    never = why("cam-4")
    assert "what it serves is unknown: it never reported" in never
    assert "registry: site shop-8" in never
    assert re.search(r"rollout r1 of release \w+ has (not )?come to it( yet)?: the device has place", never)
    assert "not in it; it is shown, and votes for nothing" in why("stranger")
    assert "it left the fleet at 2026-11-01" in why("gone")
    code, _, error = running.fleet.run("why", "nobody")
    assert code == 1
    assert "not in the registry, and no snapshot has heard of it" in error


def test_a_fleet_without_collector_or_registry_is_unknown_and_not_empty(fleet):
    fleet.publish(1)
    code, text, _ = fleet.run("status")
    assert code == 0
    assert "no device was enrolled yet" in text
    fleet.enroll(EnrolledDevice(device="cam-1"))
    text = fleet.run("devices")[1]
    assert "unknown" in text.splitlines()[1]
    assert "No snapshot: no collector" in text
    assert "what it serves is unknown: there is no snapshot" in fleet.run("why", "cam-1")[1]


def test_an_old_snapshot_is_called_old(fleet):
    fleet.publish(1)
    fleet.enroll(EnrolledDevice(device="cam-1"))
    fleet.report(report("cam-1", "x"), age_s=7200)
    assert "OLD: the collector has written nothing since" in fleet.run("status")[1]


def test_forged_documents_are_named_with_code_3_and_the_rest_is_shown(running):
    store = running.fleet.documents.store
    seal = next(one.key for one in store.list_folder("fleet/snapshots/") if one.key.endswith(".json"))
    genuine = store.read(seal)
    store.put(seal, b'{"payloadType": "x"}')
    code, text, error = running.fleet.run("status")
    store.put(seal, genuine)
    assert code == 3
    assert f"steady release {running.steady}" in text
    assert "not all is shown" in error


def test_rollouts_are_listed_and_one_is_shown_with_its_events(running):
    listed = running.fleet.run("rollouts")[1]
    assert "paused (runs)" in listed
    assert running.fleet.run("rollouts", "--state", "done")[1] == "no rollout matches\n"
    shown = running.fleet.run("rollouts", "current")[1]
    assert "new apples" in shown
    told = json.loads(running.fleet.run("rollouts", "r1", "--json")[1])
    assert told["rollout"]["id"] == "r1"
    assert running.fleet.run("rollouts", "r9")[0] == 1
    assert "ok   rollouts   stable: paused" in running.fleet.run("doctor")[1]
    code, text, _ = running.fleet.run("rollouts", "--accept")
    assert (code, "nothing to do" in text) == (0, True)


def test_doctor_names_each_fault_with_the_way_out(fleet):
    code, text, error = fleet.run("doctor")
    assert code != 0
    assert "FAIL bucket" in text
    fleet.publish(1)
    fleet.enroll(EnrolledDevice(device="cam-1"))
    code, text, error = fleet.run("doctor")
    assert (code, "collector" in error) == (1, True)
    assert "FAIL collector" in text
    fleet.report(report("cam-1", "x"))
    code, text, _ = fleet.run("doctor")
    assert code == 0
    assert "FAIL" not in text
    found = {one["name"]: one["passed"] for one in json.loads(fleet.run("doctor", "--json")[1])["checks"]}
    assert found["rights"] is True
    assert found["broker"] is None
    fleet.report(report("cam-1", "x"), age_s=-300)
    assert "ahead of this machine" in fleet.run("doctor")[1]


def test_cleaning_counts_first_and_refuses_what_may_be_in_use(fleet):
    fleet.publish(1)
    code, text, _ = fleet.run("clean")
    assert (code, "0 files of releases, 0 pointers and 0 versions of metadata" in text) == (0, True)
    assert json.loads(fleet.run("clean", "--delete", "--json")[1])["keys"] == []
    assert fleet.run("clean", "--older-than", "1h")[0] == 1
    assert fleet.run("clean", "--older-than", "soon")[0] == 1


# --- what a person decides --------------------------------------------------------------------------


def test_a_person_decides_on_a_rollout_and_stands_in_its_history(fleet, monkeypatch):
    running = begin_rollout(fleet)
    monkeypatch.setenv("LOGNAME", "bea")
    assert fleet.run("pause")[0] == 2, "--why is asked for"
    assert fleet.run("resume", "--why", " \n ")[0] == 1
    code, text, _ = fleet.run("resume", "--why", "the light was off\x1b[2J")
    assert (code, "r1 of release" in text, "open, stage 1 of 5" in text) == (0, True, True)
    code, _, error = fleet.run("resume", "--why", "again")
    assert (code, "only one that is paused or halted" in error) == (1, True)
    code, text, _ = fleet.run("pause", "--why", "lunch", "--who", "carl", "--json")
    assert json.loads(text)["rollout"]["state"] == "paused"
    assert fleet.run("approve", "--why", "looks good", "--stage", "2")[0] == 1
    assert "going back" in fleet.run("back", "--why", "bad")[1]
    assert fleet.run("abort", "--why", "enough")[0] == 0
    code, _, error = fleet.run("abort", "--why", "again")
    assert (code, "no rollout runs" in error) == (1, True)
    events, host = fleet.rollouts.load("stable", "r1").document.events[2:], socket.gethostname()
    assert [(one.what, one.who) for one in events] == [
        ("resumed", f"bea@{host}"),
        ("paused", "carl"),
        ("going_back", f"bea@{host}"),
        ("aborted", f"bea@{host}"),
    ]
    assert all(one.why.isprintable() for one in events)
    assert running.steady in fleet.run("status")[1]


# --- which devices can run it -----------------------------------------------------------------------


def test_a_rollout_that_devices_cannot_run_is_refused_with_the_list_or_leaves_them_out(fleet):
    needs_new = fleet.publish(2, operators={"FULLY_CONNECTED": 12}).release
    steady = fleet.publish(1).release
    fleet.enroll(*(EnrolledDevice(device=f"cam-{number}") for number in range(3)))
    old, new = "tflite-runtime 2.14.0", "ai-edge-litert 2.3.0"
    fleet.report(report("cam-0", steady, runtime=old), report("cam-1", steady, runtime=new))
    machine, plan = open_fleet(fleet.settings), RolloutPlan(stages=("100%",))

    with pytest.raises(InputError) as caught:
        machine.start("stable", needs_new, plan, "ann")
    assert "1 of 3 devices can run it; 1 cannot: tflite-runtime 2.14.0 has no FULLY_CONNECTED" in str(
        caught.value
    )
    assert "of 1 it is unknown: never reported (cam-2)" in str(caught.value)
    assert "--skip-incompatible" in str(caught.value)
    assert machine.stand("stable").running is None

    record = machine.start("stable", needs_new, plan, "ann", skip_incompatible=True)
    assert set(record.skipped) == {"cam-0"}
    assert "1 of 3 devices can run it" in record.events[0].why
    machine.advance("stable")
    signed = machine.stand("stable").signed.rollout
    assert signed is not None
    has = {one: signed.release_for(Member(one)) for one in ("cam-0", "cam-1", "cam-2")}
    assert has == {"cam-0": None, "cam-1": needs_new, "cam-2": needs_new}
    assert f"rollout {record.id} skips it: tflite-runtime 2.14.0 has no" in fleet.run("why", "cam-0")[1]


def test_a_variant_for_their_class_lets_a_rollout_start(fleet):
    variant, needs_new = fleet.publish(3).release, fleet.publish(2, operators={"FULLY_CONNECTED": 12}).release
    steady = fleet.publish(1).release
    fleet.enroll(EnrolledDevice(device="cam-0", device_class="zero2w"))
    fleet.report(report("cam-0", steady, runtime="tflite-runtime 2.14.0", device_class="zero2w"))
    record = open_fleet(fleet.settings).start(
        "stable", needs_new, RolloutPlan(), "ann", variants={"zero2w": variant}
    )
    assert (record.skipped, record.events[0].why.partition(";")[0]) == ({}, "1 of 1 devices can run it")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=200), st.text(max_size=200)), max_size=4), st.sampled_from([0, 30])
)
def test_a_table_of_any_text_is_printable_and_has_a_line_for_each_row(rows, columns):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        out = Terminal() if columns else io.StringIO()
        with contextlib.redirect_stdout(out):
            text = table(("one", "two"), rows)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert all(one.isprintable() or one == "\n" for one in plain)
    assert columns or len(plain.splitlines()) == len(rows) + 1
    cells = collections.Counter("".join(shown(cell) for row in rows for cell in row))
    del cells[" "]
    assert cells <= collections.Counter(plain), "nothing is left out for want of room"


def test_an_output_of_another_encoding_gets_all_of_it(running):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(out):
        assert edge_fleet.main(["devices", "--site", "日本"]) == 0
        out.flush()
    assert rb"\u65e5\u672c" in out.buffer.getvalue()
