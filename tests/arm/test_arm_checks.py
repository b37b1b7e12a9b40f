"""What `scripts/test-arm` judges: alignment of compiled files, how far apart two machines' answers are."""

from __future__ import annotations

import struct

import pytest
from arm.answers import TOLERANCE, Comparison
from arm.boards import BOARDS
from arm.installation import PAGE_BYTES, alignment, shared_objects
from arm.userland import ArmError


def elf(*segments: tuple[int, int, int]) -> bytes:
    """Return the headers of a 64-bit file with loadable segments of (offset, address, alignment)."""
    header = b"\x7fELF\x02\x01\x01".ljust(32, b"\0") + struct.pack("<Q14xHH", 64, 56, len(segments))
    table = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, offset, address, address, 1, 1, align)
        for offset, address, align in segments
    )
    return header.ljust(64, b"\0") + table


@pytest.mark.parametrize(
    ("segments", "loads"),
    [
        (((0, 0, 0x10000), (0x500, 0x10500, 0x10000)), True),
        (((0, 0, 0x4000),), True),
        (((0, 0, 0x10000), (0x500, 0x1500, 0x1000)), False),  # NumPy 1.19 on 64-bit Arm (numpy#16677)
    ],
    ids=["64 KiB", "16 KiB", "one of 4 KiB"],
)
def test_a_file_that_a_raspberry_pi_5_cannot_load_is_found(tmp_path, segments, loads):
    library = tmp_path / "package/library.so.1"
    library.parent.mkdir()
    library.write_bytes(elf(*segments))
    (library.parent / "readme.so").write_text("no library")
    [found] = shared_objects(tmp_path)
    assert found == library
    assert (alignment(found) % PAGE_BYTES == 0) == loads


def test_a_file_that_no_kernel_loads_is_an_error(tmp_path):
    (tmp_path / "broken.so").write_bytes(elf((0x500, 0x600, 0x1000)))
    with pytest.raises(ArmError, match=r"broken\.so.*offset"):
        alignment(tmp_path / "broken.so")


def test_answers_too_far_apart_are_named_with_model_picture_and_label():
    comparison = Comparison()
    comparison.add("m, a.png", {"cat": 0.9, "dog": 0.1}, {"cat": 0.89, "dog": 0.11})
    comparison.check()
    assert comparison.largest == pytest.approx(0.01)
    comparison.add("m, b.png", {"cat": 0.52, "dog": 0.48}, {"cat": 0.48 - TOLERANCE, "dog": 0.52 + TOLERANCE})
    assert len(comparison.other_labels) == 1
    with pytest.raises(ArmError, match=r"m, b\.png, (cat|dog)"):
        comparison.check()


def test_no_answers_at_all_are_no_success():
    with pytest.raises(ArmError, match="no answers"):
        Comparison().check()


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_board_shows_an_arm_processor(board):
    text = board.cpuinfo()
    assert "CPU implementer\t: 0x41" in text
    assert "asimd" in text
    assert board.part in text
