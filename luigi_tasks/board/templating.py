"""Templates of the pages: every value is escaped, a missing one is an error. Filters write numbers, times."""

from __future__ import annotations

import datetime
import functools
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

import markupsafe

from edge_client.contract.text import one_line
from edge_client.contract.times import parse_time
from luigi_tasks.board import colours
from luigi_tasks.board.figures import interval_marks, shares_placed
from luigi_tasks.board.navigation import NAVIGATION
from luigi_tasks.pages import new_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import jinja2

# Enough of a name to know it by; the whole of it stands in the JSON.
_TEXT_CHARACTERS = 200
_COMMAND = re.compile(r"`([^`]*)`")
# A moment as the command line and records write it.
_MOMENT = re.compile(r"\b(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:\.\d+)?(?: UTC|Z|\+00:00)(?!\w)")
_SPANS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def render(name: str, values: Mapping[str, Any]) -> str:
    """Return a template filled in.

    Args:
        name: File in `templates/`.
        values: Its variables.
    """
    return _environment().get_template(name).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = new_environment("luigi_tasks.board")
    environment.globals.update(
        {"navigation": NAVIGATION, "interval_marks": interval_marks, "colours": colours}
    )
    environment.filters.update(FILTERS)
    return environment


def text(value: object, characters: int = _TEXT_CHARACTERS) -> str:
    """Return a name or reason from outside on one line: what cannot be seen as escapes, its start if long."""
    if isinstance(value, markupsafe.Markup):
        return value
    known = str(value)
    start = one_line(known[:characters])
    return f"{start}…" if len(known) > characters else start


def prose(value: object, characters: int = 600) -> markupsafe.Markup:
    """Return a sentence as `text` does: a command between ` is set as code, a moment (UTC) as `time` does."""
    return _join(
        markupsafe.Markup("<code>{}</code>").format(part) if place % 2 else _with_times(part)
        for place, part in enumerate(_COMMAND.split(text(value, characters)))
    )


def _with_times(sentence: str) -> markupsafe.Markup:
    parts, end = list[str](), 0
    for found in _MOMENT.finditer(sentence):
        if at := parse_time(f"{found[1]}T{found[2]}+00:00").timestamp():
            parts += [sentence[end : found.start()], time_element(at)]
            end = found.end()
    return _join([*parts, sentence[end:]])


def _join(parts: Iterable[str]) -> markupsafe.Markup:
    return markupsafe.Markup("").join(parts)


def time_element(seconds: float | None) -> markupsafe.Markup:
    """Return a moment as an element that the browser shows in its zone, with UTC on hover.

    Args:
        seconds: Since 1970; None or 0: never.
    """
    return _time(seconds, "moment")


def ago(seconds: float | None) -> markupsafe.Markup:
    """Return a moment as an element that the browser shows as "3 min ago", with UTC on hover.

    Args:
        seconds: Since 1970; None or 0: never.
    """
    return _time(seconds, "ago")


def _time(seconds: float | None, kind: str) -> markupsafe.Markup:
    if not seconds:
        return markupsafe.Markup("never")
    try:
        at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (OverflowError, ValueError, OSError):
        return markupsafe.Markup("unknown")
    return markupsafe.Markup('<time class="{}" datetime="{}" title="{} UTC">{} UTC</time>').format(
        kind, at.isoformat(timespec="seconds")[:19] + "Z", str(at)[:19], str(at)[:16]
    )


def duration(seconds: float | None) -> str:
    """Return a span of time in its two largest units, such as `3 min 20 s`."""
    if seconds is None:
        return "unknown"
    if abs(seconds) < 1:
        return ms(seconds * 1000)
    rest = round(abs(seconds))
    words: list[str] = []
    for unit, size in _SPANS:
        count, rest = divmod(rest, size)
        if count or words:
            words.append(f"{count} {unit}")
    return ("-" if seconds < 0 else "") + " ".join(one for one in words[:2] if not one.startswith("0 "))


def ms(milliseconds: float | None) -> str:
    """Return milliseconds with as many digits as one can tell apart, such as `8.4 ms` and `1,240 ms`."""
    if milliseconds is None:
        return "unknown"
    return f"{milliseconds:,.{0 if abs(milliseconds) >= 100 else 1}f} ms"


def size(count: float | None) -> str:
    """Return a count of bytes in the unit that fits, such as `2.7 MB`."""
    if count is None:
        return "unknown"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.5:
            return f"{value:.{0 if unit == 'B' or abs(value) >= 100 else 1}f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def quote(name: object) -> str:
    """Return a name as one part of an address."""
    return urllib.parse.quote(str(name), safe="")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share, 0 to 1, as percent."""
    return "unknown" if share is None else f"{share:.{digits}%}"


def number(value: float | None, unit: str = "") -> str:
    """Return a number with thousands separated, and its unit."""
    if value is None:
        return "unknown"
    digits = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    return f"{digits} {unit}".rstrip()


FILTERS = {
    "ago": ago,
    "bytes": size,
    "duration": duration,
    "ms": ms,
    "number": number,
    "percent": percent,
    "prose": prose,
    "quote": quote,
    "shares_placed": shares_placed,
    "text": text,
    "time": time_element,
}
