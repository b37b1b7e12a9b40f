"""What is shown of an address: scheme, host and port, and nothing that may be a secret."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.contract.addresses import shown_address, shown_below, with_escaped_user, without_secrets

# Address -> what is shown of it.
SHOWN = {
    "rtsp://user:S3CRET@cam/stream": "rtsp://cam",
    "rtsp://user:S3@CRET@cam:554/stream": "rtsp://cam:554",
    "rtsp://user:S3:CRET@cam:554/stream": "rtsp://cam:554",
    "rtsp://user:S3%2FCRET@cam/stream": "rtsp://cam",
    "rtsp://user:S3%CRET@cam/stream": "rtsp://cam",
    "rtsps://192.168.1.1:7441/S3CRET?enableSrtp": "rtsps://192.168.1.1:7441",
    "rtsp://[2001:db8::1]:554/S3CRET": "rtsp://[2001:db8::1]:554",
    "rtsp://u:S3CRET@[fe80::1%25eth0]/x": "rtsp://[fe80::1%25eth0]",
    "http://cam/snapshot.cgi?user=a&pwd=S3CRET": "http://cam",
    "http://cam:8080/snapshot.cgi?user=a@b.org&pwd=S3CRET": "http://cam:8080",
    "http://cam/token=S3CRET/video.mjpg": "http://cam",
    "https://u:S3CRET@s3.example.com/bucket?X-Amz-Signature=S3CRET#S3CRET": "https://s3.example.com",
    "RTSP://USER:S3CRET@CAM/x": "RTSP://CAM",
    # Not escaped: the host is uncertain.
    "rtsp://user:S3/CRET@cam/stream": "rtsp://…",
    "rtsp://S3CRET:12/34@cam/stream": "rtsp://…",
    "rtsp://user:S3#CRET@cam/stream": "rtsp://…",
    "rtsp://user:S@3/CRET@cam/stream": "rtsp://…",
    # Slips of the pen.
    "rtsp:/user:S3CRET@cam/stream": "rtsp:…",
    "user:S3CRET@cam/stream": "…",
    "192.168.1.5/live?user=admin&password=S3CRET": "…",
    "//cam.local:8080/snapshot.cgi?pwd=S3CRET": "…",
    "cam.local:554/S3CRET": "…",
    "192.168.1.5/S3CRET": "…",
    "rtspsrc location=rtsp://cam/x user-pw=S3CRET ! decodebin ! appsink": "rtspsrc …",
    # No secrets in these.
    "/srv/film@home:1.mp4": "/srv/film@home:1.mp4",
    "/dev/v4l/by-id/usb-046d_Webcam-video-index0": "/dev/v4l/by-id/usb-046d_Webcam-video-index0",
    "file:///srv/edge-models": "file:///srv/edge-models",
    "./192.168.1.5/film.mp4": "./192.168.1.5/film.mp4",
    "2026/12:30/film?.mp4": "2026/12:30/film?.mp4",
    "12:30/film.mp4": "12:30/film.mp4",
    "0": "0",
}


@pytest.mark.parametrize(("address", "shown"), SHOWN.items())
def test_only_scheme_host_and_port_of_an_address_are_shown(address, shown):
    assert shown_address(address) == shown
    assert shown_address(shown) == shown


@pytest.mark.parametrize("address", [one for one in SHOWN if "://" in one and " " not in one])
@pytest.mark.parametrize("sentence", ["{}: no answer", "({}) failed", "see '{}', or {}.", '"{}"'])
def test_a_sentence_with_an_address_tells_no_secret(sentence, address):
    text = without_secrets(sentence.format(address, address))
    assert text == sentence.format(SHOWN[address], SHOWN[address])
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("address", "opened"),
    [
        ("rtsp://u:p#w@cam:554/x", "rtsp://u:p%23w@cam:554/x"),
        ("rtsp://u:p/w?a@b@cam/x?y=1", "rtsp://u:p%2Fw%3Fa%40b@cam/x?y=1"),
        ("rtsp://u:p@w@cam/x", "rtsp://u:p@w@cam/x"),
        ("rtsp://u:p%23w@cam/x@hd", "rtsp://u:p%23w@cam/x@hd"),
        ("rtsp://cam:554/x@hd", "rtsp://cam:554/x@hd"),
        ("rtsp://[::1]:554/x@hd", "rtsp://[::1]:554/x@hd"),
        ("rtsp://cam/x@hd", "rtsp://cam/x@hd"),
        ("film.mp4", "film.mp4"),
    ],
)
def test_user_and_password_are_escaped_where_an_address_is_invalid_without_that(address, opened):
    assert with_escaped_user(address) == opened


def test_an_object_of_a_store_is_named_without_the_path_of_the_store():
    shown = shown_below("https://u:p@cdn.example.com/T0KEN/models", "metadata/1.root.json")
    assert shown == "https://cdn.example.com/…/metadata/1.root.json"
    assert without_secrets(f"{shown}: 403 Forbidden") == f"{shown}: 403 Forbidden"
    assert (
        shown_below("file:///srv/models/", "metadata/1.root.json")
        == "file:///srv/models/metadata/1.root.json"
    )


def test_the_path_that_urllib3_names_apart_is_not_shown():
    text = (
        "host='h', port=443): Max retries exceeded with url: /bucket/key?X-Amz-Signature=S3CRET (Caused by x)"
    )
    assert "S3CRET" not in without_secrets(text)
    assert "(Caused by x)" in without_secrets(text)
    assert without_secrets("[broker] url: no such setting") == "[broker] url: no such setting"


@given(st.text(alphabet="ab1:@/?#%=[]. …\\", max_size=30))
def test_any_text_behind_a_scheme_can_be_shown_twice(rest):
    once = shown_address(f"rtsp://{rest}")
    assert once.startswith("rtsp://")
    assert shown_address(once) == once
    assert without_secrets(once) == once


@given(st.text(alphabet="abc1:@/?#%& ", max_size=12), st.sampled_from(["", "/x", "/x@y", "?a=b", ":5/live"]))
def test_no_password_is_shown_whatever_is_in_it(password, behind):
    assert "KEY" not in shown_address(f"rtsp://KEY{password}KEY:KEY{password}KEY@cam{behind}")
