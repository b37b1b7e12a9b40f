"""A real Chromium, and the board as a process over a fleet in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from local_services import PATIENCE

from tests.fakes.chromium import NO_CHROMIUM, running_chromium
from tests.fakes.command_fleet import CommandFleet
from tests.fakes.running_board import RunningBoard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

# How long a browser waits for what a page is to show, on a machine that other tests share.
WAIT_MS = 60_000 * PATIENCE
# A browser that hangs must not hold up all other tests.
_TEST_S = 240 * PATIENCE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound the time of each test of this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TEST_S))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Chromium of the system, headless."""
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect.set_options(timeout=WAIT_MS)
    with running_chromium() as browser:
        if browser is None:
            pytest.skip(NO_CHROMIUM)
        yield browser


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Page]:
    """Give a page of the browser, which fails the test at an error of a script or a breach of the CSP."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, timezone_id="Europe/Berlin")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None)
    yield page
    context.close()
    assert not faults


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandFleet:
    """Give a bucket with keys, and nothing published."""
    return CommandFleet(tmp_path, monkeypatch)


@pytest.fixture
def board(fleet: CommandFleet, tmp_path: Path) -> Iterator[RunningBoard]:
    """Give a board over that bucket."""
    with RunningBoard(board_settings(fleet, tmp_path)) as running:
        yield running


def board_settings(fleet: CommandFleet, folder: Path, *lines: str) -> Path:
    """Write a luigi.cfg for a board over a fleet's bucket, with further lines of [board]."""
    file = folder / "board.cfg"
    file.write_text(
        f"[store]\nurl = {fleet.bucket.as_uri()}\n"
        f"[trust]\nroot = {folder}/keys/device/root.json\nkeys = {folder}/keys/pipeline\n"
        f"memory_dir = {folder}/memory\n"
        f"[broker]\nhost =\n[board]\nstate_dir = {folder}/board\n" + "".join(f"{one}\n" for one in lines)
    )
    return file
