"""Base of all sections of the settings file, and the checks that several of them share."""

from __future__ import annotations

import dataclasses
import math
import re
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_client.contract.addresses import S3_EXAMPLE
from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import check_name
from edge_client.contract.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# As a part of a path these mean something else, or nothing.
_NOT_IN_PATH = re.compile(r"[?#\s]|%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"((\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the settings file; the base of each section's dataclass."""

    def faults(self) -> tuple[str, ...]:
        """Return a sentence for each setting that cannot work, with its way out; empty if all can."""
        return ()


def failed(*checks: tuple[bool, str]) -> tuple[str, ...]:
    """Return the messages of the checks that do not hold."""
    return tuple(message for holds, message in checks if not holds)


def bad_names(names: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return a message for each (setting, value) that is not safe as a part of a path, key and topic."""
    found = []
    for setting, value in names:
        try:
            check_name(value, setting)
        except InputError as e:
            found.append(str(e))
    return tuple(found)


def wrong_choice(
    setting: str, value: str, choices: Collection[str], meant: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, ...]:
    """Return the message for a value that is none of the choices; nothing for one of them.

    Args:
        setting: Name of the setting.
        value: Its value.
        choices: The values that it may have.
        meant: Other words for choices, in lower case, with the choice that they stand for.
    """
    if value in choices:
        return ()
    choice = meant.get(value.casefold())
    near = f"; did you mean {choice}?" if choice else did_you_mean(value, choices)
    return (f"{setting} {value!r}: choose one of {', '.join(choices)}{near}",)


def split_names(text: str) -> tuple[str, ...]:
    """Return the names of a setting that lists them with commas between."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def is_positive(value: float) -> bool:
    """Whether a number is finite and above 0."""
    return math.isfinite(value) and value > 0


def is_not_negative(value: float) -> bool:
    """Whether a number is finite and at least 0."""
    return math.isfinite(value) and value >= 0


def store_url_fault(text: str, wanted: str = "http(s)://host/bucket/prefix or file:///folder") -> str:
    """Return why a text is not the address of a store, with the way out; empty if it is one.

    A store is at an HTTP(S) address, or a folder of this machine.
    """
    if text.startswith("s3://"):
        return f"give {wanted}; of Amazon S3, {S3_EXAMPLE}"
    if is_file_url(text):
        return _file_url_fault(text, wanted)
    if not is_http_url(text):
        return f"give {wanted}, or ./folder for one beside this file"
    if "@" in urlsplit(text).netloc:
        return "has a user or password, which is not sent: remove it, and name keys in access_key_file"
    if _NOT_IN_PATH.search(text):
        return "write ? as %3F, # as %23, % as %25 and a space as %20"
    return ""


def _file_url_fault(text: str, wanted: str) -> str:
    try:
        folder_of_url(text)
    except SettingsError as e:
        return f"give {wanted}, or ./folder for one beside this file: {e}"
    return ""


def is_host_pattern(text: str) -> bool:
    """Whether a text is `host`, `host:port` or `*.domain`; an IPv6 address is in brackets."""
    if _HOST.fullmatch(text) is None:
        return False
    try:
        return urlsplit(f"//{text}").port != 0
    except ValueError:
        return False


def is_http_url(text: str) -> bool:
    """Whether a text is an absolute HTTP(S) address."""
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
