"""The page of a device: why it serves what it serves, in a browser and as JSON, for devices of every kind."""

from __future__ import annotations

import functools
import json
import time
import urllib.error
import urllib.request
from typing import Any

import msgspec
import pytest
from local_services import wait_until

from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures, latency_bin
from luigi_tasks.board.devices.figures import drift_of, over_time, quantile, under_release
from luigi_tasks.fleet.marks import Mark
from luigi_tasks.fleet.records import EnrolledDevice, PeriodSum, Sighting, SnapshotHead
from luigi_tasks.fleet.snapshots import StoredRow, write_snapshot
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.board_fleet import HOSTILE
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.inbox import hand_in, jpeg
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

HOUR = 3600
AT = "2026-11-20T08:00:00.000+00:00"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A board over one device of each kind."""
    folder = tmp_path_factory.mktemp("device")
    with pytest.MonkeyPatch.context() as patch:
        fleet = CommandFleet(folder, patch)
        first, second = fleet.publish(0).release, fleet.publish(1).release
        enroll = functools.partial(EnrolledDevice, site="shop-1", enrolled_at=AT, enrolled_by="ann")
        fleet.enroll(
            enroll(device="cam-1", channels=("stable", "night"), key="PEM", tags=("outdoor",)),
            enroll(device="cam-clone"),
            enroll(device="cam-never"),
            enroll(device="cam-old"),
            enroll(device="gone", retired_at=AT),
        )
        store = FolderStore(fleet.settings.store)
        now = time.time()
        rows = sorted(_rows(now, first, second), key=lambda row: (row.device, row.channel))
        head = SnapshotHead(
            fleet=fleet.settings.broker.fleet,
            collector="c1",
            taken_at=now - 10,
            listening_since=now - 90 * HOUR,
            devices=len(rows),
            registered=4,
            heard=3,
        )
        write_snapshot(store, head, rows, fleet._collector)
        for number in range(3):
            name = f"170000000{number}.jpg"
            hand_in(store, "cam-1", name, jpeg(number), label="cat", confidence=0.4, release=second, at=AT)
        with RunningBoard(board_settings(fleet, folder)) as board:
            yield board, first, second


def _rows(now: float, first: str, second: str) -> list[StoredRow]:
    period = int(now // HOUR * HOUR)
    marks = tuple(
        Mark(
            period=period - (6 - hours) * HOUR,
            release=second,
            activated_at=AT,
            start=1,
            sequence=hours,
            is_whole=True,
            seconds=hours * HOUR,
            frames=hours * 100,
            unsure=hours * 10,
            latency_ms=hours * 3000.0,
            latency={str(latency_bin(30.0)): hours * 90, str(latency_bin(60.0)): hours * 10},
            labels={"red": hours * 100},
        )
        for hours in range(1, 6)
    )
    sent_back = Sighting(
        rollout="r-1",
        state="sent_back",
        at=now - 500,
        release=first,
        reason="it was slower",
        reason_code="slower",
    )
    figures = (
        _figures(first, 55.0, probation="sent_back", reason="it was slower", ended_at=AT),
        _figures(second, 30.0, probation="passed"),
    )
    hostile = DeviceReport(
        fleet="fleet",
        device="stranger",
        channel="stable",
        client=HOSTILE,
        runtime=HOSTILE,
        machine=MachineFacts(model=HOSTILE),
        state=HOSTILE,
        decision=HOSTILE,
        site=HOSTILE,
        release=HOSTILE,
        warning=HOSTILE,
        last_error=HOSTILE,
        reported_at="yesterday",
        interval_s=1e300,
        releases=(
            ReleaseFigures(
                release=HOSTILE,
                frames=-5,
                failed=2**60,
                unsure=2**62,
                latency={"-1": 3, "x": 4, "7": -2, "12": 2**50, HOSTILE: 1},
                labels={HOSTILE: 10, "": 3, "red": -4},
                activated_at="9999-99-99",
                reason=HOSTILE,
                probation=HOSTILE,
            ),
        ),
    )
    return [
        _row("cam-1", now, second, figures, is_signed=True, sightings=(sent_back,), marks=marks),
        _row("cam-1", now, second, channel="night"),
        _row("cam-clone", now, second, clones=("aaaa", "bbbb")),
        _row("cam-old", now, second, client=""),
        StoredRow(
            device="stranger",
            channel="stable",
            last_seen=now - 20,
            report=msgspec.Raw(msgspec.json.encode(hostile)),
        ),
    ]


def _row(
    device: str,
    now: float,
    release: str,
    figures: tuple[ReleaseFigures, ...] = (),
    channel: str = "stable",
    client: str = "0.1.0",
    **facts: Any,
) -> StoredRow:
    report = DeviceReport(
        fleet="fleet",
        device=device,
        channel=channel,
        client=client,
        site="shop-1" if client else "",
        tags=("outdoor",) if device == "cam-1" else (),
        interval_s=600.0,
        release=release,
        offered=release,
        steady=release,
        state="serving",
        releases=figures,
    )
    return StoredRow(
        device=device,
        channel=channel,
        enrolled=True,
        online=True,
        first_seen=now - 40 * HOUR,
        last_seen=now - 15,
        report=msgspec.Raw(msgspec.json.encode(report)),
        **facts,
    )


def _figures(release: str, latency_ms: float, **more: Any) -> ReleaseFigures:
    return ReleaseFigures(
        release=release,
        activated_at=AT,
        seconds=7200.0,
        frames=1000,
        failed=10,
        unsure=50,
        restarts=2,
        latency_ms=1000 * latency_ms,
        latency={str(latency_bin(latency_ms)): 1000},
        labels={"red": 600, "green": 400},
        **more,
    )


def test_a_person_sees_why_a_device_serves_what_it_serves(place, tab):
    board, first, second = place
    tab.goto(f"{board.url}devices/cam-1")
    tab.get_by_role("heading", name="cam-1", level=1).wait_for()
    stable = tab.get_by_role("region", name="Channel stable")
    assert f"erves {second}, as it ought to" in stable.locator(".conclusion").inner_text()
    assert "points to nothing" in tab.get_by_role("region", name="Channel night").inner_text()
    table = stable.get_by_role("region", name="Figures under each release")
    assert [one.split()[0] for one in table.locator("tbody th").all_inner_texts()] == [second, first]
    assert "5.0%" in table.inner_text()  # unsure
    timeline = stable.locator(".timeline > li").all_inner_texts()
    assert ["last report" in timeline[0], "sent back" in timeline[1], "it was slower" in timeline[1]] == [
        True
    ] * 3
    assert "enrolled" in " ".join(timeline)
    stable.locator(".chart canvas").first.wait_for()
    frames = tab.locator(".frames img")
    assert frames.count() == 3
    frames.first.scroll_into_view_if_needed()
    loaded = "[...document.querySelectorAll('.frames img')].every(one => one.naturalWidth > 0)"
    wait_until(lambda: bool(tab.evaluate(loaded)), "the frames")
    assert (
        "edge-fleet why cam-1"
        in tab.get_by_role("heading", name="What to do next").locator("..").inner_text()
    )

    tab.set_viewport_size({"width": 390, "height": 800})
    tab.goto(f"{board.url}devices/stranger")  # every text of it attacks
    tab.get_by_text("It is not in the registry").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("main script:not([type='application/json'])").count() == 0
    assert tab.locator("main img").count() == 0
    assert "<script>alert(2)" in tab.locator("main").inner_text()


def test_programs_get_the_same(place):
    board, first, second = place
    model = board.json("devices/cam-1")
    assert [one["channel"] for one in model["channels"]] == ["night", "stable"]
    stable = model["channels"][1]
    assert stable["row"]["expected"] == second
    assert [one["release"] for one in stable["releases"]] == [second, first]
    assert stable["releases"][0]["median_ms"] == pytest.approx(30.0, rel=0.1)
    assert stable["periods"]["unsure"] == pytest.approx([0.1] * 5, abs=0.01)
    assert stable["periods"]["p95_ms"][0] == pytest.approx(60.0, rel=0.1)
    assert model["frames"]["total"] == 3
    assert model["entry"]["enrolled_by"] == "ann"


@pytest.mark.parametrize(
    ("device", "conclusion", "command"),
    [
        ("cam-never", "it never reported", "edge-client doctor"),
        ("cam-clone", "as it ought to", "edge-fleet re-enroll cam-clone"),
        ("cam-old", "as it ought to", "edge-fleet why cam-old"),
        ("stranger", "and ought to have", "edge-fleet enroll stranger --site SITE"),
    ],
)
def test_each_kind_of_device_has_its_conclusion_and_what_to_do(place, device, conclusion, command):
    board, *_ = place
    model = board.json(f"devices/{device}")
    assert conclusion in model["channels"][0]["conclusion"]
    assert command in [one["command"] for one in model["next_steps"]]


def test_a_device_that_left_the_fleet_is_known(place):
    board, *_ = place
    model = board.json("devices/gone")
    assert (model["channels"], model["retired_at"] > 0) == ([], True)
    assert model["next_steps"][0]["command"] == "edge-fleet re-enroll gone"


@pytest.mark.parametrize("path", ["devices/cam-2", "devices/%3Cb%3E", "devices/..%2F..%2Fetc", "devices/%00"])
def test_an_unknown_id_is_404_with_ids_like_it(place, path):
    board, *_ = place
    request = urllib.request.Request(board.url + path, headers={"Accept": "application/json"})  # noqa: S310 - http
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(request, timeout=60)  # noqa: S310 - as above
    assert e.value.code == 404
    if path.endswith("cam-2"):
        assert json.loads(e.value.read())["close"][0] == "cam-1"


@pytest.mark.parametrize(
    "path", ["cam-1/frames/nothing.jpg", "cam-1/frames/..%2F1.jpg", "%2e%2e/frames/a.jpg"]
)
def test_frames_that_are_not_there(place, path):
    board, *_ = place
    with pytest.raises(urllib.error.HTTPError) as e:
        board.json(f"devices/{path}")
    assert e.value.code in {400, 404}


def test_figures_of_a_device_that_lies_are_within_bounds():
    lie = under_release(
        ReleaseFigures(
            release="r", frames=-5, failed=2**60, unsure=2**62, latency={"x": 1, "999": 5, "3": -1}
        ),
        is_serving=True,
    )
    assert (lie.median_ms, lie.histogram, lie.unsure) == (None, (), None)
    assert lie.failed == 1.0
    assert quantile({}, 0.5) is None
    periods = [
        PeriodSum(start=0, release="r", frames=10, unsure=99, latency={"8": 10}),
        PeriodSum(start=0, release="s"),
    ]
    told = over_time(periods)
    assert (told.times, told.releases, told.unsure) == ((0,), (("r", "s"),), (1.0,))
    drift = drift_of(ReleaseFigures(release="r", labels={"a": 3, "b": -1}), [], None, is_alarm=False)
    assert [(one.label, one.device, one.hold_out) for one in drift.labels] == [("a", 1.0, None)]
