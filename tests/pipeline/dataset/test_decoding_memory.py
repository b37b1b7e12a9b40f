"""Hostile pictures of a dataset: memory of all threads together, and metadata without an end."""

from __future__ import annotations

import io
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from luigi_tasks.dataset import formats
from luigi_tasks.dataset.capture import find_capture
from luigi_tasks.dataset.decoding_memory import DecodingMemory
from luigi_tasks.dataset.formats import decode_file, read_header
from tests.fakes.datasets import picture_bytes


def plain(side: int, suffix: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 60)).save(file, suffix)
    return file.getvalue()


def test_pictures_memory_of_all_threads_together_is_bounded(monkeypatch):
    """And a small picture waits for none of them."""
    data = plain(2500)
    need = read_header(data, "picture").decoding_bytes
    memory = DecodingMemory(2 * need + 1)
    monkeypatch.setattr(formats, "_MEMORY", memory)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: decode_file(one, 32, 32, "picture"), [data, plain(8)] * 6))
    assert all(abs(int(one[0, 0, 0]) - 200) < 4 for one in found)
    assert need <= memory.most_bytes <= 2 * need


def test_pictures_memory_of_one_that_takes_more_than_all_may_is_decoded_alone(monkeypatch):
    memory = DecodingMemory(1 << 20)
    monkeypatch.setattr(formats, "_MEMORY", memory)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda one: decode_file(one, 32, 32, "picture"), [plain(2500)] * 4))) == 4
    assert memory.most_bytes == 1 << 20


def with_exif(block: bytes) -> bytes:
    """A JPEG whose first segment is an EXIF block."""
    data = picture_bytes(3, size=16, suffix="JPEG")
    segment = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def directory(entries: int, value_bytes: int) -> bytes:
    """A TIFF directory whose entries all name the same bytes."""
    rows = b"".join(struct.pack("<HHII", 40_000 + n, 7, value_bytes, 8) for n in range(entries))
    return struct.pack("<H", entries) + rows + bytes(4)


@pytest.mark.parametrize("where", ["first directory", "directory of the camera", "in a circle"])
def test_exif_that_describes_more_than_it_holds_costs_no_memory(where):
    heavy = directory(4000, 60_000)
    pointer = struct.pack("<HHHII", 1, 0x8769, 4, 1, 8 if where == "in a circle" else 26) + bytes(4)
    block = b"II*\0" + struct.pack("<I", 8) + (heavy if where == "first directory" else pointer + heavy)
    data = with_exif(block)
    tracemalloc.start()
    try:
        assert find_capture(data, "a/1.jpg") == (0, "")
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
