"""Disks that fail: bits that flip, and files that cannot be read for a while."""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from tests.fault_table import Faults

# Bits of one file that the tests flip by default.
SOME = 12


def flip(data: bytes, bit: int) -> bytes:
    """Return the bytes with one bit flipped."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def bits_of(data: bytes, faults: Faults, some: int = SOME, most: int = 1 << 30) -> Iterable[int]:
    """Return the numbers of the bits to flip: some of them, or at most `most` with `--every-fault`."""
    bits, count = range(len(data) * 8), most if faults.every else some
    return bits if count >= len(bits) else sorted(random.Random(11).sample(bits, count))


def fail_to_read(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let reading files of these names fail with EIO, as a card with a bad contact does."""
    _fail(monkeypatch, lambda path: path.name in names)


def fail_to_read_below(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let reading all files in a folder fail with EIO."""
    _fail(monkeypatch, lambda path: folder in path.parents)


def _fail(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[Path], bool]) -> None:
    real = io.open

    def tired(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "r" in mode and not isinstance(file, int) and is_bad(Path(file)):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return real(file, mode, *rest, **more)

    monkeypatch.setattr(io, "open", tired)
    monkeypatch.setattr(builtins, "open", tired)
