"""The page of rollouts: a person reads what happened and decides; in a browser, and as a program."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import re
import time
from urllib.parse import urlsplit

import msgspec
import pytest
from local_services import PATIENCE, wait_until

from edge_client.contract.errors import InputError
from luigi_tasks.board.access.tokens import Tokens
from luigi_tasks.board.paging import part_of
from luigi_tasks.board.rollouts import acts as rollout_acts
from luigi_tasks.board.rollouts.figures import draw_check, place_stages
from luigi_tasks.board.rollouts.view import show_stages, waiting_for
from luigi_tasks.fleet import records, stages
from luigi_tasks.fleet.records import Check, RolloutPlan, RolloutRecord, StageRecord
from luigi_tasks.fleet.rollouts import record_key
from luigi_tasks.fleet.stages import Moment
from tests.fakes.board_fleet import HOSTILE, HOSTILE_WORDS, BoardFleet, write_board_settings
from tests.fakes.rollout_fleet import RolloutFleet
from tests.fakes.running_board import RunningBoard

playwright = pytest.importorskip("playwright.sync_api")

ROLE = "operator"


class Shops(BoardFleet):
    """Twelve cameras whose devices, people and labels have names that attack."""

    def __init__(self, folder):
        super().__init__(folder, 12, HOSTILE_WORDS)
        self.now = time.time()

    def publish(self, bias, *, move=True):
        """Sign a release that no gate judged: rollouts do not ask."""
        self.releases.append(RolloutFleet.publish(self, bias, move=move).release)
        return self.releases[-1]

    def begin(self, looks=0, **plan):
        """Start a rollout of a new release after whatever ran, and look at it; return its id."""
        self.now = max(self.now, time.time())
        self.verdicts.clear()
        if self.machine().stand("stable").running is not None:
            self.machine().abort("stable", "eve", "another test")
        release = self.publish(len(self.releases), move=False)
        plan = {"stages": "1d,50%,100%", **plan}
        started = self.machine().start("stable", release, self.plan(**plan), HOSTILE)
        for _ in range(looks):
            self.step()
        return started.id

    def step(self):
        """Let the devices follow and report, and look."""
        self.follow()
        self.report(2)
        self.machine().advance("stable")

    def halt(self):
        """Start a rollout that four of six devices send back; return its id."""
        rollout = self.begin(2, on_breach="pause")
        having = sorted(name for name in self.follow() if self.serving[name] == self.releases[-1])
        self.verdicts.update(dict.fromkeys(having[:4], "sent_back"))
        self.step()
        return rollout

    def record(self, rollout):
        """Return a rollout's record."""
        return self.machine().rollouts.load("stable", rollout).document


@dataclasses.dataclass
class Desk:
    """A fleet, its board, and a browser in which an operator is signed in."""

    fleet: Shops
    board: RunningBoard
    context: object
    tokens: dict[str, str]

    def ask(self, method, path, sent=None, token=ROLE, **headers):
        """Return status and answer to a program."""
        url = urlsplit(self.board.url)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60 * PATIENCE)
        known = {"Accept": "application/json", **headers}
        if token:
            known["Authorization"] = f"Bearer {self.tokens[token]}"
        if isinstance(sent, dict):
            known["Content-Type"], sent = "application/json", json.dumps(sent)
        try:
            connection.request(method, f"/{path}", sent, known)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory, chromium):
    folder = tmp_path_factory.mktemp("rollouts")
    fleet = Shops(folder / "fleet")
    tokens = Tokens(fleet.folder / "board")
    issued = {
        "viewer": tokens.issue("ann-viewer", "viewer", 1)[0],
        ROLE: tokens.issue("ann-operator", "operator", 1)[0],
    }
    lines = ("look_s = 0.5",)
    with RunningBoard(write_board_settings(fleet, folder / "board.cfg", *lines)) as board:
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(60_000 * PATIENCE)
        page = context.new_page()
        page.goto(board.url + "sign-in")
        page.get_by_label("Token").fill(issued[ROLE])
        page.get_by_role("button", name="Sign in").click()
        page.close()
        fleet.begin()
        wait_until(lambda: board.json("rollouts/stable")["members"] == 12, "the index")
        yield Desk(fleet, board, context, issued)
        context.close()


