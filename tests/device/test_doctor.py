"""`edge-client doctor`: each check fails for its own reason and names the way out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading

import numpy as np
import pytest

from edge_client.cli import main
from edge_client.contract.errors import DeviceError
from edge_client.doctor import examine
from edge_client.settings import load_settings


@pytest.fixture
def settings_file(tmp_path, repository, mqtt_broker):
    repository.publish_tiny(0)
    (tmp_path / "root.json").write_bytes(repository.root)
    (tmp_path / "camera").mkdir()
    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nid = "camera-1"\nstate_dir = "state"\n[store]\nbase_url = "{repository.url}"\n'
        f'timeout_s = 5.0\n[trust]\nroot = "root.json"\n[broker]\nport = {mqtt_broker.port}\n'
        f'[source]\npath = "camera"\n'
    )
    return file


def failures(settings, **options) -> dict[str, str]:
    return {check.name: check.detail for check in examine(settings, **options) if not check.passed}


def test_a_sound_device_passes_all(settings_file):
    assert failures(load_settings(settings_file)) == {}


def test_each_fault_is_found_alone(settings_file, repository):
    settings = load_settings(settings_file)
    change = dataclasses.replace
    folder = settings_file.parent
    (folder / "no-root.json").write_bytes(b"{}")
    (folder / "a-file").write_bytes(b"")
    cases = {
        "broker": change(settings, broker=change(settings.broker, port=1)),
        "source": change(settings, source=change(settings.source, path=str(folder / "none"))),
        "state folder": change(settings, update=change(settings.update, min_free_bytes=1 << 60)),
    }
    for name, broken in cases.items():
        assert set(failures(broken)) == {name}
    repository.stop()
    assert "tried again" in failures(settings)["store"]
    repository.start()
    broken = change(settings, trust=change(settings.trust, root=folder / "no-root.json"))
    assert set(failures(broken)) == {"root of trust", "store"}
    broken = change(settings, trust=change(settings.trust, root=folder / "none.json"))
    assert "edge-keys make" in failures(broken)["root of trust"]
    broken = change(settings, device=change(settings.device, channel="none"))
    assert "[device] channel" in failures(broken)["store"]
    broken = change(settings, device=change(settings.device, state_dir=folder / "a-file"))
    assert "state folder" in failures(broken)


def test_a_clock_that_was_never_set_is_named(settings_file):
    long_ago = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    found = failures(load_settings(settings_file), clock=lambda: long_ago)
    assert "timedatectl" in found["clock"]


def test_a_missing_runtime_is_named(settings_file, monkeypatch):
    def missing():
        raise DeviceError("no TFLite runtime: pip install ai-edge-litert")

    monkeypatch.setattr("edge_client.doctor.runtime_name", missing)
    assert "pip install" in failures(load_settings(settings_file))["runtime"]


def test_it_leaves_the_memory_of_trust_to_the_daemon(settings_file):
    settings = load_settings(settings_file)
    examine(settings)
    left = [path for path in settings.device.state_dir.rglob("*") if path.is_file()]
    assert left == []


def test_the_command_prints_and_counts(settings_file, repository, capsys):
    assert main(["doctor", "--config", str(settings_file)]) == 0
    assert capsys.readouterr().out.count("ok  ") == 9
    repository.stop()
    assert main(["doctor", "--json", "--config", str(settings_file)]) == 5
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if not check["passed"]] == ["store"]


class HungCamera:
    """A driver that never gives a frame, and does not listen."""

    def frames(self, stop):
        del stop
        threading.Event().wait(60)
        yield from ()


def with_camera(settings_file, path: str):
    settings = load_settings(settings_file)
    return dataclasses.replace(settings, source=dataclasses.replace(settings.source, kind="video", path=path))


def test_a_camera_is_tried(settings_file):
    cv2 = pytest.importorskip("cv2", reason="the extra [video] is not installed")
    film = str(settings_file.parent / "film.avi")
    writer = cv2.VideoWriter(film, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    [source] = [check for check in examine(with_camera(settings_file, film)) if check.name == "source"]
    assert source.passed
    assert "gives 64x48 pixels" in source.detail
    gone = failures(with_camera(settings_file, str(settings_file.parent / "none.avi")))
    assert "none.avi" in gone["source"]


def test_a_camera_that_hangs_is_named(settings_file, monkeypatch):
    monkeypatch.setattr("edge_client.sources.open_source", lambda _settings: HungCamera())
    monkeypatch.setattr("edge_client.doctor.CAMERA_S", 0.1)
    assert "no picture within 0.1 s" in failures(with_camera(settings_file, "0"))["source"]


def test_frames_that_wait_are_counted_and_keys_to_upload_them_asked_for(settings_file, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    settings = load_settings(settings_file)
    inbox = dataclasses.replace(settings.inbox, unsure_below=0.5)
    found = {check.name: check.detail for check in examine(dataclasses.replace(settings, inbox=inbox))}
    assert found["inbox"] == "0 frames wait; they are not uploaded"
    inbox = dataclasses.replace(inbox, upload=True)
    assert "access_key_file" in failures(dataclasses.replace(settings, inbox=inbox))["inbox"]
