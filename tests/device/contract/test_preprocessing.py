"""Every picture becomes the same pixels everywhere, or an InputError that names it and the reason."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import (
    MAX_PIXELS,
    decode_fitted,
    decode_picture,
    fit_pixels,
    input_table,
)
from edge_client.contract.release import Normalization

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.runtime

ORIENTATION = 0x0112  # EXIF tag


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(height: int = 20, width: int = 30) -> Image.Image:
    """Red grows to the right, green grows downwards, blue is 77."""
    pixels = np.full((height, width, 3), 77, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def test_rgb_png_keeps_every_pixel() -> None:
    image = gradient()
    decoded = decode_picture(encoded(image))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "JPEG"])
def test_grey_is_repeated_in_three_channels(kind: str) -> None:
    decoded = decode_picture(encoded(Image.new("L", (9, 7), 200), kind))
    assert decoded.shape == (7, 9, 3)
    assert np.abs(decoded.astype(int) - 200).max() <= 2


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (4, 1))
    image.putpixel((2, 0), 1)
    assert decode_picture(encoded(image))[0, :, 0].tolist() == [0, 0, 255, 0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_the_colour_stays(kind: str) -> None:
    image = gradient().convert("RGBA")
    image.putalpha(1)  # all but invisible
    decoded = decode_picture(
        encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    )
    np.testing.assert_array_equal(decoded, np.asarray(gradient()))


def test_grey_with_alpha_keeps_its_grey() -> None:
    decoded = decode_picture(encoded(Image.new("LA", (5, 5), (120, 0))))
    assert (decoded == 120).all()


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = gradient().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_picture(encoded(image, transparency=3)), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_byte(kind: str) -> None:
    # Pillow's own conversion to RGB would make all above 255 white.
    deep = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    decoded = decode_picture(encoded(Image.fromarray(deep), kind))
    assert decoded[0, :, 1].tolist() == [0, 0, 1, 0x7F, 0x80, 0xFF]


def test_sixteen_bit_colour_keeps_its_upper_byte() -> None:
    # Pillow cannot write 16-bit colour, so the PNG is written by hand.
    row = b"\0" + struct.pack(">6H", 0x1234, 0x80FF, 0xFFFF, 0, 0x0100, 0xFEFF)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    decoded = decode_picture(png_of((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")))
    assert decoded.tolist() == [[[0x12, 0x80, 0xFF], [0, 1, 0xFE]]]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_grey_without_a_defined_white_is_refused(mode: str) -> None:
    with pytest.raises(InputError, match="32-bit grey"):
        decode_picture(encoded(Image.new(mode, (4, 4)), "TIFF"))


def test_cmyk_jpeg_has_natural_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_picture(encoded(red, "JPEG")).reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(decoded, [255, 0, 0], atol=6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # Corner colours of a picture that was stored turned or mirrored.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = gradient(48, 64)
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if kind in {"JPEG", "WEBP"} else {}
    decoded = decode_picture(encoded(stored, kind, exif=exif, **options))
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - np.asarray(upright)).mean() < 6


def block(*entries: bytes, order: str = "<", count: int | None = None) -> bytes:
    """An EXIF block whose first directory has these entries."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    directory = struct.pack(order + "H", len(entries) if count is None else count) + b"".join(entries)
    return b"Exif\0\0" + start + directory


