"""The page Fleet in a browser and for programs: what has to be looked at, and the table of all devices."""

from __future__ import annotations

import http.client
import re
import sqlite3
import time
import urllib.parse

import msgspec
import pytest
from local_services import PATIENCE, wait_until

from edge_client.contract.report import ReleaseFigures
from luigi_tasks.fleet.records import CurrentRollout, EnrolledDevice, RolloutEvent, RolloutRecord, StageRecord
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.fleet_reports import FakeDevice
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

expect = pytest.importorskip("playwright.sync_api").expect

HOSTILE = "<img src=x onerror=alert(1)>\u202egnp {{7*7}}'\""
DEVICES = 130


class Site:
    """A board over a fleet of `DEVICES`, every tenth of which is slow, and the fleet to change."""

    def __init__(self, folder, patch) -> None:
        self.fleet = CommandFleet(folder, patch)
        self.old, self.new = (self.fleet.publish(bias).release for bias in (0, 1))
        self.devices = [FakeDevice(f"cam-{number:03}") for number in range(DEVICES)]
        self.enroll(*(one.enrolled(**self.place(number)) for number, one in enumerate(self.devices)))
        self.fleet.report(*self.reports(), age_s=60)
        self.board = RunningBoard(board_settings(self.fleet, folder, "look_s = 0.1"))

    @staticmethod
    def place(number):
        return {"site": f"shop-{number % 7}", "device_class": "wide", "tags": (f"line={number % 3}",)}

    def enroll(self, *devices: EnrolledDevice) -> None:
        self.fleet.enroll(*devices)

    def reports(self, **changes):
        for number, one in enumerate(self.devices[:-1]):
            slow = number % 10 == 9
            figures = ReleaseFigures(
                release=self.old,
                frames=100,
                latency_ms=100 * (90.0 if slow else 30.0),
                unsure=number % 50,
                failed=number,
            )
            yield one.report(
                fleet=self.fleet.settings.broker.fleet,
                client="0.1.0",
                release=self.old,
                drift_alarm=slow,
                warning=HOSTILE if number == 3 else "",
                releases=(figures,),
                **self.place(number),
                **changes,
            )

    def stream(self) -> http.client.HTTPResponse:
        address = urllib.parse.urlsplit(self.board.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60 * PATIENCE)
        connection.request("GET", "/streams")
        return connection.getresponse()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A fleet and its board, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        found = Site(tmp_path_factory.mktemp("site"), patch)
        with found.board:
            wait_until(lambda: found.board.json()["state"]["rows"] == DEVICES, "the index")
            yield found


def test_what_is_typed_is_found_kept_in_the_address_and_found_again_by_the_back_button(site, tab):
    tab.goto(site.board.url)
    rows = tab.locator("#devices tbody tr")
    expect(rows).to_have_count(50)
    expect(tab.locator("#rows-told")).to_have_text("130 rows")
    tab.locator("#q").press_sequentially("shop-1 LINE=0", delay=20)
    expect(rows).to_have_count(6)
    expect(tab.locator("#rows-told")).to_have_text("6 rows")
    expect(tab).to_have_url(re.compile(r"/\?q=shop-1\+LINE%3D0$"))
    assert tab.evaluate("document.activeElement.id") == "q", "who types goes on typing"
    tab.get_by_role("link", name="Latency").click()
    expect(tab.locator("th[aria-sort=descending]")).to_have_text("Latency")
    expect(rows.first).to_contain_text("90.0 ms")
    expect(tab).to_have_url(re.compile(r"sort=latency_ms&order=desc$"))
    assert tab.evaluate("document.activeElement.id") == "sort-latency_ms", "the keyboard stays where it was"
    tab.get_by_label("Look at").select_option("drift alarm")
    expect(rows).to_have_count(1)
    expect(tab).to_have_url(re.compile(r"odd=drift.*sort=latency_ms&order=desc$"))
    shared = tab.url
    tab.go_back()
    expect(rows).to_have_count(6)
    expect(tab.get_by_label("Look at")).to_have_value("")
    tab.goto(shared)
    expect(rows).to_have_count(1)
    expect(tab.locator("#q")).to_have_value("shop-1 LINE=0")


def test_pages_are_turned_to_the_last_and_lead_to_a_device(site, tab):
    tab.goto(site.board.url)
    tab.get_by_role("link", name="Next").click()
    expect(tab.locator("#devices tbody th").first).to_have_text("cam-050")
    tab.get_by_role("link", name="Last", exact=True).click()
    expect(tab.locator("#devices tbody tr")).to_have_count(30)
    expect(tab.get_by_role("link", name="Next")).to_have_count(0)
    expect(tab).to_have_url(re.compile(r"page=3$"))
    tab.get_by_role("link", name="cam-129").click()
    expect(tab).to_have_url(re.compile(r"/devices/cam-129$"))


def test_hostile_text_is_text(site, tab):
    tab.on("dialog", lambda dialog: pytest.fail(dialog.message))
    tab.goto(f"{site.board.url}?q={urllib.parse.quote('cam-003')}&site={urllib.parse.quote(HOSTILE)}")
    expect(tab.get_by_label("Site")).to_have_value(HOSTILE)
    expect(tab.locator("#devices")).to_contain_text("No device matches")
    tab.goto(f"{site.board.url}?q=cam-003")
    expect(tab.locator("td.notes")).to_contain_text("<img src=x onerror=alert(1)>\\u202egnp")


