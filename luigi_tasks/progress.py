"""How long steps tell what they are doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

# Called as progress(what, done, total) with 0 <= done <= total.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Listen to nothing."""
