"""Log format for terminals and for the systemd journal, which adds the time itself."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from edge_client.contract.addresses import without_secrets
from edge_client.contract.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "%(levelname)s %(name)s: %(message)s"
# sd-daemon(3): a line's prefix <N> is its priority, with the numbers of syslog(3).
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))


class OneLineFormatter(logging.Formatter):
    """Formatter whose lines only the program begins: a message is one line, a traceback is indented.

    Addresses are shown without their secrets, whoever logs them.

    Names of files, answers of servers and messages of the broker stand in both.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name there
        """See `logging.Formatter`."""
        return one_line(without_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - its name and type there
        """See `logging.Formatter`."""
        return _indent(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - its name there
        """See `logging.Formatter`."""
        return _indent(super().formatStack(stack_info))


class JournalFormatter(OneLineFormatter):
    """Formatter that prefixes each line with its priority, for `journalctl -p warning`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _indent(text: str) -> str:
    return "\n".join(f"  {one_line(line)}" for line in without_secrets(text).split("\n"))


def configure_logs(level: int = logging.INFO, environment: Mapping[str, str] = os.environ) -> None:
    """Log to standard error, in the journal's format where standard error is the journal."""
    handler = logging.StreamHandler(sys.stderr)
    journal = "JOURNAL_STREAM" in environment
    handler.setFormatter(JournalFormatter(FORMAT) if journal else OneLineFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
    # python-tuf logs each refusal a second time, and the expected absence of the next root.
    logging.getLogger("tuf").setLevel(logging.WARNING)
    # urllib3 logs each path with its query, where a signature may be; the error of a request is ours to log.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
