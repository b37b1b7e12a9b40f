"""What the journal gets."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from edge_client.reporting.logs import FORMAT, JournalFormatter

SCRIPT = """
import logging, sys
from edge_client.reporting.logs import configure_logs
configure_logs()
logging.getLogger("x").warning("no update: %s", sys.argv[1])
try:
    raise ValueError(sys.argv[1])
except ValueError:
    logging.getLogger("x").exception("unexpected")
logging.getLogger("x").debug("never")
"""


# What a hostile store gives as its reason, or a file's name is.
HOSTILE = "\nERROR edge_client.fake: all is lost\r\x1b[31m\x9b2J\x7f\u202etxt.exe\u2028\u2029\x85<0>"


def said(text: str, **environment: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, text], env=environment, capture_output=True, check=True
    )
    return run.stderr.decode().split("\n")


def test_a_person_reads_plain_lines():
    first, second, *traceback, end = said("Grüße 🍅")
    assert (first, second, end) == ("WARNING x: no update: Grüße 🍅", "ERROR x: unexpected", "")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert traceback[-1] == "  ValueError: Grüße 🍅"


def test_the_journal_gets_the_priority_of_each_line():
    first, *rest, _end = said("disk", JOURNAL_STREAM="8:1")
    assert first == "<4>WARNING x: no update: disk"
    assert all(line.startswith("<3>") for line in rest)


@pytest.mark.parametrize("environment", [{}, {"JOURNAL_STREAM": "8:1"}], ids=["terminal", "journal"])
def test_nobody_forges_a_line_or_steers_the_terminal(environment):
    lines = said(HOSTILE, **environment)
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if re.match(r"(<\d>)?ERROR", line)] == [lines[1]]
    assert r"no update: \nERROR edge_client.fake: all is lost\r\x1b[31m\x9b2J\x7f\u202e" in lines[0]


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 3), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_priorities_are_those_of_syslog(level, priority):
    record = logging.LogRecord("x", level, "", 0, "text", None, None)
    assert JournalFormatter(FORMAT).format(record).startswith(f"<{priority}>")
