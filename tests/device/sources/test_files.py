"""A list of files gives each picture once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import DeviceError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.files import ImageFiles, find_pictures
from edge_client.sources.opening import open_source
from tests.device.sources.reader import BLUE, RED, listing, put

if TYPE_CHECKING:
    from pathlib import Path


def test_each_file_comes_once_in_order_and_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [tmp_path / name for name in ("c.png", "broken.png", "missing.png", "a.png")]
    for path, content in zip(paths, (RED, b"", b"", BLUE), strict=True):
        path.write_bytes(content)
    paths[2].unlink()
    frames = list(ImageFiles(paths).frames(threading.Event()))
    assert [frame.source for frame in frames] == ["c.png", "a.png"]
    for frame in frames:
        frame.done()
    assert listing(tmp_path) == ["a.png", "broken.png", "c.png"]
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == [str(paths[1]), str(paths[2])]


def test_pattern_folder_and_file_find_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(RED)
    everything = (tmp_path / "a.JPG", tmp_path / "b.png")
    assert find_pictures(str(tmp_path)) == everything
    assert find_pictures(str(tmp_path / "[ab].*")) == everything
    assert find_pictures(str(tmp_path / "b.png")) == everything[1:]
    with pytest.raises(DeviceError, match="no pictures there"):
        find_pictures(str(tmp_path / "x*"))


def test_existing_file_with_glob_characters_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "shot[1].png"
    path.write_bytes(RED)
    assert find_pictures(str(path)) == (path,)


def test_files_source_ends_by_itself(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    source = open_source(SourceSettings(kind="files", path=str(tmp_path / "*.png")))
    assert [frame.source for frame in source.frames(threading.Event())] == ["a.png"]


def test_links_in_a_folder_are_left_out(tmp_path: Path) -> None:
    camera = tmp_path / "camera"
    camera.mkdir()
    for path in (tmp_path / "secret.png", camera / "a.png"):
        path.write_bytes(RED)
    (camera / "b.png").symlink_to(tmp_path / "secret.png")
    assert find_pictures(str(camera)) == (camera / "a.png",)
    assert find_pictures(str(camera / "*.png")) == (camera / "a.png",)
    assert find_pictures(str(camera / "b.png")) == (tmp_path / "secret.png",)  # named by the owner
