"""Small files that would keep a decoder busy for minutes, or fill the memory, are refused or cost little."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_client.contract import structure
from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import decode_picture
from edge_client.contract.structure import MAX_SCANS, check_structure, count_scans


def jpeg(side: int = 16, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 90)).save(out, "JPEG", **options)
    return out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 8))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def with_scans(count: int, side: int = 16) -> bytes:
    """A valid progressive JPEG whose last scan is repeated."""
    data = jpeg(side, progressive=True)
    end = data.rindex(b"\xff\xd9")
    last = data[data.rindex(b"\xff\xda") : end]
    return data[:end] + last * (count - data.count(b"\xff\xda")) + data[end:]


def directory(entries: int, value_bytes: int, start: int = 8) -> bytes:
    """A TIFF block whose entries all point at the same bytes."""
    rows = [struct.pack("<HHII", 40_000 + n, 7, value_bytes, 8) for n in range(entries)]
    return b"II*\0" + struct.pack("<IH", start, entries) + b"".join(rows) + bytes(4)


def tiff(strips: int, strip_bytes: int, *, order: str = "<") -> bytes:
    """An LZW TIFF of one-row strips that all are the same bytes."""
    places, lengths = (struct.pack(f"{order}I", n) * strips for n in (8, strip_bytes))
    at = 8 + strip_bytes
    entries = {256: 8, 257: strips, 258: 8, 259: 5, 262: 1, 273: at, 277: 1, 278: 1, 279: at + len(places)}
    rows = [
        struct.pack(f"{order}HHII", tag, 4, strips if tag in {273, 279} else 1, value)
        for tag, value in entries.items()
    ]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at + 2 * len(places))
    body = bytes(strip_bytes) + places + lengths
    return head + body + struct.pack(f"{order}H", len(rows)) + b"".join(rows) + bytes(4)


def tiff_with_tiles(side: int, tile: int, *, twice: bool = False) -> bytes:
    """A deflated TIFF in tiles, whose first one is there."""
    body = zlib.compress(bytes(3 * 64 * 64), 9)
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    entries += [(322, 16)] * twice + [(324, 8), (325, len(body))]
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries]
    head = b"II*\0" + struct.pack("<I", 8 + len(body))
    return head + body + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)


def run_length_bmp(size_bytes: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 5000, 5000, 1, 8, 1, size_bytes, 0, 0, 256, 0)
    body = header + bytes(1024) + b"\1\5" * (size_bytes // 2)
    return b"BM" + struct.pack("<IHHI", len(body) + 14, 0, 0, 14 + 40 + 1024) + body


def gif_with_comment(size_bytes: int) -> bytes:
    out = io.BytesIO()
    Image.new("P", (8, 8)).save(out, "GIF")
    data, at = out.getvalue(), 13 + 3 * 256
    if data[10] & 0x80:
        at = 13 + (3 << ((data[10] & 7) + 1))
    comment = b"\x21\xfe" + (b"\xff" + b"a" * 255) * (size_bytes // 256) + b"\0"
    return data[:at] + comment + data[at:]


REFUSED = {
    "a JPEG of 256 pixels in more than 100 scans": with_scans(MAX_SCANS + 1),
    "segments before its pixels": jpeg()[:2] + segment(0xFE, b"") * 3000 + jpeg()[2:],
    "a PNG with more than": png(chunk(b"fdAT", b"") * 60_000),
    "a TIFF whose directory": directory(5000, 50_000) + bytes(50_000),
    "a TIFF whose strips": tiff(5000, 100_000),
    "a TIFF whose strips ": tiff(5000, 100_000, order=">"),
    "a TIFF whose tiles are larger than the picture": tiff_with_tiles(64, 20_000),
    "a TIFF with two entries of tag 322": tiff_with_tiles(64, 64, twice=True),
    "a big-endian BigTIFF": b"MM\0+" + tiff(1, 100, order=">")[4:],
    "a run-length BMP": run_length_bmp(5_000_000),
    "a GIF with over": gif_with_comment(1_000_000),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_file_that_would_keep_a_decoder_busy_is_refused_by_name(reason: str) -> None:
    with pytest.raises(InputError, match=f"door.jpg: .*{reason.strip()}.* or remove it"):
        decode_picture(REFUSED[reason], source="door.jpg")


def test_scans_of_a_jpeg_within_a_tiff_are_limited() -> None:
    out = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(out, "TIFF", compression="jpeg", strip_size=6000 * 6000 * 3)
    data = out.getvalue()
    assert decode_picture(data).shape == (6000, 6000, 3)
    with pytest.raises(InputError, match="a TIFF of JPEGs in very many scans"):
        decode_picture(data + b"\xff\xda" * 30)


def test_scans_of_a_large_picture_are_limited_by_their_time() -> None:
    data = with_scans(60, 6000)
    with pytest.raises(InputError, match="36000000 pixels in more than 16 scans"):
        decode_picture(data)


@pytest.mark.parametrize(
    "data",
    [
        with_scans(MAX_SCANS),
        jpeg() + b"\xff\xda" * 500,  # a film after the picture, as phones write it
        jpeg()[:2] + segment(0xE2, b"\xff\xda" * 500) + jpeg()[2:],
        png(chunk(b"tEXt", b"a\0b") * 150),
        tiff_with_tiles(64, 64),
    ],
)
def test_what_programs_write_is_decoded(data: bytes) -> None:
    assert decode_picture(data).shape[2] == 3


HEAVY = directory(5000, 60_000).ljust(65_000, b"\0")
COSTLY_METADATA = {
    "EXIF whose entries overlap": jpeg()[:2] + segment(0xE1, b"Exif\0\0" + HEAVY) + jpeg()[20:],
    "an index of pictures whose entries overlap": jpeg()[:2] + segment(0xE2, b"MPF\0" + HEAVY) + jpeg()[2:],
    "EXIF in very many segments": jpeg()[:2] + segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 60 + jpeg()[2:],
    "EXIF of a PNG whose entries overlap": png(chunk(b"eXIf", HEAVY)),
    "profiles that unpack": png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(900_000), 9)) * 40),
    "texts that unpack": png(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(900_000), 9)) * 40),
}


@pytest.mark.parametrize("kind", COSTLY_METADATA)
def test_costly_metadata_is_left_out_and_the_picture_decoded(kind: str) -> None:
    data = COSTLY_METADATA[kind]
    tracemalloc.start()
    try:
        pixels = decode_picture(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels.shape in {(16, 16, 3), (8, 8, 3)}
    assert peak < 3 * len(data) + 4_000_000


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=6), st.sampled_from([b"\xff\xda\0\2", b"\xff\xd9", b"\xff"]))))
def test_scans_are_counted_whatever_the_bytes(parts: list[bytes]) -> None:
    data = b"\xff\xd8" + b"".join(parts)
    assert 0 <= count_scans(data, 1000) <= data.count(b"\xff\xda")
    assert structure._count_start_marks(data) == data.count(b"\xff\xda")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(
        [*COSTLY_METADATA.values(), tiff(3, 20), gif_with_comment(600), with_scans(20), b"II+\0"]
    ),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    st.integers(0, 2000),
)
def test_structure_of_damaged_files_is_taken_or_refused(
    data: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(InputError):
        assert check_structure(bytes(damaged[:length]), "x") in {True, False}


def test_large_jpeg_is_decoded_at_half_its_size_everywhere_and_upright() -> None:
    stored = Image.fromarray(
        np.tile(np.arange(0, 4400, dtype=np.uint16)[None, :] // 20, (4000, 1)).astype(np.uint8)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    out = io.BytesIO()
    stored.save(out, "JPEG", quality=95, exif=exif)
    pixels = decode_picture(out.getvalue())
    assert pixels.shape == (2200, 2000, 3)
    upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270).reduce(2), np.int16)
    assert np.abs(pixels[:, :, 0].astype(np.int16) - upright).max() <= 3
