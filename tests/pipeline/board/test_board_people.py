"""The pages as people meet them: screen readers, keyboards, phones, darkness, hostile names, a lost board."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from local_services import wait_until

from tests.fakes.board_fleet import HOSTILE_WORDS, BoardFleet, sign_in, write_board_settings
from tests.fakes.running_board import RunningBoard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, ViewportSize

AXE = Path(__file__).resolve().parents[2] / "vendor" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
PAGE_BYTES = 300_000
# What a reader cannot see, or what turns a line round.
UNSEEN = r"/[\u0000-\u0008\u000e-\u001f\u007f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/"
# Elements that a keyboard has to reach; of a group of radio buttons the chosen one.
MARK_REACHABLE = """() => {
  window.unseenFocus = [];
  const kinds =
    "a[href], button:enabled, select:enabled, textarea:enabled, input:enabled, summary, [tabindex='0']";
  const seen = [...document.querySelectorAll(kinds)].filter((one) => one.checkVisibility() &&
    one.tabIndex >= 0 && one.type !== "hidden" && !(one.type === "radio" && !one.checked));
  seen.forEach((one) => one.setAttribute("data-unreached", ""));
  return seen.length;
}"""
UNMARK = """() => {
  const at = document.activeElement;
  at.removeAttribute("data-unreached");
  const isOutlined = (one) => one && getComputedStyle(one).outlineStyle !== "none" &&
    parseFloat(getComputedStyle(one).outlineWidth) >= 1;
  const isSeen = [at, at.parentElement, at.parentElement?.parentElement].some(isOutlined);
  if (at !== document.body && !isSeen) window.unseenFocus.push(at.outerHTML.slice(0, 200));
}"""
LEFT = "[...document.querySelectorAll('[data-unreached]')].map((one) => one.outerHTML.slice(0, 200))"

RUN_AXE = """async (options) => {
  const found = await axe.run(document, options);
  return found.violations.map((one) => `${one.id}: ${one.help}: ` + one.nodes.slice(0, 3).map((node) =>
    `${node.target.join(" ")} ${node.failureSummary.replace(/\\s+/g, " ")}`).join("; "));
}"""
WEIGHT = """() => performance.getEntriesByType("navigation").concat(performance.getEntriesByType("resource"))
  .reduce((sum, one) => sum + one.decodedBodySize, 0)"""


@dataclasses.dataclass
class Visit:
    """What was seen on a page."""

    faults: dict[str, list[str]]
    bytes: int
    width: int
    text: str
    unseen: bool
    pictures: int


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> BoardFleet:
    """Give a fleet whose names attack."""
    return BoardFleet(tmp_path_factory.mktemp("hostile"), 12, HOSTILE_WORDS).live_a_day()


@pytest.fixture(scope="module")
def running(hostile: BoardFleet) -> Iterator[RunningBoard]:
    """Give a board over it."""
    with RunningBoard(write_board_settings(hostile, hostile.folder / "board.cfg", "look_s = 0.2")) as board:
        wait_until(lambda: board.json()["state"]["rows"] == 12, "the index")
        wait_until(lambda: board.json("label")["total"] == 12, "the inbox")
        yield board


@pytest.fixture(scope="module")
def window(chromium: Browser, running: RunningBoard, hostile: BoardFleet) -> Iterator[Page]:
    """Give a tab of the browser for all tests of the module; an operator is signed in."""
    context = chromium.new_context(viewport=DESKTOP, timezone_id="Europe/Berlin", locale="en-GB")
    page = context.new_page()
    sign_in(page, running.url, hostile)
    yield page
    context.close()


@pytest.fixture(scope="module")
def seen(window: Page, running: RunningBoard, hostile: BoardFleet) -> dict[str, Visit]:
    """Visit each page once: light, dark and on a phone; whatever goes wrong in a script fails."""
    said: list[str] = []
    elsewhere: set[str] = set()
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    window.on("console", lambda one: said.append(one.text) if "Security Policy" in one.text else None)
    window.on("request", lambda one: elsewhere.add(one.url))
    visits = {name: visit(window, running.url + path) for name, path in hostile.pages().items()}
    assert said == []
    assert {one for one in elsewhere if not one.startswith((running.url, "data:", "blob:"))} == set()
    return visits


@pytest.fixture(scope="module")
def expect(chromium: Browser) -> Any:
    """Give playwright's assertions, which wait."""
    from playwright.sync_api import expect as playwright_expect  # noqa: PLC0415 - after the skip

    return playwright_expect


def visit(window: Page, address: str) -> Visit:
    window.set_viewport_size(DESKTOP)
    window.emulate_media(color_scheme="light")
    window.goto(address)
    weight = window.evaluate(WEIGHT)
    window.evaluate(AXE.read_text())
    faults = {"light": axe(window)}
    window.emulate_media(color_scheme="dark")
    faults["dark"] = axe(window, "color-contrast")
    window.set_viewport_size(PHONE)
    faults["phone"] = axe(window, "target-size", "color-contrast", "scrollable-region-focusable")
    return Visit(
        faults=faults,
        bytes=weight,
        width=window.evaluate("document.documentElement.scrollWidth"),
        text=window.inner_text("body"),
        unseen=window.evaluate(f"{UNSEEN}.test(document.body.innerText)"),
        pictures=window.locator("img[src=x]").count(),
    )


