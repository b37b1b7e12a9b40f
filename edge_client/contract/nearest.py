"""Nearest known name of a misspelt one, for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# A shorter text is a part of too many names.
_SHORTEST_PART = 3


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant; None if none is near.

    Case, and the difference of `-`, `_` and spaces, do not count.
    """
    import difflib  # noqa: PLC0415 - only a fault needs it

    plain = {_plain(one): one for one in sorted(known, reverse=True)}
    wanted = _plain(name)
    if wanted in plain:
        return plain[wanted]
    if close := difflib.get_close_matches(wanted, plain, 1):
        return plain[close[0]]
    parts = [one for one in plain if min(len(one), len(wanted)) >= _SHORTEST_PART]
    containing = [one for one in parts if wanted in one or one in wanted]
    return plain[min(containing, key=len)] if containing else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return `; did you mean X?`, or `; ` and what else helps where no name is near."""
    near = nearest(name, known)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; {otherwise}" if otherwise else ""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")
