"""Templates of the pages: every value is escaped, a missing one is an error. Filters write numbers, times."""

from __future__ import annotations

import datetime
import functools
from typing import TYPE_CHECKING, Any

import markupsafe

from luigi_tasks.board.navigation import NAVIGATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    import jinja2


def render(name: str, values: Mapping[str, Any]) -> str:
    """Return a template filled in.

    Args:
        name: File in `templates/`.
        values: Its variables.
    """
    return _environment().get_template(name).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415 - `edge-fleet` starts without it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luigi_tasks.board"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["navigation"] = NAVIGATION
    environment.filters.update({"time": time_element, "percent": percent, "number": number})
    return environment


def time_element(seconds: float | None) -> markupsafe.Markup:
    """Return a moment as an element that the browser shows in its zone, with UTC on hover.

    Args:
        seconds: Since 1970; None or 0: never.
    """
    if not seconds:
        return markupsafe.Markup("never")
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return markupsafe.Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M:%S"), at.strftime("%Y-%m-%d %H:%M")
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share, 0 to 1, as percent."""
    return "unknown" if share is None else f"{share:.{digits}%}"


def number(value: float | None, unit: str = "") -> str:
    """Return a number with thousands separated, and its unit."""
    if value is None:
        return "unknown"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    return f"{text} {unit}".rstrip()
