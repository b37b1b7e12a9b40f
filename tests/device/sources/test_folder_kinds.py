"""Watched folders as cameras, FTP servers and NAS systems fill them: folders of days, one file for ever."""

from __future__ import annotations

import os
import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import InputError
from edge_client.settings.frames import SourceSettings
from edge_client.sources import folder_scan, passed_over
from edge_client.sources.decoding import PictureDecoder
from edge_client.sources.folder import WatchedFolder
from edge_client.sources.folder_scan import FolderScan
from edge_client.sources.opening import open_source
from edge_client.sources.passed_over import PassedOver
from tests.device.sources.reader import BLUE, GREEN, RED, Reader, listing, put, until

if TYPE_CHECKING:
    from pathlib import Path


def day(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("after", "left"),
    [
        ("keep", ["2026/11/27/a.png", "2026/11/28/a.png", "front.png"]),
        ("move", ["done/2026/11/27/a.png", "done/2026/11/28/a.png", "done/front.png"]),
        ("delete", []),
    ],
)
def test_folders_of_days_are_watched_also_those_that_appear_later(tmp_path, after, left):
    put(day(tmp_path, "2026/11/27") / "a.png", RED, age_s=100)
    put(tmp_path / "front.png", GREEN)
    with Reader(open_source(SourceSettings(path=str(tmp_path), after=after, recursive=True))) as reader:
        assert reader.names(2) == ["2026/11/27/a.png", "front.png"]
        put(day(tmp_path, "2026/11/28") / "a.png", BLUE)
        assert reader.names(3)[2] == "2026/11/28/a.png"
        until(lambda: listing(tmp_path) == left)
    assert (tmp_path / "2026/11/27").is_dir(), "an FTP server may be in it"


def test_subfolders_are_left_alone_and_named_where_nobody_asked_for_them(tmp_path, caplog):
    put(day(tmp_path, "2026/11/27") / "a.png", RED)
    passed = PassedOver()
    with Reader(WatchedFolder(tmp_path, passed_over=passed)) as reader:
        until(lambda: passed.describe() is not None)
        assert reader.frames == []
    assert passed.describe() == "1 subfolders ([source] recursive = true looks into them) (2026)"
    assert "passed over: 1 subfolders ([source] recursive = true looks into them) (2026)" in caplog.text


def test_what_a_nas_and_this_daemon_put_there_is_not_read(tmp_path):
    for name in ("@eaDir/a.png", "#recycle/b.png", ".Trash/c.png", "done/d.png", "broken/e.png"):
        put(day(tmp_path, name.split("/", maxsplit=1)[0]) / name.split("/")[1], RED)
    put(day(tmp_path, "archive/done") / "f.png", RED, age_s=90)
    outside = day(tmp_path.parent, f"{tmp_path.name}-outside")
    put(outside / "g.png", RED)
    (tmp_path / "link").symlink_to(outside)
    put(tmp_path / "last.png", RED, age_s=10)
    with Reader(WatchedFolder(tmp_path, recursive=True, settle_s=0.1)) as reader:
        assert reader.names(2) == ["archive/done/f.png", "last.png"]


@pytest.mark.parametrize("way", ["rename", "in place"])
def test_file_that_is_replaced_faster_than_it_settles_is_classified_again_and_again(tmp_path, way):
    latest, over = tmp_path / "latest.png", threading.Event()

    def write() -> None:
        number = 0
        while not over.wait(0.15):
            number += 1
            content = (RED, GREEN, BLUE)[number % 3]
            if way == "rename":
                put(latest, content, age_s=0)
            else:
                latest.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Reader(WatchedFolder(tmp_path, settle_s=10)) as reader:
            assert set(reader.names(6)) == {"latest.png"}
    finally:
        over.set()
        writer.join()
    colours = [int(frame.pixels[0, 0].argmax()) for frame in reader.frames]
    assert len(set(colours)) > 1


def test_one_file_can_be_watched_before_it_is_there_and_through_the_owners_link(tmp_path, caplog):
    """As the program motion leaves it: lastsnap.jpg is a link to the newest picture."""
    for number in range(3):
        put(tmp_path / f"{number}.png", RED)
    with Reader(open_source(SourceSettings(path=str(tmp_path / "last.png"), settle_s=0.1))) as reader:
        (tmp_path / "last.png").symlink_to(tmp_path / "0.png")
        assert reader.names(1) == ["last.png"]
        put(tmp_path / "new.png", BLUE)
        (tmp_path / "last.new").symlink_to(tmp_path / "new.png")
        (tmp_path / "last.new").rename(tmp_path / "last.png")
        assert reader.names(2) == ["last.png"] * 2
    assert reader.frames[1].pixels[0, 0].tolist() == [0, 0, 255]
    assert caplog.records == []


def test_files_passed_over_are_counted_and_each_kind_is_named_once(tmp_path, monkeypatch, caplog):
    for name in ("a.txt", "b.mp4", ".c.png", "d.png.part", "e.jpg.filepart", "f.PNG.tmp"):
        (tmp_path / name).write_bytes(RED)
    (tmp_path / "g.png").touch()
    (tmp_path / "h.png").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "i.png")
    monkeypatch.setattr(passed_over, "_STAYS_S", 0.3)
    passed = PassedOver()
    with Reader(WatchedFolder(tmp_path, settle_s=0, passed_over=passed)) as reader:
        put(tmp_path / "real.JPG", RED)
        reader.names(1)
        (tmp_path / "a2.txt").touch()
        until(lambda: "3 without the name" in str(passed.describe()))
        until(lambda: "uploads" in caplog.text)
    told = str(passed.describe())
    for part in (
        "1 hidden (.c.png)",
        "3 uploads",
        "1 empty (g.png)",
        "1 links",
        "1 no regular files (i.png)",
    ):
        assert part in told
    assert len(caplog.records) == 6, "each kind once"
    assert (tmp_path / "g.png").exists()