def axe(window: Page, *rules: str) -> list[str]:
    run: dict[str, Any] = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": TAGS}
    found: list[str] = window.evaluate(RUN_AXE, {"runOnly": run, "resultTypes": ["violations"]})
    return found


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_axe_finds_nothing_on_any_page(seen, look):
    assert {name: one.faults[look] for name, one in seen.items() if one.faults[look]} == {}


def test_no_page_is_wider_than_a_phone(seen):
    assert {name: one.width for name, one in seen.items() if one.width > PHONE["width"]} == {}


def test_no_page_weighs_more_than_300_kb_with_all_its_files(seen):
    assert {name: one.bytes for name, one in seen.items() if one.bytes > PAGE_BYTES} == {}


def test_hostile_names_are_text_on_every_page(seen):
    assert [name for name, one in seen.items() if one.unseen or one.pictures] == []
    assert any("<img src=x" in one.text for one in seen.values())
    assert not any("' 49 " in one.text for one in seen.values())


def test_every_page_works_with_the_keyboard_alone(window, running, hostile, seen):
    window.set_viewport_size(DESKTOP)
    for name, path in hostile.pages().items():
        window.goto(running.url + path)
        missed = window.evaluate(MARK_REACHABLE)
        for _ in range(missed + 3):
            window.keyboard.press("Tab")
            window.evaluate(UNMARK)
        assert window.evaluate(LEFT) == [], name
        assert window.evaluate("window.unseenFocus") == [], name


def test_skip_link_leads_past_the_navigation(window, running, seen):
    window.goto(running.url)
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.textContent") == "Skip to content"
    assert window.locator(".skip").bounding_box()["x"] >= 0
    window.keyboard.press("Enter")
    assert window.evaluate("document.activeElement.id") == "main"


def test_an_open_page_finds_a_board_that_was_restarted_and_shows_what_changed(
    window, running, hostile, seen, expect
):
    window.goto(f"{running.url}rollouts")
    state = window.locator(".channel", has_text="stable").locator(".badge").first
    expect(state).to_have_text("waiting for approval")
    running.stop()
    notice = window.get_by_role("status").filter(has_text="The board does not answer")
    expect(notice).to_be_visible()
    hostile.machine().pause("stable", "ann", "a test")
    running.start()
    expect(notice).to_have_count(0)
    expect(state).to_have_text("paused")
    hostile.machine().resume("stable", "ann", "a test")
    expect(state).to_have_text("waiting for approval")


def test_live_parts_keep_the_focus_and_wait_while_text_is_selected(window, running, hostile, seen, expect):
    window.goto(f"{running.url}rollouts")
    channel = window.locator(".channel", has_text="stable")
    state, link = channel.locator(".badge").first, channel.get_by_role("link", name="stable", exact=True)
    expect(state).to_have_text("waiting for approval")
    link.focus()
    hostile.machine().pause("stable", "ann", "a test")
    expect(state).to_have_text("paused")
    expect(link).to_be_focused()
    window.evaluate("getSelection().selectAllChildren(document.querySelector('.channel p'))")
    with window.expect_event("console", lambda one: one.text == "told"):
        window.evaluate("document.body.addEventListener('rollouts', () => console.log('told'), {once: true})")
        hostile.machine().resume("stable", "ann", "a test")
    expect(state).to_have_text("paused")
    assert window.evaluate("getSelection().toString()") != ""
    window.evaluate("getSelection().removeAllRanges()")
    expect(state).to_have_text("waiting for approval")


def test_a_change_while_a_part_is_being_fetched_is_fetched_after_it(window, running, seen):
    window.goto(f"{running.url}rollouts")
    fetched = []

    def is_the_second(request):
        fetched.extend([request] * request.url.endswith("/rollouts"))
        return len(fetched) == 2

    with window.expect_request(is_the_second):
        window.evaluate(
            "['snapshot', 'rollouts'].forEach((one) => document.body.dispatchEvent(new Event(one)))"
        )


def test_times_are_in_the_readers_zone_with_utc_on_hover(window, running, seen):
    window.goto(f"{running.url}rollouts/stable/all")
    moment = window.locator("time.moment").first
    at = moment.get_attribute("datetime")
    shown, hover = moment.inner_text(), moment.get_attribute("title")
    assert hover == at.replace("T", " ").replace("Z", " UTC")
    assert shown == window.evaluate(
        "(at) => new Date(at).toLocaleString('en-GB', {year: 'numeric', month: 'short', day: 'numeric', "
        "hour: '2-digit', minute: '2-digit', timeZone: 'Europe/Berlin'})",
        at,
    )


def test_pages_show_and_navigate_without_scripts(chromium, running, hostile):
    context = chromium.new_context(java_script_enabled=False, viewport=DESKTOP)
    page = context.new_page()
    page.goto(running.url)
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Releases").click()
    assert page.url == f"{running.url}releases"
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("status").inner_text() == ""
    context.close()
