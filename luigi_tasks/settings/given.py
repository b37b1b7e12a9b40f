"""The settings that files, programs and the command line give, each with where it stands."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any

import luigi
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import LuigiTomlParser

from luigi_tasks.settings.files import TOML, read_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from luigi_tasks.settings.files import SettingsFile

PROGRAM = "set by the program"
DEFAULTS = "DEFAULT"
# `${HOME}`, and `%(name)s` of another setting.
_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_REFERENCE = re.compile(r"%\(([^)]+)\)s")
_QUOTES = ("'", '"')
_REFERENCES_AT_MOST = 10


@dataclasses.dataclass(frozen=True)
class Given:
    """A setting as it is written.

    Attributes:
        value: A text, or a value of TOML.
        place: The file, the option or the program, for messages.
        folder: What a relative path is relative to; None: the current folder.
    """

    value: Any
    place: str
    folder: Path | None = None


GivenSettings = dict[str, dict[str, Given]]


def read_given() -> GivenSettings:
    """Return what the files that Luigi reads, or a program through Luigi's configuration, give.

    Section [DEFAULT] of a .cfg is among them; its values stand in every section that is there.

    Raises: SettingsError if a file cannot be read.
    """
    parser: Any = luigi.configuration.get_config()
    files = read_files(type(parser)._config_paths)  # noqa: SLF001 - Luigi tells them nowhere else
    if isinstance(parser, LuigiTomlParser):
        content: dict[str, dict[str, Any]] = dict(parser.data)
    else:
        defaults = parser.defaults()
        content = {name: _own_values(parser, name, defaults, files) for name in parser.sections()}
        content[DEFAULTS] = dict(defaults)
    return {
        section: {
            _plain(name): _find_place(files, section, _plain(name), one) for name, one in values.items()
        }
        for section, values in content.items()
    }


def read_command_line(names: Mapping[str, Iterable[str]]) -> GivenSettings:
    """Return what the options of a `luigi` command give, also an empty value.

    Args:
        names: Names of the settings by section.
    """
    command = CmdlineParser.get_instance()
    if command is None:
        return {}
    found: GivenSettings = {}
    for section, settings in names.items():
        for name in settings:
            value = getattr(command.known_args, f"{section}_{name}", None)
            if value is not None:
                option = f"--{section}-{name}".replace("_", "-")
                found.setdefault(section, {})[name] = Given(value, option)
    return found


def fill_in(
    given: Given, section: Mapping[str, Given], defaults: Mapping[str, Given], *, is_list: bool = False
) -> Any:  # noqa: ANN401 - of a text, or a value of TOML
    """Return a value with `${VARIABLE}` and `%(name)s` of the same section or [DEFAULT] filled in.

    Any other % stands for itself.

    Raises: ValueError with the reason in words.
    """
    value = given.value
    if not isinstance(value, str) or given.place.startswith("--"):
        return value
    if _is_cfg(given):
        _check_written(value, is_list=is_list)
        value = _follow_references(value, {**defaults, **section})
    return _VARIABLE.sub(lambda found: _environment(found[1]), value)


def references(values: Iterable[Given]) -> set[str]:
    """Return the names that values refer to as `%(name)s`."""
    texts = [one.value for one in values if isinstance(one.value, str)]
    return {name for text in texts for name in _REFERENCE.findall(text)}


def _own_values(
    parser: Any,  # noqa: ANN401 - Luigi's parser has no types
    section: str,
    defaults: Mapping[str, str],
    files: Sequence[SettingsFile],
) -> dict[str, str]:
    """Return the values of a section as they are written, without those that only [DEFAULT] gives."""
    written = {name for file in files for name in file.sections.get(section, {})}
    values = {name: parser.get(section, name, raw=True) for name in parser.options(section)}
    return {
        name: value
        for name, value in values.items()
        if _plain(name) in written or value != defaults.get(name)
    }


def _find_place(files: Sequence[SettingsFile], section: str, name: str, value: Any) -> Given:  # noqa: ANN401
    """Return a value with the last file that gives it; none does where a program set it."""
    for file in reversed(files):
        values = file.defaults if section == DEFAULTS else file.sections.get(section, {})
        if name in values:
            if values[name] == value:
                return Given(value, str(file.path), file.path.parent)
            break
    return Given(value, PROGRAM)


def _is_cfg(given: Given) -> bool:
    return given.folder is not None and not given.place.endswith(f".{TOML}")


def _plain(name: str) -> str:
    return name.replace("-", "_")  # Luigi takes dashes for underscores


def _check_written(text: str, *, is_list: bool) -> None:
    if "\n" in text and not is_list:
        msg = "the line below it begins with a space, and so belongs to it; begin each setting at the margin"
        raise ValueError(msg)
    if "%%" in text:
        msg = "a % is written once, as it is; %% stood for one before (for two of them use luigi.toml)"
        raise ValueError(msg)
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        msg = "a .cfg takes quotes for part of the value; write it without them"
        raise ValueError(msg)


def _follow_references(text: str, known: Mapping[str, Given]) -> str:
    def follow(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return str(known[name].value) if name in known else found[0]

    for _ in range(_REFERENCES_AT_MOST):
        filled = _REFERENCE.sub(follow, text)
        if filled == text:
            break
        text = filled
    return text


def _environment(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        msg = f"the environment has no variable {name}; set it where luigi runs (in a crontab too)"
        raise ValueError(msg) from None
