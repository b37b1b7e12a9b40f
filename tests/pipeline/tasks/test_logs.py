"""Luigi's log and page show text from outside, and obey none of it."""

from __future__ import annotations

import logging
import traceback

import pytest
from luigi.rpc import RPCError

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


def test_a_luigid_that_is_lost_is_one_line_each_time(logger, caplog):
    try:
        raise RPCError("Errors (3 attempts)", OSError("Connection refused"))
    except RPCError:
        logger.exception("Uncaught exception in luigi")
    [record] = caplog.records
    assert record.getMessage() == "Uncaught exception in luigi: Connection refused; is luigid running?"
    assert record.exc_info is None


def test_a_task_that_cannot_be_asked_is_told_in_one_line(logger, caplog):
    """Luigi puts the traceback into the message."""
    try:
        try:
            raise OSError("refused")
        except OSError as e:
            raise InputError("no such folder\nat all") from e
    except InputError:
        what = "Will not run Deploy(x) or any dependencies due to error in complete() method"
        logger.warning(f"{what}:\n{traceback.format_exc()}")  # noqa: G004 - as Luigi does
    logger.warning("Will not run A due to error in deps() method:\nTraceback\nValueError: a bug")
    assert caplog.messages == [
        f"{what}: InputError: no such folder\\nat all",
        "Will not run A due to error in deps() method:\nTraceback\nValueError: a bug",
    ]


def test_a_message_for_luigids_page_has_no_tag():
    shown = for_page(f"class <img src=x onerror=alert(1)> & {HOSTILE}")
    assert not set("<>") & set(shown)
    assert shown.isprintable()
    assert "img src=x" in shown