@pytest.mark.parametrize(
    ("query", "total", "first"),
    [
        ("", 130, "cam-000"),
        ("order=desc", 130, "cam-129"),
        ("sort=failed_frames&order=desc", 130, "cam-128"),
        ("sort=latency_ms&order=desc", 130, "cam-129"),
        ("heard=never", 1, "cam-129"),
        ("release=unknown", 1, "cam-129"),
        ("site=shop-6&tag=line=2", 6, "cam-020"),
        ("class=wide&online=yes&enrolled=yes&heard=heard&page=3", 129, "cam-100"),
        ("odd=drift&sort=device&order=desc&rows=5&page=2", 12, "cam-069"),
        ("enrolled=no", 0, None),
        ("site=nowhere", 0, None),
        ("q=cam-00'%22%25_", 0, None),
        ("page=99999999999999999999&sort=drop+table&rows=0&order=up&span=century", 130, "cam-000"),
        ("page=999999", 130, None),
        ("online=perhaps", 0, None),
    ],
)
def test_programs_get_the_same_table(site, query, total, first):
    if "sort=latency_ms" in query:
        first = "cam-119"  # of the slow ones the last by name
    page = site.board.json(f"?{query}")["page"]
    assert page["total"] == total
    assert (page["devices"][0]["device"] if page["devices"] else None) == first


def test_a_new_snapshot_is_seen_in_an_open_page_without_losing_what_is_typed(site, tab):
    tab.goto(f"{site.board.url}?q=cam-00")
    tab.locator("#q").press("End")
    tab.locator("#q").press_sequentially("0")
    expect(tab.locator("#devices tbody tr")).to_have_count(1)
    site.fleet.report(*site.reports(state="serving"), age_s=10, listening_since=time.time() - 60)
    expect(tab.locator("#now .lead")).to_contain_text(re.compile(r"As of 1?\d s ago"))
    expect(tab.locator("#now .lead")).to_contain_text("The collector has listened only since")
    expect(tab.locator("#devices tbody tr")).to_have_count(1)
    expect(tab.locator("#q")).to_have_value("cam-000")
    assert tab.evaluate("document.activeElement.id") == "q"


def test_a_rollout_that_stands_still_is_said_at_the_top_with_the_way_to_it(site, tab):
    tab.goto(site.board.url)
    record = RolloutRecord(
        id="r-1",
        channel="stable",
        release=site.old,
        state="paused",
        stages=(StageRecord(number=1, size=3, threshold=1 << 62, opened_at=1.0),),
        events=(RolloutEvent(at="2026-11-28T01:00:00Z", what="paused", why="latency grew by 40%"),),
    )
    site.fleet.rollouts.save(record, None)
    site.fleet.rollouts.save_current(CurrentRollout(channel="stable", rollout="r-1"), None)
    notice = tab.locator("#now .notice.state-bad")
    expect(notice).to_contain_text("paused: latency grew by 40%.")
    expect(notice.get_by_role("link")).to_have_attribute("href", "/rollouts/stable")
    expect(tab.locator("#devices tbody tr").first).to_contain_text(re.compile("passed|probation"))
    assert site.board.json()["alerts"][0]["rollout"] == "r-1"
    gone_back = RolloutEvent(at="2026-11-28T01:05:00Z", what="back", why="no device is known to have it")
    ended = msgspec.structs.replace(
        record, state="back", state_since=time.time(), events=(*record.events, gone_back)
    )
    site.fleet.rollouts.save(ended, site.fleet.rollouts.load("stable", "r-1").etag)
    expect(tab.locator("#now .notice.state-warn")).to_contain_text("went back: latency grew by 40%.")
    listed = site.board.json("rollouts")["channels"][0]["rollout"]
    assert (listed["last"]["what"], listed["stopped"]["what"]) == ("back", "paused")


def test_a_store_that_is_away_is_said_and_found_again(site, tab):
    tab.goto(site.board.url)
    away = site.fleet.bucket.with_name("away") / "bucket"
    site.fleet.bucket.rename(away.parent)
    site.fleet.bucket.write_text("no folder")
    expect(tab.locator("#now .notice").filter(has_text="the bucket was not read")).to_be_visible()
    assert site.board.json()["page"]["total"] == DEVICES, "what was read is shown meanwhile"
    tab.goto(f"{site.board.url}candidates")
    expect(tab.get_by_text("It is tried again")).to_be_visible()
    site.fleet.bucket.unlink()
    away.parent.rename(site.fleet.bucket)
    expect(tab.get_by_role("heading", name="Judged by the gate")).to_be_visible()
    tab.goto(site.board.url)
    expect(tab.locator("#now .notice").filter(has_text="the bucket was not read")).to_have_count(0)


def test_a_damaged_index_is_made_anew(site):
    index = site.fleet.bucket.parent / "board" / "index.sqlite"
    version = site.board.json()["state"]["version"]
    site.board.stop()
    index.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    (index.parent / "history.sqlite").write_bytes(b"nothing")
    site.board.start()
    wait_until(lambda: site.board.json()["page"]["total"] == DEVICES, "the index")
    assert site.board.json()["state"]["version"] == version, "the same things have the same version"
    with sqlite3.connect(index.parent / "history.sqlite") as history:
        assert history.execute("SELECT count(*) FROM points").fetchone()[0]
    assert not (index.parent / "index.sqlite.part").exists()


def test_a_page_that_does_not_read_holds_up_nobody(site):
    """Streams get the newest version of a topic; those that are gone are forgotten without an error."""
    lazy, eager = site.stream(), site.stream()
    site.fleet.report(*site.reports(state="idle"), age_s=1)
    told = ""
    while not told.startswith("event: snapshot"):
        told = eager.readline().decode()
    lazy.close()
    eager.close()
    assert site.board.json()["page"]["total"] == DEVICES
    assert "Traceback" not in site.board.log
    assert "headers written" not in site.board.log
