"""Pictures of each page of the board: light, dark, and as wide as a phone.

    scripts/board-screenshots /tmp/pictures
    scripts/board-screenshots /tmp/pictures --only rollout --hostile

A fleet of 24 cameras is made in a folder (a signed repository, registry, snapshots, rollouts), a board is
started over it and over an empty bucket, and each page written to FOLDER/PAGE-{light,dark,phone}.png.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from local_services import wait_until  # noqa: E402

from tests.fakes.board_fleet import (  # noqa: E402
    HOSTILE_WORDS,
    MAIN_PAGES,
    BoardFleet,
    Words,
    sign_in,
    write_board_settings,
)
from tests.fakes.chromium import NO_CHROMIUM, running_chromium  # noqa: E402
from tests.fakes.running_board import RunningBoard  # noqa: E402
from tests.fakes.tiny_model import plain_picture  # noqa: E402
from tests.fakes.tiny_release import png  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_SETTLE_MS = 400
# A page with more is cut: nobody looks at the ten-thousandth line.
_HEIGHT_PX = 6000


@dataclasses.dataclass(frozen=True)
class Look:
    """How a page is looked at."""

    name: str
    width: int
    is_dark: bool = False


LOOKS = (Look("light", 1280), Look("dark", 1280, is_dark=True), Look("phone", 390))


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", default="", help="pages whose name contains this")
    parser.add_argument("--hostile", action="store_true", help="names that attack")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="board-")))
        browser = stack.enter_context(running_chromium())
        if browser is None:
            sys.exit(NO_CHROMIUM)
        fleet = BoardFleet(folder / "fleet", words=HOSTILE_WORDS if options.hostile else Words())
        fleet.live_a_day()
        board = stack.enter_context(RunningBoard(write_board_settings(fleet, folder / "board.cfg")))
        wait_until(lambda: board.json()["state"]["rows"] and board.json("label")["total"], "the index")
        places = [(name, path) for name, path in fleet.pages().items() if options.only in name]
        faults = _pictures(browser, board.url, places, options.folder, fleet)
        bare = BoardFleet(folder / "bare", 0)
        for one in (bare.bucket, bare.folder / "keys" / "device" / "memory"):
            shutil.rmtree(one)
        bare.bucket.mkdir()
        empties = {f"empty-{name}": path for name, path in MAIN_PAGES.items()}
        places = [(name, path) for name, path in empties.items() if options.only in name]
        if places:
            empty = stack.enter_context(RunningBoard(write_board_settings(bare, folder / "empty.cfg")))
            wait_until(lambda: bool(empty.json()["state"]["version"]), "the index")
            faults += _pictures(browser, empty.url, places, options.folder, None)
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


def _pictures(
    browser: Browser, url: str, places: list[tuple[str, str]], folder: Path, fleet: BoardFleet | None
) -> list[str]:
    """Write pictures of pages, for an operator of the fleet or, without one, for anybody; return faults."""
    return [fault for look in LOOKS for fault in _look_at(browser, url, places, folder, fleet, look)]


def _look_at(
    browser: Browser,
    url: str,
    places: list[tuple[str, str]],
    folder: Path,
    fleet: BoardFleet | None,
    look: Look,
) -> list[str]:
    faults: list[str] = []
    context = browser.new_context(
        viewport={"width": look.width, "height": 900},
        color_scheme="dark" if look.is_dark else "light",
        timezone_id="Europe/Berlin",
        locale="en-GB",
    )
    page = context.new_page()
    if fleet is not None:
        sign_in(page, url, fleet)
    page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
    page.on("console", lambda said: _note(said.type, said.text, page.url, faults))
    for name, path in places:
        page.set_viewport_size({"width": look.width, "height": 900})
        page.goto(url + path)
        faults += _picture(page, name, look, folder)
    context.close()
    return faults


def _picture(page: Page, name: str, look: Look, folder: Path) -> list[str]:
    """Write a picture of the page that is open; return what is wrong with it."""
    _act(page, name)
    page.wait_for_timeout(_SETTLE_MS)
    width = page.evaluate("document.documentElement.scrollWidth")
    height = min(page.evaluate("document.documentElement.scrollHeight"), _HEIGHT_PX)
    # So that what is loaded when it is seen is there, and what stays in sight does.
    page.set_viewport_size({"width": look.width, "height": max(height, 600)})
    page.wait_for_function("[...document.images].every((one) => one.complete || !one.checkVisibility())")
    file = folder / f"{name}-{look.name}.png"
    page.screenshot(path=str(file))
    print(file)
    return [f"{name}: {width} px wide in a window of {look.width}"] if width > look.width else []


def _note(kind: str, text: str, address: str, faults: list[str]) -> None:
    if kind == "error" and "/nowhere" not in address:
        faults.append(f"{address}: {text}")


def _act(page: Page, name: str) -> None:
    """Do what makes a page worth a picture."""
    field = page.locator("input[type=file]")
    if name == "try" and field.count():
        field.first.set_input_files(
            {"name": "red.png", "mimeType": "image/png", "buffer": png(plain_picture("red", 240, 320))}
        )
        page.locator("#answers img").first.wait_for()


if __name__ == "__main__":
    sys.exit(main())
