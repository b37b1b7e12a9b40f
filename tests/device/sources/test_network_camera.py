"""Network cameras through the real OpenCV: what they give, and why they give nothing."""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import DeviceError
from edge_client.sources.video import VideoSource
from tests.device.sources.reader import Reader
from tests.fakes.network_camera import NetworkCamera, RtspCamera

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("cv2", reason="OpenCV is an extra of the device")


@pytest.fixture(scope="module")
def network_camera() -> Iterator[NetworkCamera]:
    with NetworkCamera() as camera:
        yield camera


def read(address: str, count: int = 2) -> list[str]:
    with Reader(VideoSource(address, first_pause_s=0.01)) as reader:
        names = reader.names(count)
        assert all(int(frame.pixels[24, 32].argmax()) == 2 for frame in reader.frames), "blue, in RGB"
        return names


@pytest.mark.parametrize("path", ["stream?pwd=S3CRET", "snapshot?pwd=S3CRET"])
def test_stream_and_single_pictures_are_read_again_and_again(path, network_camera, caplog, capfd):
    caplog.set_level(logging.INFO)
    assert set(read(f"http://127.0.0.1:{network_camera.port}/{path}")) == {network_camera.shown}
    assert caplog.text.count("gives one picture at a time") == path.startswith("snapshot")
    assert caplog.text.count("gives 64x48") == 1
    assert "S3CRET" not in caplog.text + "".join(capfd.readouterr())


def test_a_scheme_may_be_written_in_capitals(network_camera):
    assert set(read(f"Http://127.0.0.1:{network_camera.port}/stream")) == {network_camera.shown}


def test_single_pictures_of_the_night_are_pictures(network_camera):
    source = VideoSource(f"http://127.0.0.1:{network_camera.port}/night", first_pause_s=0.01)
    with Reader(source) as reader:
        reader.names(2)
    assert not any(frame.pixels.any() for frame in reader.frames)


@pytest.mark.parametrize("password", ["S3%23/@CRET", "S3#/@CRET", "S3%23%2F%40CRET"])
def test_password_with_any_characters_reaches_the_camera(password, network_camera):
    address = f"http://viewer:{password}@127.0.0.1:{network_camera.port}/private"
    assert set(read(address)) == {network_camera.shown}


def test_rtsp_goes_over_tcp_first_and_a_stream_that_cannot_be_played_is_named():
    with (
        RtspCamera() as camera,
        pytest.raises(DeviceError, match="its stream cannot be played; choose"),
    ):
        next(VideoSource(f"rtsp://viewer:S3CRET@127.0.0.1:{camera.port}/x").frames(threading.Event()))
    transports = [line for line in camera.lines if line.startswith("Transport:")]
    assert transports[0].startswith("Transport: RTP/AVP/TCP")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://{}/private?token=S3CRET", "asks for user and password"),
        ("http://viewer:S3CRET@{}/private", "asks for user and password"),
        ("http://{}/S3CRET/other", "no stream of this path"),
        ("rtsp://viewer:S3@x/CRET@{}/x", "no clear host and port.*%2F"),
        ("rtsp://viewer:S3/CRET@{closed}/x", "refuses port"),
        ("rtsp://viewer:S3CRET@{closed}/x", "refuses port"),
        ("rtsp://viewer:S3CRET@nowhere.invalid/x", "knows no host"),
        ("rtspsrc location=rtsp://viewer:S3CRET@{} ! appsink", "GSTREAMER|clear|cannot be opened"),
    ],
)
def test_camera_that_gives_nothing_says_why_and_no_secret(address, why, network_camera, caplog, capfd):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{reserved.getsockname()[1]}"
        filled = address.format(f"127.0.0.1:{network_camera.port}", closed=closed)
        with pytest.raises(DeviceError, match=f"cannot be opened: .*({why})") as told:
            next(VideoSource(filled).frames(threading.Event()))
    said = str(told.value) + caplog.text + "".join(capfd.readouterr())
    assert "S3" not in said
    assert "CRET" not in said
