"""Why a video device gives no pictures; no such device is here, so the kernel's answers are made up."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys

import pytest

from edge_client.sources.v4l2 import explain_device, is_video_device

# A character device that hardly any program has open.
DEVICE = "/dev/full"
CAPTURE, METADATA, OUTPUT, HAS_NODE = 0x1, 0x0080_0000, 0x2, 0x8000_0000


def capability(device: int, node: int) -> bytes:
    return struct.pack("=16s32s32sIII12x", b"uvcvideo", b"HD Webcam: C270", b"usb-1", 1, device, node)


@pytest.mark.parametrize(
    ("device", "node", "told"),
    [
        (CAPTURE | HAS_NODE, CAPTURE, ""),
        (
            CAPTURE | METADATA | HAS_NODE,
            METADATA,
            "HD Webcam: C270: this node of the camera gives no pictures",
        ),
        (CAPTURE, 0, ""),
        (OUTPUT, 0, "gives no pictures"),
    ],
    ids=["camera", "its metadata", "old driver", "output"],
)
def test_nodes_of_a_camera_are_told_apart(device, node, told, monkeypatch):
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: capability(device, node))
    assert told in explain_device(DEVICE)
    assert bool(explain_device(DEVICE)) == bool(told)


def test_the_program_that_has_the_camera_is_named(monkeypatch):
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: capability(CAPTURE, 0))
    code = f"import sys; file = open({DEVICE!r}, 'rb'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        told = explain_device(DEVICE)
        program.kill()
    assert f"HD Webcam: C270 is in use by python (process {program.pid})" in told.replace("python3", "python")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "usermod -aG root"),  # the group of the device
        (errno.EBUSY, "in use"),
        (errno.ENODEV, "plug it in again"),
        (errno.ENOENT, "is it plugged in?"),
    ],
)
def test_device_that_cannot_be_opened_has_its_way_out(number, told, monkeypatch):
    real = os.open

    def refuse(path, *rest, **more):
        if path == DEVICE:
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert told in explain_device(DEVICE)


def test_files_in_memory_and_elsewhere_are_no_cameras(tmp_path):
    film = tmp_path / "film.mp4"
    film.touch()
    assert not is_video_device(str(film))
    assert not is_video_device("/dev/shm/none.mp4")  # noqa: S108 - only named
    assert not is_video_device(str(tmp_path / "none.mp4"))
    assert is_video_device("/dev/video7")
