"""Luigi's log and page show text from outside, and obey none of it."""

from __future__ import annotations

import logging

import pytest

from edge_client.contract.errors import InputError
from luigi_tasks.logs import LUIGI_LOGGER, for_page, log_errors_as_messages

HOSTILE = "ok\nERROR: the key was stolen\r\x1b[2J\u202e\x9b"


@pytest.fixture
def logger():
    log_errors_as_messages()
    return logging.getLogger(LUIGI_LOGGER)


def test_a_value_forges_no_line_and_commands_no_terminal(logger, caplog):
    with caplog.at_level(logging.INFO, LUIGI_LOGGER):
        logger.warning("Release %s: %s, %d of %.1f %%", HOSTILE, ValueError(HOSTILE), 3, 4.5)
        try:
            raise InputError(HOSTILE + " 50 %s")
        except InputError:
            logger.exception("Task %s failed", HOSTILE)
    assert [one.getMessage().isprintable() for one in caplog.records] == [True, True]
    assert caplog.records[0].getMessage().endswith("3 of 4.5 %")
    assert "InputError: ok\\nERROR" in caplog.records[1].getMessage()
    assert "50 %s" in caplog.records[1].getMessage()


def test_a_message_for_luigids_page_has_no_tag():
    shown = for_page(f"class <img src=x onerror=alert(1)> & {HOSTILE}")
    assert not set("<>") & set(shown)
    assert shown.isprintable()
    assert "img src=x" in shown
