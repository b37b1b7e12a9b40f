"""Pages of long lists, and the numbers in addresses that ask for them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

_DIGITS = 9


@dataclasses.dataclass(frozen=True)
class Part(Generic[T]):
    """A page of a list.

    Attributes:
        rows: Its rows.
        page: Its number, from 1.
        pages: How many there are.
        first: Number of its first row, from 1.
        last: Number of its last row; less than `first` where there is none.
        total: Rows of the list.
    """

    rows: Sequence[T]
    page: int
    pages: int
    first: int
    last: int
    total: int


def part_of(rows: Sequence[T], page: int, size: int) -> Part[T]:
    """Return a page of a list; beyond the last one it is the last."""
    pages = max(-(-len(rows) // size), 1)
    page = min(max(page, 1), pages)
    begin = (page - 1) * size
    shown = rows[begin : begin + size]
    return Part(shown, page, pages, begin + 1, begin + len(shown), len(rows))


def whole_number(text: str, otherwise: int) -> int:
    """Return a number as it stands in an address; `otherwise` for what is none: people type addresses."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else otherwise
