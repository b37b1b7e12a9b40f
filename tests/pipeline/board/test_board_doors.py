"""The board starts, shows each page in a browser and to programs, and ends."""

from __future__ import annotations

import signal

import pytest

PAGES = ("", "rollouts", "releases", "label", "try", "pipeline")


@pytest.mark.parametrize("page", PAGES)
def test_each_page_is_shown_in_a_browser_and_as_json(board, tab, page):
    answer = tab.goto(board.url + page)
    assert answer.status == 200
    assert tab.locator("nav [aria-current=page]").count() == 1
    assert isinstance(board.json(page), dict)


def test_board_ends_at_sigterm_while_a_page_is_open(board, tab):
    tab.goto(board.url)
    assert board.stop(signal.SIGTERM) == 0


def test_a_port_that_there_is_not_is_refused(fleet):
    code, _, error = fleet.run("board", "--port", "65536")
    assert (code, "[board] port: 0 to 65535" in error) == (2, True)
