"""Read one value of the settings file as the type of its setting."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_client.settings.checks import split_names

if TYPE_CHECKING:
    from collections.abc import Callable

# Program and arguments, as for a shell: `shlex.split` takes it apart.
Command = Annotated[str, "command"]
# Numbers with commas between.
Numbers = Annotated[str, "numbers"]
# A labels file, or a list of the labels.
LabelsOrFile = Annotated[str | tuple[str, ...], "labels"]
# One number for all channels of a picture, or one for each.
ChannelValues = Annotated[tuple[float, ...], "channel values"]
# Height and width in pixels, or one for both.
Size = Annotated[tuple[int, ...], "size"]

# TOML 1.0 promises 64 bits.
_LARGEST_INTEGER = 2**63 - 1
# Thirty years in seconds; the timers of Python end at 292 years.
_LARGEST_NUMBER = 1e9


def read_value(value: object, kind: Any) -> Any:  # noqa: ANN401 - of the type that `kind` names
    """Convert a value of a TOML document to the type of a setting.

    Raises: TypeError or ValueError with the way out.
    """
    return _READERS[kind](value)


def _read_str(value: object) -> str:
    if not isinstance(value, str):
        msg = f"{value!r} is not a text; put it in quotes"
        raise TypeError(msg)
    if "\0" in value:
        msg = f"{value!r} has a null character; remove it"
        raise ValueError(msg)
    return value


def _read_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    msg = f"{value!r} is neither true nor false; write it without quotes"
    raise TypeError(msg)


def _read_int(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{value!r} is not an integer; write digits, without quotes"
        raise TypeError(msg)
    if abs(value) > _LARGEST_INTEGER:
        msg = f"{value} is too large; give at most {_LARGEST_INTEGER}"
        raise ValueError(msg)
    return value


def _read_float(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        msg = f"{value!r} is not a number; write digits, without quotes"
        raise TypeError(msg)
    if abs(value) > _LARGEST_NUMBER:
        msg = f"{value:g} is too large; give at most {_LARGEST_NUMBER:g}"
        raise ValueError(msg)
    return float(value)


def _read_names(value: object) -> tuple[str, ...]:
    """Read a TOML list of texts as it stands, or one text with commas between the names."""
    if isinstance(value, str):
        return split_names(_read_str(value))
    names = _read_list(value, 'a list of texts, ["a", "b"]')
    if any(not name.strip() for name in names):
        msg = f"{value!r} has an empty text; remove it"
        raise ValueError(msg)
    return names


def _read_command(value: object) -> str:
    """Read a command as one text, or as a TOML list of program and arguments."""
    if isinstance(value, str):
        try:
            shlex.split(_read_str(value))
        except ValueError as e:
            msg = f"{value!r}: {e}; close each quote"
            raise ValueError(msg) from e
        return value
    return shlex.join(_read_list(value, 'a command, "program argument" or ["program", "argument"]'))


def _read_list(value: object, wanted: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(map(_read_str, value))
    msg = f"{value!r} is not {wanted}"
    raise TypeError(msg)


def _read_labels(value: object) -> str | tuple[str, ...]:
    """Read the name of a file, or a TOML list of labels."""
    return _read_names(value) if isinstance(value, list) else _read_str(value)


def read_float_list(value: object) -> tuple[float, ...]:
    """Read one number, a list of numbers, or a text of numbers with commas between."""
    if isinstance(value, str):
        return tuple(_number(part) for part in split_names(_read_str(value)))
    return tuple(map(_read_float, value if isinstance(value, list) else [value]))


def read_size(value: object) -> tuple[int, ...]:
    """Read a size in pixels: `224`, `[240, 320]` or `"240x320"`, the height first."""
    if isinstance(value, str):
        parts = _read_str(value).lower().replace(",", "x").split("x")
        value = [int(_number(part)) for part in parts] if value else []
    return tuple(map(_read_int, value if isinstance(value, list) else [value]))


def _number(text: str) -> float:
    try:
        return _read_float(float(text))
    except ValueError as e:
        msg = f"{text.strip()!r} is not a number; write digits"
        raise ValueError(msg) from e


def _read_numbers(value: object) -> str:
    if not isinstance(value, list):
        return _read_str(value)
    return ", ".join(f"{_read_float(one)!r}" for one in value)


_READERS: dict[Any, Callable[[object], Any]] = {
    str: _read_str,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    Path: lambda value: Path(_read_str(value)),
    tuple[str, ...]: _read_names,
    LabelsOrFile: _read_labels,
    ChannelValues: read_float_list,
    Size: read_size,
    Command: _read_command,
    Numbers: _read_numbers,
}