def test_upload_that_begins_empty_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_scan, "BROKEN_AFTER_S", 0.1)
    with Reader(WatchedFolder(tmp_path, settle_s=0.1, after="move")) as reader:
        with (tmp_path / "a.png").open("wb") as file:
            time.sleep(0.5)  # longer than a broken file is given
            file.write(RED)
        assert reader.names(1) == ["a.png"]
    assert listing(tmp_path) == ["done/a.png"]


def test_file_that_may_not_be_read_yet_is_counted_and_read_once_it_may(tmp_path, monkeypatch, caplog):
    """Root may read everything, so the refusal is made here."""
    monkeypatch.setattr(folder_scan, "STARVED_AFTER_S", 0.1)
    refused = threading.Event()

    class Refused(PictureDecoder):
        def decode_file(self, path, *, follow_link=False):
            if not refused.is_set():
                msg = f"{path}: cannot be read"
                raise InputError(msg) from PermissionError(13, "Permission denied")
            return super().decode_file(path, follow_link=follow_link)

    put(tmp_path / "a.png", RED)
    passed = PassedOver()
    source = WatchedFolder(tmp_path, after="delete", decoder=Refused(), passed_over=passed)
    with Reader(source) as reader:
        until(lambda: passed.describe() == "1 that this user may not read (a.png)")
        refused.set()
        assert reader.names(1) == ["a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: passed over: 1 that this user may not read (a.png)"
    ]


def test_mount_that_is_away_for_a_while_brings_no_picture_twice(tmp_path, monkeypatch):
    """The folder below the mount point is on another file system, and empty."""
    disk, below = day(tmp_path, "disk"), day(tmp_path, "below")
    place = tmp_path / "camera"
    devices = {disk: 7, below: 8}
    stat = os.stat

    class Mounted:
        def __init__(self) -> None:
            self.st_dev = devices[place.resolve()]

    monkeypatch.setattr(os, "stat", lambda path, **k: Mounted() if path == place else stat(path, **k))

    def mount(folder: Path) -> None:
        place.unlink(missing_ok=True)
        place.symlink_to(folder)

    put(disk / "a.png", RED)
    mount(disk)
    scan = FolderScan(place, settle_s=0)
    assert scan.look(0.0) == ["a.png"]
    scan.file("a.png").done = True
    mount(below)
    assert scan.look(10.0) == []
    mount(disk)
    put(disk / "b.png", RED)
    assert scan.look(20.0) == ["b.png"]


def test_subfolder_that_cannot_be_listed_for_a_while_brings_no_picture_twice(tmp_path, monkeypatch, caplog):
    put(day(tmp_path, "2026") / "a.png", RED)
    passed = PassedOver()
    scan, scandir = FolderScan(tmp_path, settle_s=0, recursive=True, passed_over=passed), os.scandir
    assert scan.look(0.0) == ["2026/a.png"]
    scan.file("2026/a.png").done = True

    def refuse(path):
        if path != tmp_path:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert scan.look(100.0) == []
    assert passed.describe() == "1 subfolders that this user may not read (2026/.)"
    monkeypatch.setattr(os, "scandir", scandir)
    assert scan.look(101.0) == []
    assert passed.describe() is None
    shutil.rmtree(tmp_path / "2026")
    assert scan.look(102.0) == []


def test_folders_of_past_days_are_not_listed_at_each_look(tmp_path, monkeypatch):
    for number in range(5):
        put(day(tmp_path, f"{number}") / "a.png", RED)
    listed, scandir = [], os.scandir

    def note(path):
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", note)
    scan = FolderScan(tmp_path, settle_s=0, recursive=True)
    for name in scan.look(0.0):
        scan.file(name).done = True
    scan.look(50.0)
    scan.look(100.0)
    listed.clear()
    scan.look(101.0)
    assert listed == [tmp_path]
    put(tmp_path / "3" / "b.png", GREEN)
    assert scan.look(102.0) == ["3/b.png"], "a new file changes its folder"
    assert scan.count() == 6


def test_file_whose_inode_changes_is_the_same_picture(tmp_path, monkeypatch):
    """As on sshfs and rclone, whose inodes are those of a cache."""
    put(tmp_path / "a.png", RED)
    scan, signature_of = FolderScan(tmp_path, settle_s=0), folder_scan.signature_of
    assert scan.look(0.0) == ["a.png"]
    scan.file("a.png").done = True
    for now in (0.1, 10.0, 20.0):
        monkeypatch.setattr(folder_scan, "signature_of", lambda found, i=now: (i, *signature_of(found)[1:]))
        assert scan.look(now) == []
    put(tmp_path / "a.png", GREEN)
    assert scan.look(30.0) == ["a.png"]


def test_upload_to_a_server_whose_clock_is_behind_is_read_once_it_is_complete(tmp_path, monkeypatch):
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3600)
    scan = FolderScan(tmp_path, settle_s=1.0)
    with (tmp_path / "a.png").open("wb") as file:
        for second in range(4):
            file.write(RED[second * 10 : second * 10 + 10])
            file.flush()
            assert scan.look(second * 0.9) == []
        file.write(RED[40:])
    assert scan.look(3.6) == []
    assert scan.look(4.7) == ["a.png"]
    put(tmp_path / "b.png", BLUE, age_s=3700)
    assert scan.look(4.8) == ["b.png", "a.png"], "what is moved in whole is read at once"
