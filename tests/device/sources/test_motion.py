"""The region of interest, and which frames are skipped."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.settings.frames import SourceSettings, read_region
from edge_client.sources.motion import MotionFilter
from edge_client.sources.source import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

pytestmark = pytest.mark.runtime


class Scenes:
    """A source of given pictures that records which frames were released."""

    def __init__(self, *pictures: NDArray[np.uint8]) -> None:
        self._pictures = pictures
        self.done: list[int] = []

    def frames(self, _stop: threading.Event) -> Iterator[Frame]:
        for number, pixels in enumerate(self._pictures):
            yield Frame(str(number), pixels, lambda number=number: self.done.append(number))  # type: ignore[misc]


def watch(scenes: Scenes, clock: Any = lambda: 0.0, **settings: Any) -> list[Frame]:
    defaults: dict[str, Any] = {"region": None, "min_change_percent": 1.0, "longest_still_s": 60.0}
    source = MotionFilter(scenes, **{**defaults, **settings}, clock=clock)
    return list(source.frames(threading.Event()))


def wall(seed: int = 0) -> NDArray[np.uint8]:
    """A still scene with a camera's noise."""
    noise = np.random.default_rng(seed).normal(0, 4, (480, 640, 3))
    return np.clip(120 + noise, 0, 255).astype(np.uint8)


def with_bird(picture: NDArray[np.uint8], left: int = 300) -> NDArray[np.uint8]:
    changed = picture.copy()
    changed[200:280, left : left + 80] = 20
    return changed


def names(frames: list[Frame]) -> list[str]:
    return [frame.source for frame in frames]


def test_noise_is_skipped_and_a_bird_is_not():
    scenes = Scenes(wall(0), wall(1), wall(2), with_bird(wall(3)), with_bird(wall(4)), wall(5))
    assert names(watch(scenes)) == ["0", "3", "5"]


def test_skipped_frames_are_done_at_once_and_others_by_the_reader():
    scenes = Scenes(wall(0), wall(1), with_bird(wall(2)))
    frames = watch(scenes)
    assert scenes.done == [1]
    frames[0].done()
    assert scenes.done == [1, 0]


def test_min_change_percent_is_the_threshold():
    scenes = Scenes(wall(0), with_bird(wall(1)))
    assert names(watch(scenes, min_change_percent=1.0)) == ["0", "1"]
    assert names(watch(scenes, min_change_percent=10.0)) == ["0"]


def test_a_slow_change_adds_up():
    scenes = Scenes(*(np.full((480, 640, 3), 100 + 3 * step, np.uint8) for step in range(12)))
    assert names(watch(scenes)) == ["0", "6"]


def test_longest_still_s_lets_an_unchanged_frame_through():
    times = iter(range(0, 100, 25))
    scenes = Scenes(*(wall(seed) for seed in range(4)))
    assert names(watch(scenes, clock=lambda: next(times), longest_still_s=50.0)) == ["0", "2"]


def test_another_frame_size_is_a_change():
    scenes = Scenes(wall(0), wall(0)[:240].copy())
    assert names(watch(scenes)) == ["0", "1"]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (33, 2, 3)])
def test_odd_sizes_are_compared_too(shape):
    scenes = Scenes(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.full(shape, 99, np.uint8))
    assert names(watch(scenes)) == ["0", "2"]


def test_only_the_region_counts():
    region = read_region("0, 0, 0.25, 1")
    scenes = Scenes(wall(0), with_bird(wall(1), left=300), with_bird(wall(2), left=40))
    frames = watch(scenes, region=region)
    assert names(frames) == ["0", "2"]
    assert frames[0].pixels.shape == (480, 160, 3)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("0,0,1,1", (480, 640)), ("0.5, 0.25, 1, 0.75", (240, 320)), ("0.999, 0.999, 1, 1", (1, 1))],
)
def test_a_region_is_a_share_of_the_frame(text, shape):
    region = read_region(text)
    assert region is not None
    assert region.cut(wall()).shape == (*shape, 3)
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert region.cut(tiny).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "text", ["1", "0,0,1", "0,0,1,1,1", "a,b,c,d", "0.5,0,0.5,1", "0,0,2,1", "nan,0,1,1"]
)
def test_a_wrong_region_is_named(text):
    faults = dataclasses.replace(SourceSettings(path="x"), region=text).faults()
    assert any(fault.startswith("region") for fault in faults)
