"""Averages over blocks, against the plain formula."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.contract import averaging
from edge_client.contract.averaging import average_blocks

pytestmark = pytest.mark.runtime


def plainly(pixels, rows: int, columns: int):
    """The same with reshape and whole numbers: blocks in the middle, halves up."""
    high, wide = pixels.shape[0] // rows, pixels.shape[1] // columns
    top, left = (pixels.shape[0] - high * rows) // 2, (pixels.shape[1] - wide * columns) // 2
    middle = pixels[top : top + high * rows, left : left + wide * columns]
    sums = middle.reshape(high, rows, wide, columns, 3).astype(np.int64).sum((1, 3))
    return (2 * sums + rows * columns) // (2 * rows * columns)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_each_block_is_its_average(data, height, width, seed):
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(average_blocks(pixels, rows, columns), plainly(pixels, rows, columns))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("block", [(3, 4), (16, 16), (17, 16), (40, 100)])
def test_a_plain_colour_stays(value, block):
    pixels = np.full((80, 200, 3), value, np.uint8)
    assert (average_blocks(pixels, *block) == value).all()


def test_pixels_need_not_be_contiguous():
    pixels = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    turned = pixels[::-1, ::2]
    np.testing.assert_array_equal(average_blocks(turned, 3, 4), plainly(turned, 3, 4))


def test_a_result_is_not_overwritten_by_the_next_call():
    first = average_blocks(np.full((60, 80, 3), 7, np.uint8), 3, 4)
    average_blocks(np.full((60, 80, 3), 200, np.uint8), 3, 4)
    assert (first == 7).all()


def test_threads_do_not_share_buffers():
    pictures = [np.random.default_rng(n).integers(0, 256, (120, 160, 3), np.uint8) for n in range(4)]
    wrong: list[object] = []

    def work(pixels) -> None:
        expected = plainly(pixels, 3, 4)
        answers = (average_blocks(pixels, 3, 4) for _ in range(200))
        wrong.extend(answer for answer in answers if not np.array_equal(answer, expected))

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(901, 700, 1, 3), (1203, 800, 2, 7), (999, 900, 3, 200)]
)
def test_large_pictures_are_averaged_in_strips_with_the_same_result(
    height: int, width: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    whole = average_blocks(pixels, rows, columns)
    monkeypatch.setattr(averaging, "_SUMS_BYTES", 50_000)
    monkeypatch.setattr(averaging, "_STRIP_SUMS_BYTES", 20_000)
    np.testing.assert_array_equal(average_blocks(pixels, rows, columns), whole)
