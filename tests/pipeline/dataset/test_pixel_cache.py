"""Decoded pictures on disk: found by content, checked, shared, and never in the way."""

from __future__ import annotations

import concurrent.futures
import logging
import logging.handlers
import queue
import resource

import numpy as np
import pytest

from luigi_tasks.dataset.pixel_cache import SMALL_FILES, PixelCache
from luigi_tasks.storage.cache import ContentCache


def names(count, start=0):
    return [f"{number:064x}" for number in range(start, start + count)]


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), np.uint8)


@pytest.fixture
def cache(tmp_path):
    return PixelCache(tmp_path, 6, 8)


def found(cache, wanted):
    pixels = np.zeros((len(wanted), 6, 8, 3), np.uint8)
    return cache.fill(wanted, pixels), pixels


def test_what_was_kept_is_found_in_any_order(cache):
    kept = pictures(5)
    cache.keep(names(5), kept)
    wanted = [*names(5)[::-1], names(1)[0], "f" * 64]
    missing, pixels = found(cache, wanted)
    assert missing == [6]
    assert np.array_equal(pixels[:5], kept[::-1])
    assert np.array_equal(pixels[5], kept[0])


def test_other_sizes_are_apart(cache, tmp_path):
    cache.keep(names(2), pictures(2))
    assert PixelCache(tmp_path, 8, 6).fill(names(2), np.zeros((2, 8, 6, 3), np.uint8)) == [0, 1]


@pytest.mark.parametrize("place", ["a row", "the header", "the length"])
def test_flipped_byte_is_noticed(cache, caplog, place):
    kept = pictures(3)
    cache.keep(names(3), kept)
    [path] = cache.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[{"a row": -1, "the header": 20, "the length": 7}[place]] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "luigi-interface"):
        missing, pixels = found(cache, names(3))
    assert missing == ([2] if place == "a row" else [0, 1, 2])
    assert "damaged" in caplog.text
    cache.keep([names(3)[number] for number in missing], kept[missing])
    missing, pixels = found(cache, names(3))
    assert missing == []
    assert np.array_equal(pixels, kept)


@pytest.mark.parametrize("left", [0, 5, 100])
def test_truncated_file_is_noticed(cache, left):
    cache.keep(names(3), pictures(3))
    [path] = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:left])
    assert found(cache, names(3))[0] == [0, 1, 2]


def test_many_small_files_become_one(cache):
    kept = pictures(SMALL_FILES + 1)
    for number, name in enumerate(names(SMALL_FILES + 1)):
        cache.keep([name], kept[number : number + 1])
    assert len(list(cache.folder.iterdir())) == 1
    missing, pixels = found(cache, names(SMALL_FILES + 1))
    assert missing == []
    assert np.array_equal(pixels, kept)


def _write(arguments):
    folder, seed = arguments
    PixelCache(folder, 6, 8).keep(names(50), pictures(50))
    PixelCache(folder, 6, 8).keep(names(20, start=100 * seed), pictures(20, seed))


def test_processes_may_write_at_once(tmp_path):
    with concurrent.futures.ProcessPoolExecutor(4) as pool:
        list(pool.map(_write, [(tmp_path, seed) for seed in range(1, 9)]))
    cache = PixelCache(tmp_path, 6, 8)
    missing, pixels = found(cache, names(50))
    assert missing == []
    assert np.array_equal(pixels, pictures(50))
    missing, pixels = found(cache, names(20, start=800))
    assert missing == []
    assert np.array_equal(pixels, pictures(20, 8))


def _fill_a_full_disk(folder):
    """In a process of its own: no file of it can grow over 100 bytes, a log neither."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger = logging.getLogger("luigi-interface")
    logger.handlers, logger.propagate = [logging.handlers.QueueHandler(records)], False
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    pixels, objects = PixelCache(folder / "p", 6, 8), ContentCache(folder / "o")
    for _ in range(2):
        pixels.keep(names(3), pictures(3))
        objects.put("a" * 64, b"x" * 1000)
    told = [records.get().getMessage() for _ in range(records.qsize())]
    return told, found(pixels, names(3))[0], objects.get("a" * 64)


def test_full_disk_costs_speed_and_is_logged_once(tmp_path):
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        told, missing, kept = pool.submit(_fill_a_full_disk, tmp_path).result()
    assert (missing, kept) == ([0, 1, 2], None)
    assert len(told) == 2
    assert all("Free some space" in one for one in told)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_broken_object_is_dropped(tmp_path, caplog):
    cache = ContentCache(tmp_path)
    cache.put("ab", b"content")
    assert cache.get("ab") == b"content"
    [path] = [one for one in tmp_path.rglob("*") if one.is_file()]
    path.write_bytes(b"C" + path.read_bytes()[1:])
    with caplog.at_level(logging.WARNING, "luigi-interface"):
        assert cache.get("ab") is None
    assert "damaged cache entry" in caplog.text
    assert not path.exists()
