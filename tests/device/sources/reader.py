"""Reads a source in a test, and the files that it reads."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

    from edge_client.sources.source import Frame, Source

RED, GREEN, BLUE = (png(plain_picture(label)) for label in ("red", "green", "blue"))


class Reader:
    """Reads a source in a thread of its own, as the daemon does."""

    def __init__(self, source: Source, *, finish: bool = True) -> None:
        self.stop = threading.Event()
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._source = source
        self._finish = finish
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the source does not end on stop"
        assert self.error is None, "the source failed"

    def names(self, count: int, timeout_s: float = 10) -> list[str]:
        """Wait for `count` frames and return all names so far."""
        with self._news:
            came = self._news.wait_for(lambda: self.error or len(self.frames) >= count, timeout_s)
            assert came, self.frames
            assert self.error is None
            return [frame.source for frame in self.frames]

    def _read(self) -> None:
        try:
            for frame in self._source.frames(self.stop):
                if self._finish:
                    frame.done()
                with self._news:
                    self.frames.append(frame)
                    self._news.notify_all()
        except Exception as e:  # noqa: BLE001 - for the test's own thread to see
            with self._news:
                self.error = e
                self._news.notify_all()


def put(path: Path, content: bytes, *, age_s: float = 60) -> Path:
    """Move a finished file in, as `mv` does: whole, and older than the move."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    then = time.time() - age_s
    os.utime(temporary, (then, then))
    return temporary.rename(path)


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def until(claim: Any, timeout_s: float = 10) -> None:
    """Wait until `claim()` is true; nothing announces what a source only writes to disk."""
    end = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.02)