@pytest.fixture
def open_tab(desk):
    """Open tabs, which fail the test at an error of a script, a breach of the CSP, or a script of a name."""
    faults, tabs = [], []

    def new_tab(path):
        tab = desk.context.new_page()
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: faults.append(dialog.message))
        tab.on("console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None)
        tab.goto(desk.board.url + path)
        tabs.append(tab)
        return tab

    yield new_tab
    for tab in tabs:
        tab.close()
    assert not faults


def expect(locator):
    return playwright.expect(locator)


def state_of(tab):
    return tab.locator("#rollout .top .badge")


def test_a_halted_rollout_is_read_and_sent_back_by_mouse(desk, open_tab):
    rollout = desk.fleet.halt()
    release, steady = desk.fleet.releases[-1], desk.fleet.steady
    tab = open_tab("rollouts")
    expect(tab.locator("article")).to_have_count(1)
    tab.get_by_role("link", name="stable", exact=True).click()
    expect(state_of(tab)).to_have_text("halted")
    summary = tab.locator(".summary")
    expect(summary).to_contain_text("4 of 6")
    stage_bar = tab.get_by_role(
        "img", name=re.compile(r"^Stages: 1 \(1 device\) done, 1 device; 2 \(50%\) halted, 6")
    )
    expect(stage_bar).to_be_visible()
    tile = tab.locator(".checks li", has=tab.get_by_role("heading", name="failures", exact=True))
    expect(tile.locator(".badge")).to_have_text("halt")
    expect(tile.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"66.7%, .* to .*, limit at most 10%")
    )
    expect(tab.get_by_role("link", name="sent back").first).to_have_attribute(
        "href", re.compile("channel=stable&state=sent_back")
    )
    expect(tab.locator("th").get_by_role("link", name=re.compile("camera-"))).to_have_count(4)
    expect(tab.get_by_role("cell", name=re.compile(r"onerror=alert\(1\)")).first).to_be_visible()
    assert tab.locator("main img, main script").count() == 0
    expect(tab.get_by_role("button", name="Approve")).to_be_disabled()
    tab.get_by_role("button", name="Send back").click()
    told = tab.locator("#now")
    expect(told).to_contain_text(f"6 devices go back to release {steady}.")
    expect(told).to_contain_text(f"Release {release} is withdrawn from channel stable")
    tab.get_by_label("Reason").fill(HOSTILE[:400])
    tab.get_by_role("button", name="Send 6 devices back").click()
    expect(state_of(tab)).to_have_text("going back")
    assert tab.url.endswith(f"rollouts/stable/{rollout}")
    event = desk.fleet.record(rollout).events[-1]
    assert (event.what, event.who) == ("going_back", "ann-operator")
    assert event.why.startswith('"><img src=x')
    assert not {"\n", "\u202e", "\x00"} & set(event.why)
    assert release in desk.fleet.machine().repository.load().withdrawn("stable")


def test_a_stage_is_approved_by_keyboard_alone(desk, open_tab):
    rollout = desk.fleet.begin(2, approve="2")
    tab = open_tab("rollouts/stable")
    expect(state_of(tab)).to_have_text("waiting for approval")
    for _ in range(40):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "act-approve":
            break
    tab.keyboard.press("Enter")
    expect(tab.locator("#now")).to_contain_text("5 more devices, 6 in all, get release")
    tab.keyboard.type("seen on two cameras")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    expect(tab.locator(".history li").first).to_contain_text("approved by ann-operator")
    assert desk.fleet.record(rollout).approved == (2,)
    desk.fleet.step()  # from cron, elsewhere
    expect(state_of(tab)).to_have_text("open")
    expect(tab.get_by_role("button", name="Approve")).to_be_disabled()


