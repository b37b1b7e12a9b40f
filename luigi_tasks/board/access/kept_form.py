"""What somebody typed into a form that was refused, kept until they have signed in.

It travels through the sign-in page in the browser, as one field, and is shown before it is sent again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.board.access.guard import CSRF_FIELD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LIMIT_BYTES = 16 << 10
Fields = list[tuple[str, str]]


def kept_form(arguments: Mapping[str, Sequence[bytes]]) -> str:
    """Return the fields of a form as one text; "" if there are too many."""
    fields: Fields = [
        (name, value.decode("utf-8", "replace"))
        for name, values in arguments.items()
        if name != CSRF_FIELD
        for value in values
    ]
    text = msgspec.json.encode(fields).decode()
    return text if len(text) <= _LIMIT_BYTES else ""


def read_form(text: str) -> Fields:
    """Return the fields again; none if it is no such text."""
    try:
        return msgspec.json.decode(text, type=Fields)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return []
