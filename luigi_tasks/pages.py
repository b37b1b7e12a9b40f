"""HTML pages from templates, for the gate's report and for labelling; the board has templates of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import jinja2


def render_template(
    name: str, values: Mapping[str, object], filters: Mapping[str, Callable[..., str]] | None = None
) -> str:
    """Return a template filled in: every value is escaped, and a missing one is an error.

    Args:
        name: File in `templates/`.
        values: Variables of the template.
        filters: Functions that write a value, by the name that the template has for them.
    """
    environment = new_environment("luigi_tasks")
    environment.filters.update(filters or {})
    return environment.get_template(name).render(values)


def new_environment(package: str) -> jinja2.Environment:
    """Return an environment that escapes every value, and takes a missing one for an error.

    Args:
        package: The templates lie in its folder `templates/`.
    """
    import jinja2  # noqa: PLC0415 - few runs make a page

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