def test_what_one_tab_or_a_command_does_shows_in_the_other_tab(desk, open_tab):
    rollout = desk.fleet.begin(1)
    one, other, listed = open_tab("rollouts/stable"), open_tab("rollouts/stable"), open_tab("rollouts")
    one.get_by_role("button", name="Pause").click()
    one.get_by_label("Reason").fill("lunch <b>now</b>")
    one.get_by_role("button", name="Pause the rollout").click()
    expect(state_of(one)).to_have_text("paused")
    expect(state_of(other)).to_have_text("paused")
    expect(other.locator("#rollout .notice")).to_contain_text("paused by ann-operator")
    expect(other.locator("#rollout .notice")).to_contain_text("lunch <b>now</b>")
    expect(other.locator("#said")).to_contain_text("stable: paused")  # to who does not see it
    expect(other.locator("#said")).to_have_count(1)
    expect(listed.locator("article .badge").first).to_have_text("paused")
    desk.fleet.machine().resume("stable", "bob", "full")
    expect(state_of(other)).to_have_text("open")
    assert [one.what for one in desk.fleet.record(rollout).events[-2:]] == ["paused", "resumed"]


def test_a_form_acts_on_what_was_seen_and_on_nothing_newer(desk, open_tab):
    rollout = desk.fleet.begin(1)
    tab = open_tab(f"rollouts/stable/{rollout}/back")
    tab.get_by_label("Reason").fill("too slow")
    seen = len(desk.fleet.record(rollout).events)
    desk.fleet.machine().pause("stable", "bob", "lunch")
    with tab.expect_response(lambda answer: answer.request.method == "POST") as answered:
        tab.get_by_role("button", name="Send 1 device back").click()
    assert answered.value.status == 409
    expect(tab.get_by_role("alert")).to_contain_text("Nothing was done")
    expect(tab.locator("#now")).to_contain_text("paused by bob: lunch")
    assert desk.fleet.record(rollout).state == "paused"
    assert tab.get_by_label("Reason").input_value() == "too slow"
    tab.get_by_role("button", name="Send 1 device back").click()
    expect(state_of(tab)).to_have_text("going back")

    # the same decision sent twice is done once
    again = {"why": "too slow", "events": seen + 1}
    status, told = desk.ask("POST", f"rollouts/stable/{rollout}/back", again)
    assert (status, json.loads(told)["rollout"]["state"]) == (200, "going_back")
    assert len(desk.fleet.record(rollout).events) == seen + 2

    newer = desk.fleet.begin(1)
    seen_by_all = len(desk.fleet.record(newer).events)
    with concurrent.futures.ThreadPoolExecutor(6) as persons:
        sent = [
            persons.submit(
                desk.ask, "POST", f"rollouts/stable/{newer}/pause", {"why": f"{one}", "events": seen_by_all}
            )
            for one in range(6)
        ]
    assert sorted(one.result()[0] for one in sent) == [200, 409, 409, 409, 409, 409]
    assert len(desk.fleet.record(newer).events) == seen_by_all + 1

    status, told = desk.ask("POST", f"rollouts/stable/{rollout}/abort", {"why": "late", "events": seen})
    assert status == 409
    assert json.loads(told)["act"]["why_not"]
    assert desk.fleet.record(newer).state == "paused"


