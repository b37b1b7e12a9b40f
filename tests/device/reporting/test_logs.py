"""What the journal gets."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from edge_client.reporting.logs import FORMAT, JournalFormatter

SCRIPT = """
import logging
from edge_client.reporting.logs import configure_logs
configure_logs()
logging.getLogger("x").warning("no\\nupdate")
logging.getLogger("x").debug("never")
"""


def said(**environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return run.stderr


def test_a_person_reads_plain_lines():
    assert said() == "WARNING x: no\nupdate\n"


def test_the_journal_gets_the_priority_of_each_line():
    assert said(JOURNAL_STREAM="8:1") == "<4>WARNING x: no\n<4>update\n"


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_priorities_are_those_of_syslog(level, priority):
    record = logging.LogRecord("x", level, "", 0, "text", None, None)
    assert JournalFormatter(FORMAT).format(record).startswith(f"<{priority}>")
