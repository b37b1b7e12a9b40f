"""A secret in every address that the settings take, and nothing of it in all that leaves the device."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import TYPE_CHECKING

import pytest
from local_services import wait_until
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import SettingsError
from edge_client.settings.file import load_settings
from tests.fakes.network_camera import NetworkCamera

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.device_daemon import DaemonUnderTest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SECRET = "XYZZY"


@pytest.fixture
def published(mqtt_broker) -> Iterator[list[str]]:
    """All that any client publishes at the broker."""
    seen: list[str] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe("#", 1)
    client.on_message = lambda _c, _u, message: seen.append(f"{message.topic} {message.payload!r}")
    client.connect(mqtt_broker.host, mqtt_broker.port)
    client.loop_start()
    yield seen
    client.disconnect()
    client.loop_stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_with_secrets(daemon: DaemonUnderTest, store: int, camera: int, inbox: int, folder: Path) -> int:
    """Change the device's settings; returns the port of the metrics."""
    keys = folder / "keys.toml"
    keys.write_text('access_key_id = "key"\nsecret_access_key = "key"\n')
    action = folder / "act"
    action.write_text(f"#!/bin/sh\nenv > {folder}/environment\n")
    action.chmod(0o755)
    port = free_port()
    daemon.settings |= {
        "store": {
            "base_url": f"http://127.0.0.1:{store}/{SECRET}/token={SECRET}/models",
            "access_key_file": str(keys),
            "timeout_s": 2.0,
        },
        "source": {
            "kind": "video",
            "path": f"http://{SECRET}:{SECRET}%2F@127.0.0.1:{camera}/stream?pwd={SECRET}#{SECRET}",
            "frames_per_second": 5.0,
        },
        "sinks": {"mqtt": True, "json_lines": str(folder / "results.jsonl")},
        "action": {"labels": "blue", "on_command": str(action), "threshold": 0.1, "release_below": 0.05},
        "inbox": {
            "unsure_below": 1.0,
            "upload": True,
            "upload_s": 0.5,
            "base_url": f"http://127.0.0.1:{inbox}/{SECRET}",
        },
        "homeassistant": {"discovery": True},
        "metrics": {"port": port},
    }
    return port


def test_no_secret_of_an_address_leaves_the_device(daemon, watcher, serving, repository, published, tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is an extra of the device")
    store = int(repository.url.rpartition(":")[2].partition("/")[0])
    daemon.terminate()
    # Bound, so that nobody else takes the port; nobody listens there.
    with NetworkCamera() as camera, socket.socket() as inbox:
        inbox.bind(("127.0.0.1", 0))
        port = settings_with_secrets(daemon, store, camera.port, inbox.getsockname()[1], tmp_path)
        command = daemon.command
        daemon.command = lambda name, *rest: [
            *command(name, *rest),
            *(["--verbose"] if name == "run" else []),
        ]
        daemon.start()
        watcher.wait(lambda w: len(w.results) > 2, "results of the camera")
        assert {result.source for result in watcher.results} == {camera.shown}
        watcher.wait_status(lambda s: s.inbox is not None and s.inbox.error is not None, "a failed upload")
        watcher.wait_status(lambda s: s.last_error is not None, "a store that is not there")
        wait_until((tmp_path / "environment").exists, "the action")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            metrics = answer.read().decode()
        told = {"doctor": daemon.ask("doctor").stdout, "status": daemon.ask("status").stdout}
        told["doctor --json"] = daemon.ask("doctor", "--json").stdout
    wait_until(lambda: "cannot be opened" in daemon.log, "the camera that went away")
    told["status --json"] = daemon.ask("status", "--json").stdout
    told["export"] = daemon.ask("export", str(tmp_path / "bundle.tar")).stderr
    assert daemon.terminate() == 0
    assert "http://127.0.0.1" in told["doctor"] + told["export"]
    told |= {
        "log": daemon.log,
        "metrics": metrics,
        "broker": "\n".join(published),
        "results": (tmp_path / "results.jsonl").read_text(),
        "action": (tmp_path / "environment").read_text(),
        "kept": "".join(path.read_text() for path in daemon.state_dir.rglob("*.json")),
        "names": "\n".join(str(path) for path in daemon.state_dir.rglob("*")),
    }
    assert f"EDGE_SOURCE={camera.shown}\n" in told["action"]
    found = {where: text[text.index(SECRET) - 200 :][:400] for where, text in told.items() if SECRET in text}
    assert found == {}, json.dumps(found, indent=2)
    assert all(told.values()), "each of these was looked at"


def test_settings_that_cannot_be_used_are_named_without_their_secrets(daemon):
    for section, wrong in (
        ("store", {"base_url": f"htp://{SECRET}:{SECRET}@s3.example.com/{SECRET}"}),
        ("store", {"base_url": f"http://{SECRET}:{SECRET}@s3.example.com/{SECRET}"}),
        ("store", {"base_url": f"https://s3.example.com/{SECRET}?X-Amz-Signature={SECRET}"}),
        ("inbox", {"base_url": f"ftp://{SECRET}:{SECRET}@host/{SECRET}"}),
        ("source", {"kind": "picamera", "path": f"rtsp://{SECRET}:{SECRET}@camera/x"}),
        ("source", {"kind": "folder", "path": f"rtsp://{SECRET}:{SECRET}@camera/x"}),
        ("source", {"kind": f"rtsp://{SECRET}:{SECRET}@camera/x"}),
        ("source", {"kind": "video", "path": f"rtsp:/{SECRET}:{SECRET}@camera/x"}),
        ("source", {"kind": "video", "path": f"{SECRET}:{SECRET}@camera/x"}),
        ("source", {"kind": "video", "path": [f"rtsp://{SECRET}:{SECRET}@camera/x"]}),
        ("broker", {"host": f"mqtts://{SECRET}:{SECRET}@broker/{SECRET}"}),
        ("broker", {"host": f"{SECRET}:{SECRET}@broker"}),
    ):
        before = daemon.settings.get(section, {})
        daemon.settings[section] = {**before, **wrong}
        with pytest.raises(SettingsError, match=section) as told:
            load_settings(daemon.file, "camera")
        assert SECRET not in without_secrets(str(told.value))  # as every command shows it
        daemon.settings[section] = before
