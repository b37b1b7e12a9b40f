"""The page Label: a real inbox and a real dataset, labelled in a browser by several people, and taken."""

from __future__ import annotations

import csv
import io
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
from local_services import PATIENCE

from luigi_tasks.board.access.tokens import Tokens
from luigi_tasks.board.labels.grid import Ordered
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.labelling.desk import Choice, Desk
from luigi_tasks.labelling.records import DoubtfulPicture, DoubtfulRecord
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.opening import open_store
from luigi_tasks.workspace import Workspace
from tests.fakes.board_packages import without_the_pipeline
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.datasets import class_folders, write_tree
from tests.fakes.inbox import hand_in, home, in_inbox, jpeg, list_into, sha256
from tests.fakes.running_board import RunningBoard
from tests.pipeline.board.conftest import board_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page

    from luigi_tasks.storage.store import Store

pytest.importorskip("playwright.sync_api")
from playwright.sync_api import expect

HOSTILE = "<img src=x onerror=alert(1)>\u202e"
TREE = class_folders({"cat": 3, "dog": 3})


class Room(NamedTuple):
    """A board with an inbox and a dataset."""

    board: RunningBoard
    store: Store
    folder: Path
    tokens: dict[str, str]

    def labels(self) -> dict[str, str]:
        """What labels.csv says now."""
        text = (self.folder / "board/labelling/labels.csv").read_bytes().decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return {row["frame"] or row["path"]: row["label"] for row in rows if row["label"]}

    def ask(self, path: str, body: object = None, who: str = "") -> tuple[int, Any, dict[str, str]]:
        """Return what a program is answered."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if who:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.board.url + path, data, headers)  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=60 * PATIENCE) as answer:  # noqa: S310
                found = answer.read()
                is_json = answer.headers["Content-Type"] == "application/json"
                return answer.status, json.loads(found) if is_json else found, dict(answer.headers)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.loads(e.read()), dict(e.headers)


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Iterator[Room]:
    """A board of its own extra alone; its inbox has a burst, single frames, a hostile one, and no picture."""
    folder = tmp_path_factory.mktemp("label")
    with pytest.MonkeyPatch.context() as patch:
        fleet = CommandFleet(folder, patch)
        store = open_store(fleet.settings.store)
        write_tree(folder / "dataset", TREE)
        for number in range(4):
            at = f"2025-05-01T10:00:0{number}.000+00:00"
            hand_in(store, "cam1", f"20250501T10000{number}-a.jpg", jpeg(number), at=at)
        for number in range(5):
            at = f"2025-05-02T1{number}:00:00.000+00:00"
            hand_in(
                store, "cam2", f"2025050{number}.jpg", jpeg(10 + number), label="dog", at=at, confidence=0.3
            )
        hand_in(store, "cam3", "evil.jpg", jpeg(30), label=HOSTILE, why=HOSTILE, at=HOSTILE)
        hand_in(store, "cam3", "bad.jpg", b"\xff\xd8\xff no picture", label="zzz")
        for number, name in enumerate("xy"):
            hand_in(store, "cam9", f"{name}.jpg", jpeg(40 + number), label="fox", at=f"2025-05-0{number + 3}")
        doubt(fleet)
        file = board_settings(fleet, folder)
        file.write_text(f"{file.read_text()}[dataset]\nurl = {folder}/dataset\ncache_dir = {folder}/cache\n")
        tokens = Tokens(folder / "board")
        roles: dict[str, Literal["viewer", "labeller", "operator"]]
        roles = {"ann": "operator", "bob": "labeller", "vic": "viewer"}
        issued = {name: tokens.issue(name, role, 1)[0] for name, role in roles.items()}
        with RunningBoard(file, without_the_pipeline(folder / "packages", patch)) as running:
            yield Room(running, store, folder, issued)


def doubt(fleet: CommandFleet) -> None:
    """Sign a list of doubtful labels, as DoubtfulLabels does; a newer one is not signed."""
    pictures = [
        DoubtfulPicture(
            path=path, sha256=sha256(TREE[path]), label="cat", probable="dog", score=0.9, why="dog by 90%"
        )
        for path in ("cat/000.png", "cat/001.png")
    ]
    record = DoubtfulRecord(snapshot="s", pictures=6, wrong_share=0.3, doubtful=tuple(pictures))
    ledger = Workspace(fleet.settings).ledger
    StoredDocument(ledger, "work/doubtful/a/doubtful.json").save_list(record)
    ledger.store.put("work/doubtful/b/doubtful.json", b'{"snapshot": "forged", "pictures": 1}')


def test_a_class_in_use_keeps_its_key(tmp_path):
    store = open_store(
        StoreSettings((tmp_path / "bucket").as_uri(), "", "", "when_required", conditional_writes=True)
    )
    classes = tuple("abcdefghijkl")
    hand_in(store, "cam1", "1.jpg", jpeg(1), label="l")
    list_into(store, tmp_path / "desk", classes)
    desk = Desk(tmp_path / "desk")
    ordered = Ordered(desk)
    assert "".join(ordered.labels()) == "abcdefghlijk"
    desk.choose([Choice("cam1/1.jpg", "b")], "ann")
    for number, label in enumerate("kkkj", 2):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number), label=label)
    list_into(store, tmp_path / "desk", ("A", *classes))
    found = ordered.labels()
    assert (found[1], found[8]) == ("b", "l")
    assert {"j", "k"} < {*found[:9]}


def sign_in(page: Page, room: Room, who: str, path: str = "label") -> None:
    """Sign in with a token, and go on to a page."""
    page.goto(f"{room.board.url}sign-in?next=/{path}")
    page.get_by_label("Token").fill(room.tokens[who])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"**/{path}")


def card(page: Page, name: str) -> Locator:
    """Return the card of a picture."""
    return page.locator(f'.frame[data-id="{name}"]')


def focus(page: Page, name: str) -> None:
    """Move the focus to a picture, as Tab and arrows do."""
    card(page, name).locator("input[type=checkbox]").focus()


BURST = [f"cam1/20250501T10000{number}-a.jpg" for number in range(4)]
SINGLE = [f"cam2/2025050{number}.jpg" for number in range(5)]


def test_frames_are_labelled_by_keys_over_a_restart_undone_and_taken(room, tab):
    sign_in(tab, room, "ann")
    expect(tab.locator(".frame")).to_have_count(13)  # shown once the inbox was read
    expect(card(tab, BURST[0]).get_by_role("button")).to_have_text("4 alike")
    expect(card(tab, "cam3/bad.jpg")).to_contain_text("cannot be shown: ")
    named = tab.get_by_role("checkbox", name="<img src=x onerror=alert(1)>")
    expect(named).to_have_count(1)
    assert tab.locator(".frame img[onerror]").count() == 0

    focus(tab, BURST[1])
    held = {"key": "1", "code": "Digit1", "repeat": True}  # labels once, and not all that follows
    tab.locator(":focus").dispatch_event("keydown", held)
    slash = {"key": "/", "code": "Digit7", "shiftKey": True}  # of a German keyboard
    tab.locator(":focus").dispatch_event("keydown", slash)
    expect(tab.get_by_role("dialog", name="Label one picture")).to_be_visible()
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Choose all").click()
    tab.keyboard.press("Escape")  # none
    expect(tab.locator("#picked")).to_contain_text("none chosen")
    tab.get_by_role("heading", name="Label", exact=True).click()
    tab.keyboard.press("Shift+Digit1")  # its whole group: cat
    expect(tab.locator("#progress-words")).to_have_text("4 of 13 decided")
    expect(card(tab, SINGLE[0]).locator("input[type=checkbox]")).to_be_focused()
    tab.keyboard.press("Space")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Space")
    tab.keyboard.press("2")  # both: dog
    expect(tab.get_by_role("status").filter(has_text="dog: 2 pictures. 6 of 13 decided.")).to_be_attached()
    tab.keyboard.press("Delete")
    expect(card(tab, SINGLE[2])).to_contain_text("thrown away")
    tab.keyboard.press("u")
    expect(card(tab, SINGLE[2])).not_to_contain_text("thrown away")
    expect(card(tab, SINGLE[2]).locator("input[type=checkbox]")).to_be_focused()
    tab.keyboard.press("Enter")  # as predicted

    room.board.stop()
    tab.keyboard.type("otter")  # a letter searches; the board is away
    tab.keyboard.press("Enter")
    expect(tab.locator("#search-new")).to_contain_text("is no class of the dataset yet")
    tab.keyboard.press("Enter")
    expect(tab.locator("#unsaved")).to_contain_text("not saved yet: the board does not answer")
    focus(tab, "cam3/bad.jpg")
    tab.keyboard.press("-")
    room.board.start()
    expect(tab.locator("#unsaved")).to_have_count(0)
    dogs = dict.fromkeys(SINGLE[:3], "dog")
    wanted = {**dict.fromkeys(BURST, "cat"), **dogs, SINGLE[3]: "otter", "cam3/bad.jpg": "-"}
    assert room.labels() == wanted


def test_doubtful_labels_are_decided_and_all_is_taken(room, tab):
    sign_in(tab, room, "ann", "label/doubtful")
    expect(tab.locator(".frame")).to_have_count(2)
    expect(tab.locator(".frame img").first).to_have_js_property("complete", value=True)
    assert tab.locator(".frame img").first.evaluate("image => image.naturalWidth") > 0
    focus(tab, "dataset:cat/000.png")
    tab.keyboard.press("Enter")  # moves as suggested: dog
    tab.keyboard.press("1")  # the next one is a cat: confirmed
    expect(tab.locator("#progress-words")).to_have_text("2 of 2 decided")

    tab.locator("#take").click()
    expect(tab.get_by_role("row", name="into class otter new class")).to_be_visible()
    tab.get_by_role("checkbox", name="Start the class otter").check()
    tab.get_by_role("button", name="Take 10").click()
    expect(tab.get_by_role("heading", name="Last taken")).to_be_visible(timeout=90_000 * PATIENCE)
    dataset = room.folder / "dataset"
    taken = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*.*")}
    assert {home("cat", jpeg(0))[:25], home("otter", jpeg(13))[:25]} <= {path[:25] for path in taken}
    assert "cat/000.png" not in taken
    assert "cat/001.png" in taken
    assert in_inbox(room.store) == [
        "cam2/20250504.jpg", "cam2/20250504.json", "cam3/evil.jpg", "cam3/evil.json",
        "cam9/x.jpg", "cam9/x.json", "cam9/y.jpg", "cam9/y.json",
    ]  # fmt: skip
    tab.goto(room.board.url + "label")
    expect(tab.locator("#progress-words")).to_have_text("0 of 4 decided")  # once it is listed again
    tab.reload()
    expect(tab.locator(".frame")).to_have_count(4)


def test_two_people_see_what_the_other_chose_within_a_moment(room, tab, chromium: Browser):
    sign_in(tab, room, "ann")
    context = chromium.new_context()
    other = context.new_page()
    sign_in(other, room, "bob")
    focus(tab, "cam9/x.jpg")
    tab.keyboard.press("1")
    expect(card(other, "cam9/x.jpg")).to_contain_text("cat, by ann")
    other.context.set_offline(True)  # so that both choose before either hears of it
    focus(other, "cam9/y.jpg")
    other.keyboard.press("2")
    focus(tab, "cam9/y.jpg")
    tab.keyboard.press("1")
    expect(card(tab, "cam9/y.jpg")).to_contain_text("cat, by ann")
    other.context.set_offline(False)
    expect(card(other, "cam9/y.jpg")).to_contain_text("cat, by ann")
    expect(other.locator("#unsaved")).to_contain_text("ann chose 'cat' meanwhile")
    assert {name: room.labels()[name] for name in ("cam9/x.jpg", "cam9/y.jpg")} == dict.fromkeys(
        ("cam9/x.jpg", "cam9/y.jpg"), "cat"
    )
    context.close()


def test_programs_label_with_a_token_of_the_right_role(room):
    _, page, _ = room.ask("label?show=all")
    name = next(one["id"] for one in page["frames"] if one["id"].startswith("cam2/"))
    decision = {"decisions": [{"id": name, "label": "dog"}, {"id": "cam2/none.jpg", "label": "dog"}]}
    assert room.ask("label/decisions", decision)[0] == 403
    status, refused, _ = room.ask("label/decisions", decision, who="vic")
    assert (status, refused["needs"]) == (403, "labeller")
    status, found, _ = room.ask("label/decisions", decision, who="bob")
    assert status == 200
    assert [(one["label"], one["by"], bool(one["fault"])) for one in found["outcomes"]] == [
        ("dog", "bob", False),
        ("", "", True),
    ]
    assert room.labels()[name] == "dog"
    assert room.ask("label/take", {}, who="bob")[0] == 403
    wrong: object
    for wrong in ({"decisions": [{"id": 1}]}, [], {"decisions": [{"id": name, "label": "x"}] * 3000}):
        assert room.ask("label/decisions", wrong, who="bob")[0] == 400


def test_a_picture_is_a_jpeg_of_the_inbox_or_nothing(room):
    _, page, _ = room.ask("label?show=all")
    own = next(one["sha256"] for one in page["frames"] if one["id"].startswith("cam2/"))
    status, picture, headers = room.ask(f"label/pictures/{own}")
    assert (status, picture[:3]) == (200, b"\xff\xd8\xff")
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
    assert sha256(picture) != own
    assert room.ask(f"label/pictures/{sha256(jpeg(99))}")[0] == 404
    assert room.ask("label/pictures/../secret")[0] == 404


def test_without_scripts_and_on_a_phone_the_same_form_labels(room, chromium: Browser):
    context = chromium.new_context(
        java_script_enabled=False, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    sign_in(page, room, "bob")
    hostile = card(page, "cam3/evil.jpg")
    hostile.locator("label").tap()
    page.get_by_role("button", name="Throw away").tap()
    expect(page.locator(".notice").filter(has_text="1 decided")).to_be_visible()
    assert room.labels()["cam3/evil.jpg"] == "-"
    context.close()
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    sign_in(page, room, "bob")
    page.goto(room.board.url + "label?show=all")
    expect(card(page, "cam3/evil.jpg")).to_contain_text("thrown away, by bob")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    card(page, "cam3/evil.jpg").locator("label").tap()
    page.get_by_role("button", name="Undecide").tap()
    expect(card(page, "cam3/evil.jpg")).not_to_contain_text("thrown away")
    tokens = Tokens(room.folder / "board")
    tokens.revoke("bob")
    page.get_by_role("button", name="Throw away").tap()
    notice = page.locator("#desk-notices")
    expect(notice).to_contain_text("1 decision is not saved")
    room.tokens["bob"] = tokens.issue("bob", "labeller", 1)[0]
    notice.get_by_role("link", name="Sign in").tap()
    page.get_by_label("Token").fill(room.tokens["bob"])
    page.get_by_role("button", name="Sign in").tap()
    expect(card(page, "cam3/evil.jpg")).to_contain_text("thrown away, by bob")
    assert room.labels()["cam3/evil.jpg"] == "-"
    context.close()
