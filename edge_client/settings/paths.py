"""Settings that name files and folders: relative ones are relative to the settings file, `~` is the home."""

from __future__ import annotations

import glob
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from edge_client.contract.addresses import is_address
from edge_client.contract.file_urls import FILE_SCHEME
from edge_client.settings.readers import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

# A text or `file://` address of a folder, which no host name can be.
_FILE = f"{FILE_SCHEME}://"
_FOLDER = re.compile(rf"(?:{_FILE})?(?:~|\.\.?)(?:/.*)?|/[^/].*", re.DOTALL)
_URLS = {("store", "base_url"), ("inbox", "base_url")}
_MODEL_FILES = {("device", "model"), ("device", "labels")}
_GLOB = re.compile(r"[*?\[]")


def resolve(section: str, key: str, value: Any, kind: Any, table: Mapping[str, Any], folder: Path) -> Any:  # noqa: ANN401 - of the setting's type
    """Return a setting with the files and folders that it names as whole paths.

    Args:
        section: Of the setting.
        key: Name of the setting.
        value: Of the setting's type.
        kind: That type.
        table: All settings of the section, as they were read.
        folder: Folder of the settings file.
    Raises: ValueError if a home folder is not known, or a folder is not named.
    """
    if kind is Path:
        if value == Path():
            msg = "is empty; name a file or folder"
            raise ValueError(msg)
        return _whole(str(value), folder)
    if (section, key) in _URLS:
        return _folder_address(value, folder)
    if kind == Command:
        return _with_whole_program(value, folder)
    named = key.endswith(("_file", "_dir")) or _names_file(section, key, table)
    if not value or not named or not isinstance(value, str):
        return value
    return (
        _resolve_pattern(value, folder)
        if (section, key) == ("source", "path")
        else str(_whole(value, folder))
    )


def _folder_address(text: str, folder: Path) -> str:
    """Return an address; a folder by its path, or a relative `file://./models`, as file:///folder."""
    if (named := _FOLDER.fullmatch(text)) is None:
        return text
    if text.startswith(_FILE):
        return _whole(unquote(text.removeprefix(_FILE), errors="surrogateescape"), folder).as_uri()
    return _whole(named[0], folder).as_uri()


def _names_file(section: str, key: str, table: Mapping[str, Any]) -> bool:
    """Whether a setting whose name does not say so names a file; some do for some values only."""
    value = str(table[key])
    if (section, key) in _MODEL_FILES:
        return True
    if (section, key) == ("source", "path"):
        match table.get("kind", "folder"):
            case "folder" | "files":
                return not is_address(value)
            case "pipe":
                return value != "-" and not is_address(value)
            case "video":
                return not (value.isdecimal() or is_address(value))
        return False
    return (section, key) == ("sinks", "json_lines") and value != "-"


def _whole(text: str, folder: Path) -> Path:
    try:
        path = folder / Path(text).expanduser()
    except RuntimeError as e:
        msg = f"{text!r}: {e}; write the whole path"
        raise ValueError(msg) from e
    return Path(os.path.abspath(path))  # noqa: PTH100 - keeps symbolic links


def _resolve_pattern(text: str, folder: Path) -> str:
    """Return a path that may be a pattern; the characters of the folder before it are none of a pattern."""
    whole = str(_whole(text, folder))
    if not _GLOB.search(text) or Path(whole).exists() or Path(text).expanduser().is_absolute():
        return whole
    return os.path.join(glob.escape(os.path.abspath(folder)), text)  # noqa: PTH100, PTH118 - as above


def _with_whole_program(command: str, folder: Path) -> str:
    """Resolve the program of a command if it is a path; a bare name is looked up on the PATH."""
    words = shlex.split(command)
    if not words or "/" not in words[0]:
        return command
    return shlex.join([str(_whole(words[0], folder)), *words[1:]])
