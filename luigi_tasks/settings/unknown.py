"""Settings that nothing reads: misspelt, renamed, or of a section that is nobody's."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from luigi_tasks.settings.given import DEFAULTS, Given, references
from luigi_tasks.settings.reading import in_words

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from collections.abc import Set as AbstractSet

    from luigi_tasks.settings.given import GivenSettings

WAY_OUT = "if another project reads this file too, name its sections in [other_projects] sections"


def find_unknown(
    given: GivenSettings,
    known: Mapping[str, AbstractSet[str] | None],
    renamed: Mapping[tuple[str, str], str],
    others: Collection[str] = (),
) -> list[str]:
    """Return one sentence for each renamed, misspelt or unknown setting; Luigi would ignore them.

    Args:
        given: What files, options or a program give.
        known: Names of the settings by section, Luigi's own sections among them; None: any.
        renamed: New name of a setting by its section and old name.
        others: Sections that another project reads.
    """
    faults = []
    for section in sorted(given):
        if section == DEFAULTS:
            faults += _find_unused_defaults(given, known, others)
        elif section in known:
            faults += _find_unknown_names(given, section, known[section], renamed)
        elif section not in others:
            faults.append(_explain_section(given, section, known))
    return faults


def find_unknown_changes(
    changes: Mapping[str, Mapping[str, object]],
    known: Mapping[str, AbstractSet[str]],
    renamed: Mapping[tuple[str, str], str],
) -> list[str]:
    """Return the same for what a program gives; it knows no sections but these."""
    given = {
        section: {name: Given(value, "") for name, value in values.items()}
        for section, values in changes.items()
        if section in known
    }
    unknown = [one for one in changes if one not in known]
    return [
        *find_unknown(given, known, renamed),
        *(f"[{one}]: no such section; there are {', '.join(known)}" for one in unknown),
    ]


def _find_unknown_names(
    given: GivenSettings,
    section: str,
    known: AbstractSet[str] | None,
    renamed: Mapping[tuple[str, str], str],
) -> list[str]:
    if known is None:
        return []
    used = references(given[section].values())
    faults = []
    for name in sorted(given[section].keys() - known - used):
        new_name = renamed.get((section, name))
        explained = f"renamed to {new_name}; use the new name" if new_name else _suggest(name, known)
        faults.append(in_words(given[section][name].place, f"[{section}] {name}: {explained}"))
    return faults


def _suggest(name: str, known: AbstractSet[str]) -> str:
    alike = difflib.get_close_matches(name.lower(), sorted(known), 1)
    return f"no such setting; did you mean {alike[0]}?" if alike else "no such setting; remove it"


def _explain_section(given: GivenSettings, section: str, known: Collection[str]) -> str:
    """Return the fault of a section that is neither this pipeline's nor Luigi's nor another project's."""
    place = next((one.place for one in given[section].values()), "")
    by_lower = {one.lower(): one for one in known}
    alike = difflib.get_close_matches(section.lower(), by_lower, 1)
    meant = f"did you mean [{by_lower[alike[0]]}]? Or" if alike else "remove it, or,"
    return in_words(place, f"[{section}]: no such section; {meant} {WAY_OUT}")


def _find_unused_defaults(
    given: GivenSettings, known: Mapping[str, AbstractSet[str] | None], others: Collection[str]
) -> list[str]:
    """Return the faults of [DEFAULT]: its values stand in all sections, so a name must be one of theirs."""
    settings = {name for names in known.values() if names is not None for name in names}
    used = {name for values in given.values() for name in references(values.values())}
    faults = []
    for name in sorted(given[DEFAULTS].keys() - settings - used):
        alike = difflib.get_close_matches(name, sorted(settings), 1, 0.8)
        if alike or not others:
            meant = f"; did you mean {alike[0]}?" if alike else "; remove it"
            fault = f"[{DEFAULTS}] {name}: no section has such a setting{meant}"
            faults.append(in_words(given[DEFAULTS][name].place, fault))
    return faults
