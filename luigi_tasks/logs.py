"""Logging of the pipeline's own errors through Luigi's logger."""

from __future__ import annotations

import logging
import re

from edge_client.contract.errors import EdgeError
from edge_client.contract.text import one_line

LUIGI_LOGGER = "luigi-interface"

# Luigi puts the traceback of a task that it cannot ask for its targets or requirements into the message.
_OF_SCHEDULING = re.compile(
    r"(?P<what>Will not run .+? due to error in \w+\(\) method):\n(?P<traceback>.*)", re.DOTALL
)
_ERROR_OF_OURS = re.compile(r"^(?:edge_client|luigi_tasks)\.[\w.]+\.(?P<name>\w+): ", re.MULTILINE)


class _OneParagraph(logging.Filter):
    """Logs an `EdgeError` as its message: it names the way out, and a traceback would hide it.

    Values in a message are names of files, reasons and answers of servers: none of them can begin a line of
    its own, or command the terminal.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_safe(one) for one in record.args)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, EdgeError):
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {one_line(str(error))}"
            record.args, record.exc_info = (), None
        elif error is not None and _is_of_luigid(error):
            cause = getattr(error, "sub_exception", None) or error
            record.msg = f"{record.getMessage()}: {one_line(str(cause))}; is luigid running?"
            record.args, record.exc_info = (), None
        elif isinstance(record.msg, str) and not record.args and (found := _OF_SCHEDULING.match(record.msg)):
            record.msg = _without_traceback(found)
        return True


def _is_of_luigid(error: BaseException) -> bool:
    """Whether luigid did not answer: Luigi's error, and those of the libraries below it."""
    modules = (one.__module__.partition(".")[0] for one in type(error).__mro__)
    return type(error).__name__ == "RPCError" or "requests" in modules


def _without_traceback(found: re.Match[str]) -> str:
    """Return Luigi's message of a task that could not be asked, with an error of ours in one line."""
    errors = [*_ERROR_OF_OURS.finditer(found["traceback"])]
    if not errors:
        return found[0]
    last = errors[-1]
    return f"{found['what']}: {last['name']}: {one_line(found['traceback'][last.end() :].strip())}"


def _safe(value: object) -> object:
    return value if isinstance(value, (int, float)) else one_line(str(value))


def for_page(message: str) -> str:
    """Return a message for luigid's page, which takes it for HTML: on one line, and without a tag."""
    return (
        one_line(message)
        .replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}")
        .replace(">", "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}")
    )


def log_errors_as_messages() -> None:
    """Let Luigi's logger write this package's errors without a traceback; repeating it changes nothing.

    Luigi logs a failed task itself, outside of every method of the task, so its logger is the only place.
    """
    logger = logging.getLogger(LUIGI_LOGGER)
    if not any(isinstance(one, _OneParagraph) for one in logger.filters):
        logger.addFilter(_OneParagraph())
