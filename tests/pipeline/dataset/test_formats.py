"""Content decides what is a picture: formats of cameras, phones and the web, whatever the name."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.file_names import FOREIGN_SUFFIXES, PICTURE_SUFFIXES
from luigi_tasks.dataset.formats import decode_file, is_picture
from tests.fakes.datasets import HEIC, class_folders
from tests.fakes.snapshots import reasons, snap


def halves(mode: str = "RGB") -> Image.Image:
    """The picture in `HEIC`: the upper half red, the lower half blue."""
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    image.paste((30, 30, 200), (0, 32, 64, 64))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep_png() -> bytes:
    """Colour in 16 bits, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    pixels = (np.asarray(halves()).astype(">u2") * 257).reshape(64, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


COLOURED = {
    "jpeg": encoded(halves(), "JPEG", quality=95),
    "progressive": encoded(halves(), "JPEG", quality=95, progressive=True),
    "CMYK": encoded(halves("CMYK"), "JPEG", quality=95),
    "of a phone, with a second picture": encoded(
        halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))]
    ),
    "png": encoded(halves(), "PNG"),
    "palette": encoded(halves("P"), "PNG"),
    "palette, transparent": encoded(halves("P"), "PNG", transparency=0),
    "transparent": encoded(halves("RGBA"), "PNG"),
    "16 bits": deep_png(),
    "gif": encoded(halves(), "GIF"),
    "animated gif": encoded(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "animated png": encoded(halves(), "PNG", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "bmp": encoded(halves(), "BMP"),
    "tiff": encoded(halves(), "TIFF"),
    "tiff, packed": encoded(halves(), "TIFF", compression="tiff_lzw"),
    "tiff, pages": encoded(halves(), "TIFF", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "webp": encoded(halves(), "WEBP", lossless=True),
    "animated webp": encoded(
        halves(), "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (64, 64))]
    ),
    "avif": encoded(halves(), "AVIF", quality=95),
    "heic": HEIC,
}


@pytest.mark.parametrize("name", COLOURED)
def test_each_format_gives_the_pixels_of_its_first_picture(name: str) -> None:
    data = COLOURED[name]
    assert is_picture(data)
    pixels = decode_file(data, 4, 4, name).astype(int)  # (4, 4, 3)
    right = [[(200, 30, 30)] * 4] * 2 + [[(30, 30, 200)] * 4] * 2
    assert np.abs(pixels - right).max() <= 30


def test_grey_of_16_bits_keeps_its_upper_bits() -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    for kind in ("PNG", "TIFF"):
        pixels = decode_file(encoded(Image.fromarray(ramp), kind), 64, 64, kind)
        np.testing.assert_array_equal(pixels[..., 1], ramp >> 8)


NAMES = (
    *(
        "a.jpg",
        "b.JPG",
        "c.jpeg",
        "d.jfif",
        "e.JPE",
        "f.HEIC",
        "g.heif",
        "h.avif",
        "i",
        "IMG_0001",
        "j.unheard",
    ),
    *(
        "k.png",
        "l.webp",
        "m.tmp1",
        "n.jpg_large",
        "o.jpg!d",
        "p.jpg?width=600",
        "q.",
        "1.2.3",
        "ü.b",
        "tar.é",
    ),
)


def test_a_picture_is_used_whatever_its_name(tmp_path):
    """Each name for a JPEG, and each format under a wrong one and under none."""
    tree = {
        f"a/{name}": encoded(Image.new("RGB", (9, 9), (12 * index, 0, 0)), "JPEG")
        for index, name in enumerate(NAMES)
    }
    tree |= {f"b/{index}": data for index, data in enumerate(COLOURED.values())}
    tree |= {f"c/{index}.jpg": data for index, data in enumerate(COLOURED.values())}
    snapshot = snap(tmp_path / "p", {**tree, **class_folders({"d": 3})}, max_left_out_percent=100)
    # The same picture under b and c is in two classes, so that nothing is left of them; all else is used.
    lost = dict.fromkeys(("b/", "c/"), "class without usable pictures")
    assert reasons(snapshot) == {one: "in two classes" for one in tree if one[0] != "a"} | lost
    assert len(snapshot.pictures) == len(NAMES) + 3


@pytest.mark.parametrize("name", ["heic", "avif", "of a phone, with a second picture", "animated webp"])
def test_a_picture_that_breaks_off_is_undecodable(name: str) -> None:
    data = COLOURED[name]
    with pytest.raises(InputError, match=r"^x/1: .*replace or remove it$"):
        decode_file(data[: len(data) // 3], 4, 4, "x/1")


def test_a_heic_of_unknown_items_is_undecodable_and_ends_no_process() -> None:
    broken = HEIC.replace(b"hvc1\0", b"\xffvc1\0", 1)
    assert broken != HEIC
    with pytest.raises(InputError, match=r"x/1: cannot be decoded as a picture .an item of unknown type"):
        decode_file(broken, 4, 4, "x/1")


def test_a_broken_exif_block_of_an_avif_costs_nothing_else() -> None:
    exif = Image.Exif()
    exif[0x010E] = "description"
    whole = encoded(halves(), "AVIF", exif=exif)
    start = whole.index(b"Exif\0\0MM") + 6
    for broken in (b"garbage!", b"MM\0*\xff\xff\xff\xff", bytes(8)):
        data = whole[:start] + broken + whole[start + 8 :]
        np.testing.assert_array_equal(decode_file(data, 8, 8, "x/1"), decode_file(whole, 8, 8, "x/1"))


@pytest.mark.parametrize(
    ("stored", "turn"), [(6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)]
)
def test_an_avif_is_turned_once(stored: int, turn: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = stored
    pixels = decode_file(encoded(halves(), "AVIF", exif=exif, quality=95), 4, 4, "x/1").astype(int)
    right = np.asarray(halves().transpose(turn).resize((4, 4), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pixels - right).mean() < 12


def test_no_suffix_is_both_a_picture_and_none() -> None:
    assert not PICTURE_SUFFIXES & FOREIGN_SUFFIXES
