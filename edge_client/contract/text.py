"""Text from outside (file names, a server's answers, messages) in a form that is safe to show.

A terminal obeys escape sequences, a log's reader believes whole lines, and a direction character turns a name
round.
"""

from __future__ import annotations

import json
import os

# Enough of a text to know it by.
_EXCERPT_CHARACTERS = 200


def one_line(text: str) -> str:
    """Return text on one line, with control, direction and separator characters and surrogates as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def printable_json(document: str) -> str:
    """Return a JSON document with what is not printable as escapes: the same value, safe on a terminal."""
    if document.isprintable():
        return document
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in document)


def excerpt(text: str) -> str:
    """Return the start of a text on one line, for tables and pages: what is not printable is a space."""
    start = text[:_EXCERPT_CHARACTERS] + ("…" if len(text) > _EXCERPT_CHARACTERS else "")
    return "".join(one if one.isprintable() else " " for one in start).strip()


def text_of(path: str | os.PathLike[str]) -> str:
    r"""Return a path or file name as valid text: bytes that are no UTF-8 become escapes such as `\xfc`.

    A file name may be any bytes; Python keeps such bytes as surrogates, which no JSON can hold.
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
