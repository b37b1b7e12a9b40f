"""The Chromium of the system, headless, driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

NO_CHROMIUM = "no Chromium (Debian: apt install chromium)"
# Its own sandbox does not run as root, as in containers of CI, whose /dev/shm is small too.
_OPTIONS = ("--no-sandbox", "--disable-dev-shm-usage")


@contextlib.contextmanager
def running_chromium() -> Iterator[Browser | None]:
    """Give the browser; None where there is none on this system."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - where there is one

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_OPTIONS)
        yield browser
        browser.close()
