"""HTML pages from the templates of this package, for the gate's report and for labelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def render_template(
    name: str, values: Mapping[str, object], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Return a template filled in: every value is escaped, and a missing one is an error.

    Args:
        name: File in `templates/`.
        values: Variables of the template.
        filters: Functions that write a value, by the name that the template has for them.
    """
    import jinja2  # noqa: PLC0415 - few runs make a page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luigi_tasks"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name).render(values)
