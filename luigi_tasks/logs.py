"""Logging of the pipeline's own errors through Luigi's logger."""

from __future__ import annotations

import logging

from edge_client.contract.errors import EdgeError

LUIGI_LOGGER = "luigi-interface"


class _OneParagraph(logging.Filter):
    """Logs an `EdgeError` as its message: it names the way out, and a traceback would hide it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, EdgeError):
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}"
            record.args, record.exc_info = (), None
        return True


def log_errors_as_messages() -> None:
    """Let Luigi's logger write this package's errors without a traceback; repeating it changes nothing.

    Luigi logs a failed task itself, outside of every method of the task, so its logger is the only place.
    """
    logger = logging.getLogger(LUIGI_LOGGER)
    if not any(isinstance(one, _OneParagraph) for one in logger.filters):
        logger.addFilter(_OneParagraph())
