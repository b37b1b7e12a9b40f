"""Settings choose the source; wrong ones are named."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.opening import open_source


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("video", "cv2", r"pip install edge-fleet\[video\]"),
        ("picamera", "picamera2", r"edge-fleet\[picamera\]"),
    ],
)
def test_missing_extra_is_named(kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeviceError, match=extra):
        open_source(SourceSettings(kind=kind, path="0"))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kind": "webcam"}, "kind 'webcam'"),
        ({"after": "burn"}, "after 'burn'"),
        ({"path": ""}, "path is empty"),
        ({"kind": "picamera", "path": "front"}, "camera's number"),
        ({"settle_s": -1.0}, "settle_s"),
        ({"settle_s": float("nan")}, "settle_s"),
        ({"frames_per_second": -2.0}, "frames_per_second"),
        ({"width": 0}, "width and height"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, Any], fault: str) -> None:
    settings = SourceSettings(**({"path": "x"} | changes))
    with pytest.raises(SettingsError, match=fault):
        open_source(settings)


def test_all_faults_of_a_source_are_reported_at_once() -> None:
    assert len(SourceSettings(kind="?", after="?", settle_s=-1, frames_per_second=-1, width=0).faults()) == 6
