"""Logs for people and for the journal, which adds the time itself."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "%(levelname)s %(name)s: %(message)s"
# sd-daemon(3): the journal takes a line's priority from these numbers of syslog(3).
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


class JournalFormatter(logging.Formatter):
    """Marks each line with its priority, so that `journalctl -p warning` finds what it should."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def configure_logs(level: int = logging.INFO, environment: Mapping[str, str] = os.environ) -> None:
    """Write logs to standard error, for the journal where that is one."""
    handler = logging.StreamHandler(sys.stderr)
    journal = "JOURNAL_STREAM" in environment
    handler.setFormatter(JournalFormatter(FORMAT) if journal else logging.Formatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    # It reports each refusal once more, and root.json's absence as a debug matter.
    logging.getLogger("tuf").setLevel(logging.WARNING)