def entry(tag: int, kind: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HHI", tag, kind, 1) + value.ljust(4, b"\0")


TURNED = entry(ORIENTATION, 3, b"\6\0")
MINUS_1_OF_0 = entry(0x011A, 10, struct.pack("<I", 38)) + bytes(4) + struct.pack("<iI", -1, 0)

# A whole picture, stored turned (orientation 6), whose EXIF block is broken; whether the turn can be read.
BROKEN_EXIF = {
    "nothing": (b"", False),
    "garbage": (b"Exif\0\0garbage", False),
    "header alone": (b"Exif\0\0", False),
    "doubled header": (b"Exif\0\0" + block(TURNED), True),
    "header three times": (b"Exif\0\0Exif\0\0" + block(TURNED), True),
    "breaks off before the turn": (block(TURNED, count=40)[:-8], False),
    "breaks off after the turn": (block(TURNED, TURNED[:5], count=40), True),
    "rational -1/0": (block(TURNED, MINUS_1_OF_0, count=2), True),
    "unknown type": (block(TURNED, entry(0x010F, 200, b"abcd"), bytes(4)), True),
    "turn as a LONG": (block(entry(ORIENTATION, 4, b"\6")), True),
    "turn as text": (block(entry(ORIENTATION, 2, b"6")), False),
    "turn out of range": (block(entry(ORIENTATION, 3, b"\x60\0")), False),
    "big-endian, breaks off": (block(entry(ORIENTATION, 3, b"\0\6", ">"), order=">", count=9), True),
    "directory outside": (b"Exif\0\0II*\0" + struct.pack("<I", 1 << 30), False),
    "directory in itself": (b"Exif\0\0II*\0" + bytes(4), False),
    "text outside": (block(TURNED, struct.pack("<HHII", 0x010F, 2, 1 << 31, 1 << 31)), True),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("broken", BROKEN_EXIF)
def test_broken_exif_costs_at_most_the_orientation(kind: str, broken: str) -> None:
    exif, is_readable = BROKEN_EXIF[broken]
    image = gradient(40, 60)
    decoded = decode_picture(encoded(image, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {})))
    right = image.transpose(Image.Transpose.ROTATE_270) if is_readable else image
    assert decoded.shape == (right.height, right.width, 3)
    assert np.abs(decoded.astype(int) - np.asarray(right)).mean() < 6


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


# A segment of a JPEG's metadata that is broken.
BROKEN_SEGMENTS = {
    "JFIF, too short": segment(0xE0, b"JFIF\0"),
    "index of more pictures, empty": segment(0xE2, b"MPF\0"),
    "index of more pictures, no entry": segment(0xE2, b"MPF\0II*\0" + struct.pack("<IH", 8, 40)),
    "index of more pictures, wrong types": segment(
        0xE2, b"MPF\0" + block(entry(0xB001, 2, b"x"), entry(0xB002, 10, b"\xff"))[6:]
    ),
    "index of more pictures, outside": segment(
        0xE2, b"MPF\0" + block(entry(0xB001, 4, b"\2"), struct.pack("<HHII", 0xB002, 7, 32, 50))[6:]
    ),
    "colour profile, number 7 of 2": segment(0xE2, b"ICC_PROFILE\0\7\2" + bytes(9)),
    "colour profile, empty": segment(0xE2, b"ICC_PROFILE\0"),
    "colour profile, garbage": segment(0xE2, b"ICC_PROFILE\0\1\1" + b"garbage" * 20),
    "XMP": segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><broken tiff:Orientation="9'),
    "Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff"),
    "Adobe, too short": segment(0xEE, b"Adobe"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "empty": segment(0xE1, b""),
}


@pytest.mark.parametrize("broken", BROKEN_SEGMENTS)
def test_broken_metadata_of_a_jpeg_costs_nothing_else(broken: str) -> None:
    data = encoded(gradient(), "JPEG", exif=block(TURNED), quality=95)
    decoded = decode_picture(data[:2] + BROKEN_SEGMENTS[broken] + data[2:])
    np.testing.assert_array_equal(decoded, decode_picture(data))


@pytest.mark.parametrize("kind", [b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"eXIf", b"tIME"])
def test_a_broken_ancillary_chunk_of_a_png_costs_nothing_else(kind: bytes) -> None:
    whole = encoded(gradient())
    for content in (b"", b"x\0garbage", b"\xff" * 9):
        chunk = struct.pack(">I", len(content)) + kind + content
        for checksum in (struct.pack(">I", zlib.crc32(chunk[4:])), b"oops"):
            data = whole[:33] + chunk + checksum + whole[33:]  # after the header chunk
            np.testing.assert_array_equal(decode_picture(data), np.asarray(gradient()))


def test_broken_metadata_of_a_tiff_costs_nothing_else() -> None:
    image = gradient(40, 60)
    whole = encoded(image, "TIFF", tiffinfo={ORIENTATION: 6, 282: 72.0})
    start = struct.unpack_from("<I", whole, 4)[0]
    [at] = [
        one
        for one in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", whole, start)[0], 12)
        if struct.unpack_from("<H", whole, one)[0] == 282
    ]
    broken = bytearray(whole)
    broken[at + 2 : at + 12] = struct.pack("<HII", 10, 1, len(whole))
    data = bytes(broken) + struct.pack("<iI", -1, 0)
    np.testing.assert_array_equal(
        decode_picture(data), np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    )


def test_rubbish_after_the_end_of_a_picture_is_ignored_and_a_missing_end_is_not() -> None:
    for kind in ("JPEG", "PNG"):
        data = encoded(gradient(64, 64), kind)
        np.testing.assert_array_equal(decode_picture(data + b"rubbish" * 999), decode_picture(data))
        with pytest.raises(InputError, match="replace or remove"):
            decode_picture(data[: len(data) * 3 // 4])


@settings(max_examples=200)
@given(data=st.data())
def test_metadata_of_any_content_is_dropped_or_the_content_refused(data: st.DataObject) -> None:
    """Whatever lies in the metadata, a picture decodes; whatever else is broken is an InputError."""
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF"]))
    entries = (TURNED,) if kind == "TIFF" else (TURNED, MINUS_1_OF_0)
    whole = bytearray(encoded(gradient(), kind, exif=block(*entries, count=len(entries))))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, min(len(whole) - 1, 120)))] = data.draw(st.integers(0, 255))
    try:
        assert decode_picture(bytes(whole)).ndim == 3
    except InputError as e:
        assert re.search("picture|pixels|32-bit grey", str(e))  # noqa: PT017 - either is right


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_picture(data)[4, 4].argmax() == 0, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_truncated_file_is_refused(kind: str, share: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), kind)
    with pytest.raises(InputError, match="replace or remove"):
        decode_picture(data[: int(share * len(data))])