def test_programs_read_and_decide_with_a_token(desk):
    rollout = desk.fleet.begin(2)
    wait_until(lambda: rollout in desk.ask("GET", "rollouts", token="")[1].decode(), "a look")
    shown = json.loads(desk.ask("GET", "rollouts/stable", token="")[1])
    assert (shown["rollout"]["id"], shown["verdict"]["result"]) == (rollout, "pass")
    signed = f"rollouts/stable/{rollout}/verdicts/{shown['verdict_name']}"
    lies = desk.fleet.bucket / "fleet" / "verdicts" / "stable" / rollout / f"{shown['verdict_name']}.json"
    assert desk.ask("GET", signed, token="")[1] == lies.read_bytes()
    looks = json.loads(desk.ask("GET", f"rollouts/stable/{rollout}/looks", token="")[1])
    assert [one["result"] for one in looks["looks"]] == ["pass"]
    assert rollout in desk.ask("GET", "rollouts/stable/all", token="")[1].decode()

    here = "rollouts/stable/pause"
    assert desk.ask("POST", here, {"why": "x"}, token="")[0] in {401, 403}
    assert desk.ask("POST", here, {"why": "x"}, token="viewer")[0] == 403
    for wrong in ({"why": ""}, {"why": "x" * 501}, {"why": 7}, {"why": "x", "events": "all"}):
        assert desk.ask("POST", here, wrong)[0] == 400
    assert desk.ask("POST", here, b"why=x")[0] == 400  # a form says what was seen
    assert desk.fleet.record(rollout).state == "open"
    status, told = desk.ask("POST", here, {"why": "x"})
    assert (status, json.loads(told)["rollout"]["state"]) == (200, "paused")
    assert desk.ask("POST", "rollouts/stable/approve", {"why": "x"})[0] == 409

    assert desk.ask("POST", "rollouts/nowhere/look")[0] == 404
    assert desk.ask("POST", "rollouts/nowhere/pause", {"why": "x"})[0] == 404
    assert desk.ask("POST", "rollouts/nowhere/start", {"release": "x"})[0] == 404

    for address, expected in {
        "rollouts/nowhere": 404,
        "rollouts/stable/20260101T000000-00000000-0000": 404,
        "rollouts/..%2f..%2fkeys": 400,
        "rollouts/stable/%3Cscript%3E": 400,
        f"rollouts/stable/{rollout}/verdicts/..%2f..": 400,
        "rollouts/stable?verdict=01-000001-00000000": 404,
        "rollouts/stable/all?page=99999": 200,
        "rollouts/stable/all?page=%E2%91%A0": 200,
    }.items():
        assert desk.ask("GET", address, token="")[0] == expected, address


def test_a_release_is_tried_dry_started_and_looked_at(desk, open_tab):
    desk.fleet.begin(1)
    release = desk.fleet.publish(len(desk.fleet.releases), move=False)
    chosen = {"release": release}
    status, told = desk.ask("POST", "rollouts/stable/start", chosen)
    assert status == 409
    assert "one rollout a channel" in json.loads(told)["error"]  # and no process was started

    desk.fleet.machine().abort("stable", "eve", "to start another")
    desk.fleet.report(2)
    status, told = desk.ask("GET", f"rollouts/stable/start?release={release}")
    assert status == 200
    assert [one["size"] for one in json.loads(told)["stages"]] == [1, 3, 12]
    tab = open_tab("rollouts/stable")
    status, told = desk.ask("POST", "rollouts/stable/start", chosen)
    assert status == 200
    record = json.loads(told)["rollout"]
    assert (record["release"], record["created_by"], record["state"]) == (release, "ann-operator", "open")
    expect(state_of(tab)).to_have_text("open")
    tab.get_by_role("button", name="Look now").click()
    expect(tab.locator("#rollout")).to_contain_text("Looked by ann-operator")


def test_a_machine_without_the_key_shows_all_and_says_what_it_needs(desk, open_tab):
    desk.fleet.begin(1)
    key = desk.fleet.folder / "keys" / "pipeline" / "rollouts.pem"
    away = key.rename(key.with_suffix(".away"))
    try:
        tab = open_tab("rollouts/stable")
        expect(state_of(tab)).to_have_text("open")
        for name in ("Pause", "Send back", "Abort"):
            expect(tab.get_by_role("button", name=name)).to_be_disabled()
        expect(tab.locator("#why-not")).to_contain_text("this machine has no rollouts key")
        status, told = desk.ask("POST", "rollouts/stable/pause", {"why": "x"})
        assert status == 503
        assert "rollouts" in json.loads(told)["error"]
    finally:
        away.rename(key)


def test_a_rollout_whose_record_was_forged_can_be_ended(desk, open_tab):
    rollout = desk.fleet.begin(1)
    (desk.fleet.bucket / record_key("stable", rollout)).write_text("{}")
    tab = open_tab("rollouts/stable")
    expect(tab.locator("main .notice")).to_contain_text("not signed by a trusted key")
    tab.get_by_role("button", name="Abort").click()
    tab.get_by_label("Reason").fill("forged")
    tab.get_by_role("button", name="Abort the rollout").click()
    tab.wait_for_url(desk.board.url + "rollouts/stable")
    assert desk.fleet.machine().stand("stable").running is None


# Without a browser

