"""Groups that a person names: `[dataset] group`, a regular expression over paths, or a CSV."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from luigi_tasks.settings.values import DatasetSettings

CSV_SUFFIX = ".csv"
COLUMNS = {"path", "group"}

# Returns the name of a path's group; empty: it has none.
GroupNames = Callable[[str], str]


def load_group_names(settings: DatasetSettings) -> GroupNames | None:
    """Return what names the groups; None where nothing does.

    Raises: SettingsError if the file cannot be used.
    """
    if not settings.group:
        return None
    if settings.group.lower().endswith(CSV_SUFFIX):
        names = _read_csv(settings.group)
        return lambda path: names.get(path, "")
    pattern = re.compile(settings.group)  # checked with the settings

    def find(path: str) -> str:
        found = pattern.search(path)
        return "" if found is None else (found[1] if pattern.groups else found[0]) or ""

    return find


def group_names_digest(settings: DatasetSettings) -> str:
    """Return what changes when the content of the CSV does; "" without one.

    Raises: SettingsError if it cannot be read.
    """
    return (
        hashlib.sha256(_read(settings.group)).hexdigest()
        if settings.group.lower().endswith(CSV_SUFFIX)
        else ""
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as e:
        msg = f"[dataset] group {path}: {e.strerror}; give a CSV with the columns path and group"
        raise SettingsError(msg) from e


def _read_csv(path: str) -> dict[str, str]:
    try:
        rows = list(csv.DictReader(_read(path).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as e:
        msg = f"[dataset] group {path}: not a CSV in UTF-8 ({e})"
        raise SettingsError(msg) from e
    names: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        if not row.keys() >= COLUMNS or row["path"] is None or row["group"] is None:
            msg = f"[dataset] group {path}: line {number}: give the columns path and group"
            raise SettingsError(msg)
        if names.setdefault(row["path"], row["group"]) != row["group"]:
            msg = f"[dataset] group {path}: line {number}: {row['path']} is in two groups; keep one"
            raise SettingsError(msg)
    return names
