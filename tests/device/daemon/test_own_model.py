"""A daemon with a model file of one's own: no store, no keys, no channel, and everything else works."""

from __future__ import annotations

import hashlib
import json
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest
from local_services import wait_until
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.fakes.network_camera import NetworkCamera
from tests.fakes.tiny_model import tiny_labels, tiny_model

if TYPE_CHECKING:
    from tests.fakes.device_daemon import DaemonUnderTest, Watcher

pytestmark = pytest.mark.runtime

MODEL = tiny_model(kind="float32", softmax=False)
DIGEST = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def own(daemon: DaemonUnderTest) -> DaemonUnderTest:
    """The device serves a file in its folder."""
    (daemon.folder / "m.tflite").write_bytes(MODEL)
    (daemon.folder / "labels.txt").write_text("".join(f"{n} {x}\n" for n, x in enumerate(tiny_labels())))
    (daemon.folder / "root.json").unlink()
    for section in ("store", "trust"):
        del daemon.settings[section]
    daemon.settings["device"].update(model="m.tflite", labels="labels.txt")
    return daemon


def entities(own: DaemonUnderTest, prefix: str) -> tuple[mqtt.Client, dict[str, bytes]]:
    """Collect what Home Assistant would find."""
    found: dict[str, bytes] = {}
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _u, message: found.update({message.topic: bytes(message.payload)})
    client.connect(own.settings["broker"]["host"], own.settings["broker"]["port"])
    client.loop_start()
    client.subscribe(f"{prefix}/#", qos=1)
    return client, found


def test_pictures_are_answered_and_shown(own: DaemonUnderTest, watcher: Watcher) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prefix = f"ha-{watcher.fleet}"
    own.settings |= {"metrics": {"port": port}, "homeassistant": {"discovery": True, "prefix": prefix}}
    client, found = entities(own, prefix)
    own.start()
    name = own.drop("blue")
    watcher.wait(lambda w: any(result.source == name for result in w.results), f"the answer to {name}")
    result = watcher.results[-1]
    assert (result.label, result.channel, result.release) == ("blue", "", f"model-{DIGEST[:12]}")
    status = watcher.wait_status(lambda s: s.state == "serving" and s.frames > 0, "a frame in the status")
    assert (status.model, status.model_sha256) == (str(own.folder / "m.tflite"), DIGEST)
    assert "[-1, 1] is assumed" in (status.warning or "")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        assert 'predictions_total{channel="",device="camera-1",label="blue"' in answer.read().decode()
    wait_until(lambda: len(found) == 3, "three entities, and no button to update")
    assert {topic.split("/")[3] for topic in found} == {"label", "confidence", "latency"}
    client.disconnect()
    client.loop_stop()
    told = own.ask("status").stdout
    assert f"SHA-256      {DIGEST}" in told
    assert "channel" not in told
    refused = own.ask("update")
    assert refused.returncode == 2
    assert "so there is nothing to update: replace the file and restart the daemon" in refused.stderr
    (own.folder / "m.tflite").write_bytes(tiny_model(1, kind="float32"))
    watcher.wait_status(lambda s: "has changed, or is gone; the one that was loaded" in s.why, "the change")
    assert own.terminate() == 0


def test_a_bad_file_is_an_error_at_the_start_and_in_doctor(own: DaemonUnderTest) -> None:
    checks = json.loads(own.ask("doctor", "--json").stdout)["checks"]
    assert [one["name"] for one in checks if not one["passed"]] == []
    [model] = [one["detail"] for one in checks if one["name"] == "model"]
    assert f"SHA-256 {DIGEST}, 3 labels, 32x32 pixels; warning: the model does not say" in model
    assert not {"store", "root of trust", "release of stable"} & {one["name"] for one in checks}
    (own.folder / "m.tflite").write_bytes(b"PK\x03\x04")
    refused = own.ask("run")
    assert refused.returncode == 2
    assert "[device] model: " in refused.stderr
    assert "a damaged zip archive" in refused.stderr


def test_a_daemon_that_is_stopped_in_the_middle_of_a_stream_ends_well(own: DaemonUnderTest) -> None:
    """OpenCV's thread, which waits for the next frame, must not meet an interpreter that shuts down."""
    pytest.importorskip("cv2", reason="OpenCV is an extra of the device")
    with NetworkCamera() as camera:
        own.settings["source"] = {"kind": "video", "path": f"http://127.0.0.1:{camera.port}/slow"}
        own.settings |= {"broker": {"host": ""}, "sinks": {"json_lines": "-"}}
        own.start()
        wait_until(lambda: own.log.count('"label"') > 2, "results of the camera")
        assert own.terminate() == 0, own.log
