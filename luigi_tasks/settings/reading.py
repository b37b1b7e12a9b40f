"""Values of settings as they are written, read as their parameters say; every fault in words."""

from __future__ import annotations

import difflib
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from luigi_tasks.settings.given import DEFAULTS, Given, fill_in
from luigi_tasks.settings.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.settings.given import GivenSettings

# As in every .ini; Luigi's own are true and false alone.
_TRUTHS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
# Settings that are lists: one text with commas, or a list of TOML.
_LISTS = {
    ("quantization", "fallbacks"),
    ("training", "cluster"),
    ("broker", "alpn"),
    *(("board", name) for name in ("hosts", "trusted_proxies", "operators", "labellers", "viewers")),
    *(("rollout", name) for name in ("stages", "approve", "only", "excluded", "report_only")),
}
# Settings that name a path, beside those whose name ends so.
_PATH_ENDINGS = ("_file", "_dir")
_PATHS = {
    ("dataset", "url"),
    ("dataset", "group"),
    ("model", "weights"),
    ("trust", "root"),
    ("trust", "keys"),
}
# Settings whose empty value would be the current folder, or nothing that works.
_NEVER_EMPTY = {
    ("dataset", "cache_dir"),
    ("model", "weights"),
    ("trust", "root"),
    ("trust", "keys"),
    ("fleet", "database_file"),
    ("fleet", "collector_key_file"),
    ("board", "state_dir"),
    ("board", "host"),
}
_NO_PATHS = {"", "none", "imagenet"}
_NAMED = re.compile(r"\[(\w+)\] (\w+)")
_COMMENT = re.compile(r"\s[#;]")


def read_values(
    section: str,
    parameters: Mapping[str, luigi.Parameter[Any]],
    changes: Mapping[str, object],
    command_line: GivenSettings,
    files: GivenSettings,
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a section, and one sentence for each that cannot be read; that has its default.

    Args:
        section: Name of the section.
        parameters: Its settings.
        changes: Values that a program gives; they count before the command line, and that before files.
        command_line: What options give.
        files: What files give.
    """
    own, defaults = files.get(section, {}), files.get(DEFAULTS, {}) if section in files else {}
    found: dict[str, Any] = {}
    faults = []
    for name, parameter in parameters.items():
        given = command_line.get(section, {}).get(name) or own.get(name) or defaults.get(name)
        if name in changes:
            given = Given(changes[name], "")
        found[name] = parameter._default  # noqa: SLF001 - Luigi tells it together with the file's value
        if given is None:
            continue
        try:
            is_list = (section, name) in _LISTS
            value = read_value(parameter, fill_in(given, own, defaults, is_list=is_list), is_list=is_list)
            if value == "" and (section, name) in _NEVER_EMPTY:
                msg = f"is empty; remove the line for {parameter._default}"  # noqa: SLF001 - as above
                raise ValueError(msg)
        except ValueError as e:
            shown = "" if type(parameter) is luigi.Parameter else f" = {given.value}"  # a text may be secret
            faults.append(in_words(given.place, f"[{section}] {name}{shown}: {e}"))
            continue
        is_relative = given.folder is not None and names_path(section, name, value)
        found[name] = relative_to(given.folder, value) if is_relative and given.folder else value
    return found, faults


def in_words(place: str, fault: str) -> str:
    """Return a fault with the file or option that it stands in."""
    return f"{place}: {fault}" if place else fault


def with_place(fault: str, changes: Mapping[str, Mapping[str, object]], *sources: GivenSettings) -> str:
    """Return a fault of `[section] name` with the option or file that gives it.

    Args:
        fault: The fault.
        changes: Values that a program gives: they stand nowhere.
        sources: What command line and files give; the first counts.
    """
    named = _NAMED.match(fault)
    if named is None or named[2] in changes.get(named[1], {}):
        return fault
    places = (one[named[1]][named[2]].place for one in sources if named[2] in one.get(named[1], {}))
    return in_words(next(places, ""), fault)


def read_value(parameter: luigi.Parameter[Any], value: Any, *, is_list: bool = False) -> Any:  # noqa: ANN401
    """Return a value as a parameter wants it.

    Args:
        parameter: The setting.
        value: A text, or a value of TOML or of a program.
        is_list: Whether a list is one text with commas.
    Raises: ValueError with what would be right.
    """
    if isinstance(parameter, luigi.BoolParameter):
        return _read_bool(value)
    if isinstance(parameter, luigi.IntParameter):
        return _read_number(value, int, "a whole number", parameter)
    if isinstance(parameter, luigi.FloatParameter):
        return _read_number(value, float, "a number", parameter)
    if isinstance(parameter, luigi.ChoiceParameter):
        return _read_choice(value, [str(one) for one in parameter._choices])  # noqa: SLF001 - no other way
    if is_list and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    if not isinstance(value, (str, os.PathLike)):
        msg = "give a text" + (", or a list of texts" if is_list else "")
        raise ValueError(msg)  # noqa: TRY004 - of the settings, not of the program
    return os.fspath(value)


def names_path(section: str, name: str, value: object) -> bool:
    """Whether a value is a path of this machine, and neither an address nor a word."""
    if not isinstance(value, str) or value in _NO_PATHS or scheme_of(value):
        return False
    if (section, name) == ("dataset", "group"):
        return value.lower().endswith(".csv")
    return name.endswith(_PATH_ENDINGS) or (section, name) in _PATHS


def relative_to(folder: Path, path: str) -> str:
    """Return a path that stands in a file of the folder.

    One that is relative to the current folder stays as it is written: it is part of the names of results
    and tasks, which are the same on machines that keep the pipeline in different folders.
    """
    if path.startswith("~") or folder == Path.cwd():
        return path
    return str(folder / path)


def _read_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _TRUTHS:
        msg = "give true or false"
        raise ValueError(msg)
    return _TRUTHS[value.lower()]


def _read_number(value: object, kind: type[Any], words: str, parameter: luigi.Parameter[Any]) -> Any:  # noqa: ANN401
    default = parameter._default  # noqa: SLF001 - as above
    comment = (
        " (a comment needs a line of its own)" if isinstance(value, str) and _COMMENT.search(value) else ""
    )
    msg = f"give {words}, such as {default}{comment}"
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(msg)  # noqa: TRY004 - as above
    if kind is int and isinstance(value, float):
        raise ValueError(msg)
    try:
        number = kind(value)
    except ValueError:
        raise ValueError(msg) from None
    if math.isnan(number):
        raise ValueError(msg)
    return number


def _read_choice(value: object, choices: list[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    alike = difflib.get_close_matches(str(value).lower(), choices, 1)
    msg = f"give one of {', '.join(choices)}" + (f"; did you mean {alike[0]}?" if alike else "")
    raise ValueError(msg)
