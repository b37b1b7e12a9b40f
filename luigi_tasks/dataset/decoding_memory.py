"""Memory that threads take together for the pictures that they decode at the same time."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# One picture may take more, alone: a WebP of 50 megapixels takes 850 MB, a photograph of 12 as JPEG 75 MB.
TOGETHER_BYTES = 1 << 30
# Pictures below this are not counted: 16 threads with such ones take 512 MB.
UNCOUNTED_BYTES = 32_000_000


class DecodingMemory:
    """Bound on the memory of pictures that are decoded at the same time.

    Args:
        limit_bytes: Of all of them; one that takes more is decoded alone.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._taken_bytes = 0
        self.most_bytes = 0

    @contextlib.contextmanager
    def take(self, need_bytes: int) -> Iterator[None]:
        """Wait until so much is free, and hold it for the block."""
        if need_bytes < UNCOUNTED_BYTES:
            yield
            return
        need = min(need_bytes, self._limit_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._taken_bytes + need <= self._limit_bytes)
            self._taken_bytes += need
            self.most_bytes = max(self.most_bytes, self._taken_bytes)
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= need
                self._changed.notify_all()
