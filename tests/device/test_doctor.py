"""`edge-client doctor`: each check fails for its own reason and names the way out."""

from __future__ import annotations

import dataclasses
import datetime
import json

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
    assert capsys.readouterr().out.count("ok  ") == 8
    repository.stop()
    assert main(["doctor", "--json", "--config", str(settings_file)]) == 5
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if not check["passed"]] == ["store"]
