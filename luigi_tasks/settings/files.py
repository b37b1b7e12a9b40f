"""The configuration files that Luigi reads, each by itself.

Luigi merges them, and passes over one that it cannot read with a warning at most: a setting that was
misspelt, or a file that was named wrong, would train something else and publish it. Which file gives a value
names it in messages, and its folder is what a relative path in it is relative to.
"""

from __future__ import annotations

import configparser
import dataclasses
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import SettingsError
from edge_client.contract.text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH_VARIABLE = "LUIGI_CONFIG_PATH"
PARSER_VARIABLE = "LUIGI_CONFIG_PARSER"
# Luigi's names of its parsers, and the suffixes that choose one.
PARSERS = ("cfg", "conf", "ini", "toml")
TOML = "toml"
# Where Luigi looks by itself.
_CFG_FILES = ("/etc/luigi/client.cfg", "/etc/luigi/luigi.cfg", "client.cfg", "luigi.cfg")
_TOML_FILES = ("/etc/luigi/luigi.toml", "luigi.toml")


@dataclasses.dataclass(frozen=True)
class SettingsFile:
    """Content of one file.

    Attributes:
        path: The file, absolute.
        sections: Values by section and name, as they are written; names have underscores for dashes.
        defaults: Section [DEFAULT] of a .cfg, whose values stand in every other section.
    """

    path: Path
    sections: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Any]


def check_environment() -> None:
    """Refuse a `LUIGI_CONFIG_PATH` or `LUIGI_CONFIG_PARSER` that Luigi would only warn of.

    Needs no Luigi: importing Luigi reads the files.

    Raises: SettingsError.
    """
    parser = os.environ.get(PARSER_VARIABLE, "cfg")
    if parser not in PARSERS:
        msg = f"{PARSER_VARIABLE}={parser}: no such parser; unset it, or set it to cfg or toml"
        raise SettingsError(msg)
    named = os.environ.get(PATH_VARIABLE)
    if named is None:
        return
    if not named:
        msg = f"{PATH_VARIABLE} is empty; unset it, or let it name the file of your settings"
        raise SettingsError(msg)
    path = Path(named)
    suffix = path.suffix[1:]
    if suffix in PARSERS and (suffix == TOML) != (parser == TOML):
        msg = (
            f"{PATH_VARIABLE}={named}: Luigi would not read it, since {PARSER_VARIABLE} is {parser}; set "
            f"{PARSER_VARIABLE}={suffix}"
        )
        raise SettingsError(msg)
    _read(path.absolute(), f"{PATH_VARIABLE}={named}")


def check_before_luigi() -> None:
    """Check what Luigi reads as it is imported, where it would end with a traceback.

    Raises: SettingsError.
    """
    check_environment()
    if "luigi" in sys.modules:
        return
    is_toml = os.environ.get(PARSER_VARIABLE) == TOML
    if is_toml and importlib.util.find_spec("toml") is None:
        msg = f"{PARSER_VARIABLE}={TOML}: Luigi needs a package for it; pip install 'luigi[toml]'"
        raise SettingsError(msg)
    for one in _TOML_FILES if is_toml else _CFG_FILES:
        if Path(one).exists():
            _read(Path(one).absolute(), one)


def read_files(paths: Sequence[str]) -> list[SettingsFile]:
    """Return the content of the files that are there: a later one counts before an earlier one.

    Args:
        paths: Where Luigi looks for files.
    Raises: SettingsError if one cannot be read.
    """
    check_environment()
    named = os.environ.get(PATH_VARIABLE)
    if named is not None and named not in paths:
        msg = (
            f"{PATH_VARIABLE}={named}: was set after Luigi had read its files; set it before luigi is "
            "imported, or call luigi.configuration.add_config_path"
        )
        raise SettingsError(msg)
    files = dict.fromkeys(Path(one).absolute() for one in paths)
    return [_read(one, str(one)) for one in files if one.exists()]


def _read(path: Path, shown: str) -> SettingsFile:
    try:
        status = path.stat()
        return _parse(path, (status.st_mtime_ns, status.st_size), shown)
    except FileNotFoundError as e:
        msg = f"{shown}: no such file; Luigi would go on with other settings. Name the file of your settings"
        raise SettingsError(msg) from e
    except OSError as e:
        msg = (
            f"{shown}: cannot be read ({e.strerror}); Luigi would go on with other settings. Name a file "
            "that this user may read"
        )
        raise SettingsError(msg) from e


@functools.lru_cache(maxsize=16)
def _parse(path: Path, _version: tuple[int, int], shown: str) -> SettingsFile:
    """Return the content of a file; the same for the same version of it.

    Raises: OSError; SettingsError if it has another format.
    """
    data = path.read_bytes()
    try:
        text = data.decode()
        if text.startswith("\ufeff"):
            msg = f"{shown}: begins with a byte order mark, which Luigi cannot read; save it without"
            raise SettingsError(msg)
        return _parse_toml(path, text) if path.suffix == f".{TOML}" else _parse_cfg(path, text)
    except (tomllib.TOMLDecodeError, configparser.Error, UnicodeDecodeError) as e:
        msg = f"{shown}: not a readable settings file: {one_line(str(e))}"
        raise SettingsError(msg) from e


def _parse_toml(path: Path, text: str) -> SettingsFile:
    content = tomllib.loads(text)
    for name, values in content.items():
        if not isinstance(values, dict):
            msg = f"{path}: {name} stands in no section; write it below its [section]"
            raise SettingsError(msg)
    return SettingsFile(path, {name: _with_underscores(values) for name, values in content.items()}, {})


def _parse_cfg(path: Path, text: str) -> SettingsFile:
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(text, str(path))
    defaults = _with_underscores(parser.defaults())
    # Without those of [DEFAULT]: a section of its own has them too.
    own = {name: {*parser[name]} - {*parser.defaults()} for name in parser.sections()}
    sections = {
        name: _with_underscores({key: parser[name][key] for key in parser[name] if key in own[name]})
        for name in parser.sections()
    }
    return SettingsFile(path, sections, defaults)


def _with_underscores(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by their names; Luigi takes dashes for underscores."""
    return {name.replace("-", "_"): value for name, value in values.items()}
