"""Addresses of local folders: file:///srv/edge-models. No other module parses one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import SettingsError

FILE_SCHEME = "file"


def is_file_url(url: str) -> bool:
    """Whether an address has the scheme file:, well-formed or not."""
    return url.partition(":")[0].strip().lower() == FILE_SCHEME


def folder_of_url(url: str) -> Path:
    """Return the folder that file:///folder names; %20 stands for a space.

    Raises: SettingsError unless it is an absolute path on this machine.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path, errors="surrogateescape")
    if (
        parts.scheme != FILE_SCHEME
        or parts.netloc not in {"", "localhost"}
        or parts.query
        or parts.fragment
        or not path.startswith("/")
        or not path.strip("/")
        or "\0" in path
    ):
        msg = (
            f"{shown_address(url)!r}: give file:///folder, with three slashes and the full path of a folder "
            "on this machine (write ? as %3F, # as %23)"
        )
        raise SettingsError(msg)
    return Path(path)
