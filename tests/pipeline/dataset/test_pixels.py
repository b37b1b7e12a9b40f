"""Pictures of a snapshot as pixels: in order, through the device's preprocessing, and unchanged."""

from __future__ import annotations

import dataclasses
import hashlib
import threading

import numpy as np
import pytest

from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.preprocessing import decode_picture, fit_pixels
from luigi_tasks.dataset.pixel_cache import PixelCache
from luigi_tasks.dataset.pixels import load_pixels
from luigi_tasks.dataset.records import Entry, Picture
from luigi_tasks.dataset.sources import FolderSource
from luigi_tasks.progress import ignore_progress
from tests.fakes.datasets import picture_bytes, write_tree


def pictures_of(tree):
    return [
        Picture(path=path, sha256=hashlib.sha256(data).hexdigest(), label=path[0], split="train")
        for path, data in tree.items()
    ]


@dataclasses.dataclass
class FailingSource:
    """Serves pictures until it breaks off at one; counts how many were asked for."""

    tree: dict[str, bytes]
    breaks_at: str = ""
    slow_after: int = 1_000_000
    url: str = "s3://fake/pictures"
    threads: int = 4

    def __post_init__(self):
        self.asked = []
        self.broke = threading.Event()

    def listing(self):
        return tuple(Entry(path, len(data), "") for path, data in self.tree.items())

    def read(self, path):
        self.asked.append(path)
        if path == self.breaks_at:
            self.broke.set()
            msg = f"{path}: broke off"
            raise TransportError(msg)
        if self.breaks_at:
            self.broke.wait(10)  # no thread runs ahead of the failure
        if len(self.asked) > self.slow_after:
            threading.Event().wait(0.3)
        return self.tree[path]


def test_pixels_are_what_the_device_would_see_in_the_order_asked_for(tmp_path):
    tree = {f"a/{number}.png": picture_bytes(number, size=10 + number) for number in range(40)}
    source = FolderSource(write_tree(tmp_path, tree))
    pictures = pictures_of(tree)[::-1]
    reports = []
    pixels = load_pixels(source, pictures, 6, 9, lambda *report: reports.append(report))
    assert pixels.shape == (40, 6, 9, 3)
    assert pixels.dtype == np.uint8
    for picture, found in zip(pictures, pixels, strict=True):
        assert np.array_equal(found, fit_pixels(decode_picture(tree[picture.path]), 6, 9))
    assert reports == [("decoding pictures", done, 40) for done in range(1, 41)]


def test_pictures_are_read_and_decoded_in_parallel():
    """No picture comes before as many are asked for as the source has threads."""
    tree = {f"a/{number}.png": picture_bytes(number) for number in range(12)}
    together = threading.Barrier(4, timeout=20)

    class Meeting(FailingSource):
        def read(self, path):
            together.wait()
            return super().read(path)

    assert load_pixels(Meeting(tree), pictures_of(tree), 8, 8, ignore_progress).shape == (12, 8, 8, 3)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_broken_cache_file_is_decoded_again_and_put_right(tmp_path, damage):
    tree = {f"a/{number}.png": picture_bytes(number) for number in range(6)}
    cache = PixelCache(tmp_path, 8, 8)

    def load():
        source = FailingSource(tree)
        pixels = load_pixels(source, pictures_of(tree), 8, 8, ignore_progress, cache)
        return sorted(source.asked), pixels

    _, expected = load()
    assert load()[0] == []
    [path] = cache.folder.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage == "flipped" else data[:-1])
    asked, pixels = load()
    assert asked == (["a/5.png"] if damage == "flipped" else sorted(tree))
    np.testing.assert_array_equal(pixels, expected)
    assert load()[0] == []


def test_no_pictures_give_no_pixels(tmp_path):
    assert load_pixels(FolderSource(tmp_path), [], 6, 9, ignore_progress).shape == (0, 6, 9, 3)


def test_a_picture_that_changed_since_the_snapshot_is_named(tmp_path):
    tree = {f"a/{number}.png": picture_bytes(number) for number in range(5)}
    source = FolderSource(write_tree(tmp_path, tree))
    (tmp_path / "a" / "3.png").write_bytes(picture_bytes(99))
    with pytest.raises(InputError, match=r"a/3\.png changed since the snapshot was taken; run again"):
        load_pixels(source, pictures_of(tree), 8, 8, ignore_progress)


def test_a_picture_that_vanished_since_the_snapshot_is_named(tmp_path):
    tree = {f"a/{number}.png": picture_bytes(number) for number in range(5)}
    source = FolderSource(write_tree(tmp_path, tree))
    source.listing()
    (tmp_path / "a" / "3.png").unlink()
    with pytest.raises(InputError, match=r"a/3\.png: No such file"):
        load_pixels(source, pictures_of(tree), 8, 8, ignore_progress)


def test_after_a_failure_the_rest_is_not_read():
    tree = {f"a/{number:03}.png": picture_bytes(number) for number in range(300)}
    source = FailingSource(tree, breaks_at="a/000.png")
    with pytest.raises(TransportError, match=r"a/000\.png: broke off"):
        load_pixels(source, pictures_of(tree), 8, 8, ignore_progress)
    assert len(source.asked) < 200


def test_after_an_interruption_the_rest_is_not_read():
    tree = {f"a/{number:03}.png": picture_bytes(number) for number in range(100)}
    source = FailingSource(tree, slow_after=10)

    def interrupt(_what, done, _total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_pixels(source, pictures_of(tree), 8, 8, interrupt)
    assert len(source.asked) <= 10 + 2 * source.threads