def test_file_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.jpg: not a complete picture"):
        decode_picture(path)
    with pytest.raises(InputError, match="rose/7: not a complete picture"):
        decode_picture(b"no picture", source="rose/7")
    with pytest.raises(InputError, match=r"missing\.jpg: no such file"):
        decode_picture(tmp_path / "missing.jpg")
    with pytest.raises(InputError, match="a folder, not a regular file; give the pictures in it"):
        decode_picture(tmp_path)


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = struct.pack(">I", zlib.crc32(kind + content))
        parts.append(struct.pack(">I", len(content)) + kind + content + check)
    return b"".join(parts)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims, and holds, width x height black pixels."""
    rows = zlib.compressobj(9)
    body = rows.compress(b"\0" * 1000) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 5_001), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_decompression_bomb_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(InputError, match=f"at most {MAX_PIXELS}"):
        decode_picture(bomb(width, height))


def test_bomb_in_a_text_chunk_is_never_unfolded() -> None:
    unfolded = zlib.compress(b"\0" * 80_000_000)
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    data = png_of(
        (b"IHDR", header), (b"zTXt", b"x\0\0" + unfolded), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")
    )
    assert decode_picture(data).tolist() == [[[0, 0, 0]]]


def test_formats_that_start_programs_are_refused() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\nBoundingBox: 0 0 10 10\nEndComments\n"
    with pytest.raises(InputError, match="not a complete picture"):
        decode_picture(eps)


def test_decoding_is_thread_safe() -> None:
    good = encoded(gradient(200, 300), "JPEG")
    expected = decode_picture(good)
    with ThreadPoolExecutor(8) as pool:
        for decoded in pool.map(decode_picture, [good] * 64):
            np.testing.assert_array_equal(decoded, expected)


SEEDS = [
    encoded(gradient(), "JPEG"),
    encoded(gradient().convert("CMYK"), "JPEG"),
    encoded(gradient().convert("RGBA"), "PNG"),
    encoded(gradient().convert("P"), "GIF"),
    encoded(gradient(), "BMP"),
    encoded(gradient(), "WEBP"),
    encoded(gradient(), "TIFF", compression="tiff_lzw"),
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_random_bytes_are_decoded_or_refused(data: bytes) -> None:
    assert_decoded_or_refused(data)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8),
    st.integers(0, 2000),
)
def test_damaged_files_are_decoded_or_refused(
    data: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    assert_decoded_or_refused(bytes(damaged[: max(length, 8)]))


def assert_decoded_or_refused(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode_picture(data)
        except InputError:
            return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8


def test_fit_leaves_the_right_size_alone() -> None:
    pixels = np.asarray(gradient(32, 32))
    np.testing.assert_array_equal(fit_pixels(pixels, 32, 32), pixels)


def test_fit_reduces_with_antialiasing() -> None:
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    small = fit_pixels(stripes, 10, 10)
    assert small.shape == (10, 10, 3)
    assert np.abs(small.astype(int) - 127).max() <= 16  # plain bilinear would keep black or white


def test_fit_stretches_to_height_and_width_in_this_order() -> None:
    assert fit_pixels(np.asarray(gradient()), 5, 9).shape == (5, 9, 3)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_fit_keeps_a_plain_colour_at_any_size(height: int, width: int, value: int) -> None:
    plain = np.full((height, width, 3), value, np.uint8)
    assert (fit_pixels(plain, 17, 23) == value).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_fit_refuses_other_shapes_and_types(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="give"):
        fit_pixels(pixels, 4, 4)


KERAS = Normalization()


def test_float_input_is_normalized() -> None:
    table = input_table(np.dtype(np.float32), 0.0, 0, KERAS)
    assert table.dtype == np.float32
    assert (table[0], table[255]) == (-1.0, 1.0)
    np.testing.assert_array_equal(table, input_table(np.dtype(np.float32), 0.0, 0, None))


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.int8, -1), (np.uint8, 127)])
def test_distinct_pixel_values_stay_distinct(dtype: type, zero_point: int) -> None:
    # Scale as a TFLite file holds it: float32, a little over 1/127.5.
    table = input_table(np.dtype(dtype), float(np.float32(1 / 127.5)), zero_point, KERAS)
    np.testing.assert_array_equal(table, np.arange(256) + np.iinfo(dtype).min)


def test_quantized_input_saturates() -> None:
    table = input_table(np.dtype(np.int8), 1 / 256, 0, KERAS)
    assert (table[0], table[255]) == (-128, 127)


@pytest.mark.parametrize(("dtype", "first"), [(np.uint8, 0), (np.int8, -128)])
def test_without_normalization_the_pixel_itself_goes_in(dtype: type, first: int) -> None:
    table = input_table(np.dtype(dtype), 1 / 128, 128, None)
    np.testing.assert_array_equal(table, np.arange(256) + first)


def test_other_input_types_are_refused() -> None:
    with pytest.raises(InputError, match="float64"):
        input_table(np.dtype(np.float64), 1.0, 0, None)


@pytest.mark.parametrize("size", [(40, 30), (17, 64)])
def test_decode_fitted_equals_decode_and_fit(size):
    """Also where nothing is to be stretched, and where the picture is grey."""
    rng = np.random.default_rng(3)
    for pixels in (rng.integers(0, 256, (40, 30, 3), np.uint8), rng.integers(0, 256, (9, 7), np.uint8)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        wanted = fit_pixels(decode_picture(file.getvalue()), *size)
        assert np.array_equal(decode_fitted(file.getvalue(), *size), wanted)


def test_picture_of_absurd_width_is_refused() -> None:
    with pytest.raises(InputError, match="50000000x1 pixels, at most 65535 on a side"):
        decode_picture(bomb(50_000_000, 1))
