"""Messages that were recorded: in a file for benchmarks, or by a rule of AWS IoT Core in a bucket.

One JSON object a line, plain, gzip or zstd:

    {"topic": "edge/fleet/devices/cam-1/report", "payload": {...}}           the payload itself, or a text
    {"topic": "...", "payload_base64": "eyJm...", "at_ms": 1795820400000}    as the rule of docs/collector.md

`at_ms` is the arrival, milliseconds since 1970; without it, it is the time of reading.
"""

from __future__ import annotations

import base64
import gzip
import io
import logging
import zlib
from typing import TYPE_CHECKING, cast

import msgspec
import zstandard

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks.fleet.database import DamagedError, DatabaseBusyError
from luigi_tasks.fleet.intake import MALFORMED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from luigi_tasks.fleet.collector import Collector
    from luigi_tasks.fleet.intake import Message
    from luigi_tasks.storage.store import Store

logger = logging.getLogger("edge-fleet")

_BATCH = 2000
_LINE_LIMIT_BYTES = 1 << 18
_OBJECT_LIMIT_BYTES = 256 << 20
# Of files that are damaged, or were never packed.
UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class RecordedMessage(msgspec.Struct, frozen=True):
    """A line."""

    topic: str
    payload: msgspec.Raw = msgspec.Raw(b"")
    payload_base64: str = ""
    at_ms: float = 0.0

    def content(self) -> bytes:
        """Return the payload as it came over the broker; raises ValueError."""
        if self.payload_base64:
            return base64.b64decode(self.payload_base64, validate=True)
        raw = bytes(self.payload)
        return msgspec.json.decode(raw, type=str).encode() if raw.startswith(b'"') else raw


_LINE = msgspec.json.Decoder(RecordedMessage)


def take_file(collector: Collector, path: Path) -> int:
    """Give the messages of a file to a collector; return the number of lines.

    Raises: InputError if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _take(collector, _opened(file), "")
    except UNREADABLE as e:
        msg = f"{path}: cannot be read ({e}); give a file with one JSON object a line"
        raise InputError(msg) from e


def take_objects(collector: Collector, store: Store, prefix: str) -> int:
    """Give the messages of the objects below a prefix that were not read yet; return the number of objects.

    Each object counts once: with its messages, the database notes its name.
    Raises: TransportError, SettingsError.
    """
    taken = 0
    objects = {f"{one.key} {one.etag}": one for one in store.list_folder(prefix.rstrip("/") + "/")}
    collector.keep_taken(objects.keys())
    for name, listed in objects.items():
        if collector.stopping.is_set():
            break
        if collector.was_taken(name):
            continue
        try:
            found = store.get(listed.key, limit_bytes=_OBJECT_LIMIT_BYTES)
            if found is not None:
                _take(collector, _opened(io.BytesIO(found.data)), name)
        except UNREADABLE as e:
            logger.warning("%s: cannot be read (%s); passed over", store.url(listed.key), e)
            collector.write_now((), name)
        taken += 1
    return taken


def follow_objects(collector: Collector, store: Store, prefix: str, look_s: float) -> None:
    """Take what is written below a prefix, again and again, until the collector stops."""
    while not collector.stopping.is_set():
        try:
            taken = take_objects(collector, store, prefix)
            collector.note_listening(is_heard=True)
            if taken:
                logger.info("%s: %d new objects", store.url(prefix), taken)
        except (TransportError, DatabaseBusyError, DamagedError) as e:
            collector.note_listening(is_heard=False)
            logger.warning("%s. Nothing is heard meanwhile; the next look is in %.0f s", e, look_s)
        collector.stopping.wait(look_s)


def _opened(file: IO[bytes]) -> IO[bytes]:
    start = file.read(4)
    file.seek(0)
    if start.startswith(_GZIP):
        return cast("IO[bytes]", gzip.open(file))
    if start == _ZSTD:
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
    return file


def _take(collector: Collector, file: IO[bytes], name: str) -> int:
    lines, batch = 0, []
    for line in _lines(file):
        lines += 1
        message = _read(collector, line)
        if message is not None:
            batch.append(message)
        if len(batch) >= _BATCH:
            collector.write_now(batch)
            batch = []
    collector.write_now(batch, name)
    return lines


def _read(collector: Collector, line: bytes) -> Message | None:
    try:
        recorded = _LINE.decode(line)
        payload = recorded.content()
    except (msgspec.DecodeError, RecursionError, ValueError):
        collector.intake.rejections.count(MALFORMED)
        return None
    now = collector.scope.clock()
    at = recorded.at_ms / 1000
    if not 0 < at <= now:  # heard in the future, a device would never be silent
        at = now
    return collector.intake.admit(recorded.topic, payload, at)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines; a longer one than any message comes in pieces, which are no JSON."""
    while line := file.readline(_LINE_LIMIT_BYTES):
        if line.strip():
            yield line