STAGE = StageRecord(number=1, size=3, threshold=7, opened_at=1.0)
RECORDS = {
    state: RolloutRecord(
        id="r",
        channel="stable",
        release="new",
        plan=RolloutPlan(approve=(2,)),
        state=state,
        stages=() if state == records.PLANNED else (STAGE,),
        resume_state=records.OPEN,
    )
    for state in records.ROLLOUT_STATES
}
DO = {
    "approve": lambda record, when: stages.approve(record, 0, "", when),
    "pause": lambda record, when: stages.pause(record, "", when),
    "resume": lambda record, when: stages.resume(record, "", when),
    "back": lambda record, when: stages.go_back(record, "", when),
    "abort": lambda record, when: stages.abort(record, "", when),
}


@pytest.mark.parametrize("state", records.ROLLOUT_STATES)
def test_what_can_be_clicked_is_what_the_state_allows(state):
    record = RECORDS[state]
    shown = rollout_acts.acts_of(record, rollout_acts.Circumstances(steady="old"))
    assert [one.name for one in shown] == list(DO)
    for act in shown:
        try:
            changes = DO[act.name](record, Moment(2.0, "", "ann")) != record
        except InputError:
            changes = False
        if act.name == "approve" and state in {"paused", "halted", "going_back"}:
            assert act.why_not  # it would be written, and open nothing
        else:
            assert bool(act.why_not) != changes, act
        assert act.why_not or act.does


def test_without_this_machines_key_nothing_can_be_clicked():
    now = rollout_acts.Circumstances(steady="old", key_fault="no key")
    assert {one.why_not for one in rollout_acts.acts_of(RECORDS["open"], now)} == {"no key"}


@pytest.mark.parametrize("members", [0, 1, 2, 3, 7, 40, 100_000, None])
@pytest.mark.parametrize("state", ["planned", "open", "done", "back"])
def test_the_bar_is_whole_and_each_stage_wide_enough(state, members):
    parts = place_stages(show_stages(RECORDS[state], members))
    assert sum(part.width for part in parts) == pytest.approx(100, abs=0.01)
    assert all(part.width >= 8.9 for part in parts)
    ends = [part.at + part.width for part in parts]
    assert ends[:-1] == pytest.approx([part.at for part in parts[1:]], abs=0.01)


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (("failures", "hard", 0.35, 0.177, 0.558, 0.1, "share"), "35%, 17.7% to 55.8%, limit at most 10%"),
        (("passed", "hard", 0.65, None, None, 0.95, "share"), "65%, limit at least 95%"),
        (("soak", "hard", 600.0, None, None, 7200.0, "s"), "10 min, limit at least 2 h"),
        (
            ("latency:class=wide", "soft", 0.5, 0.3, 0.71, 0.25, "relative"),
            "+50%, +30% to +71%, limit at most +25%",
        ),
        (("confidence", "soft", -0.05, -0.07, -0.03, 0.03, "share"), "-5%, -7% to -3%, limit at least -3%"),
        (("drift:red", "soft", -0.3, -0.4, -0.2, 0.1, "relative"), "-30%, -40% to -20%, limit at least -10%"),
        (
            ("restarts", "report", None, None, None, 0.05, "per hour"),
            "not measured, limit at most +0.05 per hour",
        ),
        (("figures", "soft", None, None, None, None, ""), "not measured"),
    ],
)
def test_a_check_says_in_words_what_it_draws(check, words):
    name, kind, value, low, high, limit, unit = check
    drawn = draw_check(
        Check(name=name, kind=kind, result="pass", value=value, low=low, high=high, limit=limit, unit=unit)
    )
    assert drawn.words == words


@pytest.mark.parametrize(("page", "rows"), [(1, "ab"), (2, "cd"), (3, "e"), (9, "e"), (0, "ab"), (-1, "ab")])
def test_a_long_list_comes_in_pages(page, rows):
    part = part_of("abcde", page, 2)
    assert part.rows == rows
    assert "abcde"[part.first - 1 :].startswith(rows)
    assert (part.pages, part.total) == (3, 5)


def test_a_stage_that_waits_is_the_next_that_nobody_approved():
    record = msgspec.structs.replace(RECORDS["open"], plan=RolloutPlan(approve=(1, 3, 4)), approved=(3,))
    assert waiting_for(record) == 4
