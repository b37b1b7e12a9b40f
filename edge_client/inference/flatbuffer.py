"""Reader of FlatBuffers tables in a file that nobody vouches for: every offset is checked.

The generated readers trust a file: a hostile one lets them read elsewhere, or go on for ever. This one
raises InputError instead, and reads a limited number of items.
Source: FlatBuffers binary format, https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import dataclasses
import struct

from edge_client.contract.errors import InputError

# All items of all vectors that are read of one file: those of a hostile file may lie over each other, so that
# a few megabytes claim more than any machine can read. A large model has some ten thousand.
MOST_ITEMS = 500_000


@dataclasses.dataclass
class _File:
    """Content of a file, and how many items may still be read of it."""

    data: bytes
    left: int = MOST_ITEMS

    def take(self, items: int) -> None:
        self.left -= items
        if self.left < 0:
            msg = f"it claims more than {MOST_ITEMS} tensors, operators and numbers"
            raise InputError(msg)


class Table:
    """One table of a file.

    Args:
        file: The file.
        position: Where the table begins.
    Raises: InputError if it does not lie within the file.
    """

    def __init__(self, file: _File, position: int) -> None:
        self._file, self._data = file, file.data
        self._position = position
        self._vtable = position - self._read("i", position)
        self._slots = max((self._read("H", self._vtable) - 4) // 2, 0)

    def number(self, field: int, code: str, default: float = 0) -> int | float:
        """Return a scalar; `code` is of `struct`, as in `b` for int8."""
        at = self._field(field)
        return default if at is None else self._read(code, at)

    def integer(self, field: int, code: str, default: int = 0) -> int:
        """Return an integer scalar."""
        return int(self.number(field, code, default))

    def content(self, field: int) -> bytes:
        """Return a vector of bytes; empty if the field is absent."""
        at = self._target(field)
        if at is None:
            return b""
        count = self._read("I", at)
        self._check(at + 4, count)
        return self._data[at + 4 : at + 4 + count]

    def text(self, field: int) -> str:
        """Return a string; what is no UTF-8 of it is replaced."""
        return self.content(field).decode(errors="replace")

    def numbers(self, field: int, code: str) -> tuple[float, ...]:
        """Return a vector of scalars."""
        at = self._target(field)
        if at is None:
            return ()
        count, size = self._read("I", at), struct.calcsize(f"<{code}")
        self._check(at + 4, count * size)
        self._file.take(count)
        return struct.unpack_from(f"<{count}{code}", self._data, at + 4)

    def integers(self, field: int, code: str = "i") -> tuple[int, ...]:
        """Return a vector of integer scalars."""
        return tuple(map(int, self.numbers(field, code)))

    def table(self, field: int) -> Table | None:
        """Return a table that this one points to."""
        at = self._target(field)
        return None if at is None else Table(self._file, at)

    def tables(self, field: int) -> list[Table]:
        """Return a vector of tables."""
        at = self._target(field)
        if at is None:
            return []
        count = self._read("I", at)
        self._check(at + 4, count * 4)
        self._file.take(count)
        places = range(at + 4, at + 4 + 4 * count, 4)
        return [Table(self._file, place + self._read("I", place)) for place in places]

    def _field(self, field: int) -> int | None:
        if field >= self._slots:
            return None
        offset = self._read("H", self._vtable + 4 + 2 * field)
        return self._position + offset if offset else None

    def _target(self, field: int) -> int | None:
        at = self._field(field)
        return None if at is None else at + self._read("I", at)

    def _read(self, code: str, at: int) -> int:
        self._check(at, struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self._data, at)[0]  # type: ignore[no-any-return]

    def _check(self, at: int, size: int) -> None:
        if at < 0 or at + size > len(self._data):
            msg = f"it points to byte {at + size} of {len(self._data)}; it is damaged or cut short"
            raise InputError(msg)


def root_table(data: bytes) -> Table:
    """Return the root table of a file.

    Raises: InputError if the file is too short.
    """
    if len(data) < 8:
        msg = f"it has {len(data)} bytes; it is damaged or cut short"
        raise InputError(msg)
    return Table(_File(data), int(struct.unpack_from("<I", data)[0]))
