"""`edge-client doctor`: each check fails for its own reason and names the way out."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import getpass
import json
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from local_services import MqttBroker

from edge_client.cli import main
from edge_client.commands import doctor
from edge_client.commands.doctor import examine
from edge_client.contract.errors import DeviceError
from edge_client.contract.release import OperatingPoint
from edge_client.settings.file import load_settings
from edge_client.settings.update import TrustSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.settings.file import Settings

pytestmark = pytest.mark.runtime

ACL = Path(__file__).resolve().parents[3] / "configs/mosquitto.acl"


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


def test_a_healthy_device_passes_all_checks(settings_file):
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

    monkeypatch.setattr("edge_client.commands.doctor.runtime_name", missing)
    assert "pip install" in failures(load_settings(settings_file))["runtime"]


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def with_channel(settings: Settings) -> Settings:
    return dataclasses.replace(
        settings, device=dataclasses.replace(settings.device, more_channels=("doors",))
    )


def test_doctor_creates_nothing_on_a_new_device(settings_file):
    settings = with_channel(load_settings(settings_file))
    examine(settings)
    assert not settings.device.state_dir.exists()


def test_doctor_changes_nothing_on_a_serving_device(settings_file, device, repository):
    settings = with_channel(load_settings(settings_file))
    repository.publish_tiny(1, channel="doors")
    device.check()
    before = listing(settings.device.state_dir)
    found = {check.name: check.detail for check in examine(settings)}
    assert listing(settings.device.state_dir) == before
    assert found["release of stable"].endswith("loads and runs")
    assert found["release of doors"].startswith("none yet")


def test_doctor_honours_the_metadata_that_the_device_saw(settings_file, device, repository):
    settings = load_settings(settings_file)
    before = dict(repository.objects)
    repository.publish_tiny(1)
    device.check()
    assert "store" not in failures(settings)
    repository.go_back_to(before)
    assert "store" in failures(settings)


def test_an_exception_in_one_check_does_not_stop_the_others(settings_file, monkeypatch):
    def broken(_settings):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("edge_client.commands.doctor.check_root", broken)
    assert failures(load_settings(settings_file)) == {
        "root of trust": "unexpected ZeroDivisionError: a bug; please report it"
    }


def test_the_command_prints_all_checks_and_its_exit_code_counts_faults(
    settings_file, repository, capsys, caplog
):
    Path(load_settings(settings_file).source.path, "notes.txt").touch()
    assert main(["doctor", "--config", str(settings_file)]) == 0
    told = capsys.readouterr()
    assert told.out.count("ok  ") == 11
    assert "passed over: 1 without the name of a picture" in told.out
    assert not caplog.records, "what the line says is not logged besides"
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


def test_a_frame_is_read_from_the_camera(settings_file):
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


def test_a_pipe_that_is_none_is_named(settings_file, tmp_path):
    for path, fails in ((tmp_path / "fifo", True), ("-", False)):
        settings = load_settings(settings_file)
        source = dataclasses.replace(settings.source, kind="pipe", path=str(path))
        assert ("source" in failures(dataclasses.replace(settings, source=source))) == fails


def test_a_hanging_camera_is_named(settings_file, monkeypatch):
    monkeypatch.setattr("edge_client.sources.opening.open_source", lambda _settings: HungCamera())
    monkeypatch.setattr("edge_client.commands.doctor.camera.CAMERA_S", 0.1)
    assert "no picture within 0.1 s" in failures(with_camera(settings_file, "0"))["source"]


def test_kept_frames_are_counted_and_missing_upload_keys_named(settings_file, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    settings = load_settings(settings_file)
    inbox = dataclasses.replace(settings.inbox, unsure_below=0.5)
    found = {check.name: check.detail for check in examine(dataclasses.replace(settings, inbox=inbox))}
    assert found["inbox"] == "0 frames are kept and not uploaded"
    inbox = dataclasses.replace(inbox, upload=True)
    assert "access_key_file" in failures(dataclasses.replace(settings, inbox=inbox))["inbox"]


def test_a_folder_store_is_read_and_frames_may_go_there_without_keys(
    settings_file, repository, tmp_path, monkeypatch
):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    folder = tmp_path / "store"
    settings = load_settings(settings_file)
    settings = dataclasses.replace(
        settings,
        store=dataclasses.replace(settings.store, base_url=folder.as_uri()),
        inbox=dataclasses.replace(settings.inbox, unsure_below=0.5, upload=True),
    )
    assert "mount it, or correct [store] base_url" in failures(settings)["store"]
    for key, data in repository.objects.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    assert "mounted? If it is, create inbox/ in it once" in failures(settings)["inbox"]
    assert not (folder / "inbox").exists()
    (folder / "inbox").mkdir()
    assert failures(settings) == {}
    found = {check.name: check.detail for check in examine(settings)}
    assert found["store"].startswith(f"{folder.as_uri()}: channel stable points to release ")
    assert found["inbox"] == f"0 frames are kept and uploaded to {folder.as_uri()}"


def test_a_private_label_that_no_release_has_is_named(settings_file, device):
    settings = load_settings(settings_file)

    def private(*labels: str) -> Settings:
        inbox = dataclasses.replace(settings.inbox, unsure_below=0.5, never_labels=labels)
        return dataclasses.replace(settings, inbox=inbox)

    assert "inbox" not in failures(private("Red"))  # no release yet that could know it
    device.check()
    assert "inbox" not in failures(private("red"))
    said = failures(private("red", "Red"))["inbox"]
    assert "no release here has Red (did you mean red?), so frames that show it are kept" in said


def extra(settings: Settings, section: str, **changes: object) -> tuple[bool, str]:
    """Whether the check of a section that most devices do not use is passed, and its message."""
    changed = dataclasses.replace(getattr(settings, section), **changes)
    found = examine(dataclasses.replace(settings, **{section: changed}))
    name = {"sinks": "json lines"}.get(section, section)
    [check] = [check for check in found if check.name == name]
    return check.passed, check.detail


def test_a_results_file_that_cannot_be_written_is_named(settings_file):
    settings, folder = load_settings(settings_file), settings_file.parent
    assert extra(settings, "sinks", json_lines=str(folder / "new" / "results.jsonl"))[0]
    assert not (folder / "new").exists()
    below_a_file = settings_file / "results.jsonl"
    passed, said = extra(settings, "sinks", json_lines=str(below_a_file))
    assert not passed
    assert f"{below_a_file}: cannot be created: {settings_file} is not writable" in said
    passed, said = extra(settings, "sinks", json_lines=str(folder / "camera"))
    assert not passed
    assert "not a file" in said


def test_a_watched_label_that_no_release_is_ever_sure_of_is_named(settings_file, repository, device):
    point = OperatingPoint(precision=0.95, thresholds=(0.9, None, 0.9), coverage=0.5)
    repository.publish_tiny(0, operating_point=point)
    device.check()
    settings = load_settings(settings_file)
    watched = functools.partial(extra, settings, "action", on_command="true")
    assert watched(labels=("red", "blue"))[0]
    passed, said = watched(labels=("red", "Blue", "cat"))
    assert not passed
    assert "no release here has Blue (did you mean blue?), cat, so nothing switches for it" in said
    passed, said = watched(labels=("red", "green"))
    assert not passed
    assert "is never sure of green: no score gives a precision of 0.95" in said
    assert watched(labels=("red", "green"), when_unsure="act")[0]


def test_a_missing_program_is_named(settings_file):
    settings = load_settings(settings_file)
    assert extra(settings, "action", labels=("red",), on_command="true now", off_command="false")[0]
    passed, said = extra(
        settings, "action", labels=("red",), on_command="true", off_command="no-such-siren off"
    )
    assert not passed
    assert "no-such-siren: no such program" in said


def test_a_port_that_is_taken_is_named(settings_file):
    settings = load_settings(settings_file)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        passed, said = extra(settings, "metrics", port=port)
        assert not passed
        assert "give a free port" in said
    assert extra(settings, "metrics", port=port) == (True, f"127.0.0.1:{port}: free")


def test_a_metrics_port_without_the_library_is_named(settings_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "edge_client.reporting.metrics", raising=False)
    passed, said = extra(load_settings(settings_file), "metrics", port=9100)
    assert not passed
    assert "pip install 'edge-fleet[metrics]'" in said


class BrokerWithRights(MqttBroker):
    """Mosquitto with the rights of configs/mosquitto.acl; it believes each name that it is told."""

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        acl, file = self.folder / "acl", self.folder / "mosquitto.conf"
        acl.touch(mode=0o600)
        acl.write_text(ACL.read_text())
        file.write_text(
            f"user {getpass.getuser()}\nlistener {self.port} {self.host}\nallow_anonymous true\n"
            f"acl_file {acl}\n"
        )
        return [self.mosquitto, "-c", str(file)]


@pytest.fixture
def broker_with_rights(tmp_path) -> Iterator[BrokerWithRights]:
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker has no rights to give")
    with BrokerWithRights(tmp_path / "broker") as broker:
        yield broker


@pytest.mark.parametrize(("user", "lets_through"), [("camera-1", True), ("kiosk", False), ("", False)])
def test_a_device_muted_by_the_brokers_acl_is_named(
    user, lets_through, settings_file, broker_with_rights, monkeypatch
):
    monkeypatch.setattr("edge_client.reporting.broker_trial.ECHO_S", 1.0)
    settings = load_settings(settings_file)
    broker = dataclasses.replace(settings.broker, port=broker_with_rights.port, username=user)
    found = failures(dataclasses.replace(settings, broker=broker))
    assert ("broker" not in found) == lets_through
    if not lets_through:
        assert f"[broker] username (now {user!r}) must be the device id" in found["broker"]


def test_a_folder_that_is_none_a_ca_that_is_none_and_a_root_that_is_none_are_named(settings_file, tmp_path):
    settings, wrong = load_settings(settings_file), tmp_path / "wrong"
    wrong.write_text("{")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a disk that is away")
    for state_dir, told in ((wrong, "Not a directory"), (link, "a link to ")):
        found = failures(
            dataclasses.replace(settings, device=dataclasses.replace(settings.device, state_dir=state_dir))
        )["state folder"]
        assert told in found
        assert "mount the disk, or correct the setting" in found
    store = dataclasses.replace(settings.store, base_url="https://127.0.0.1:1/b", ca_file=str(wrong))
    assert (
        f"[store] ca_file {wrong}: no certificate in PEM"
        in failures(dataclasses.replace(settings, store=store))["store"]
    )
    store = dataclasses.replace(store, ca_file=str(tmp_path / "none"))
    assert "copy the CA's certificate there" in failures(dataclasses.replace(settings, store=store))["store"]
    roots = failures(dataclasses.replace(settings, trust=TrustSettings(root=wrong)))
    assert "no root of trust" in roots["root of trust"]
    assert "copy device/root.json" in roots["store"]


def test_a_check_that_does_not_end_keeps_nobody_waiting(settings_file, monkeypatch):
    started, end = threading.Event(), threading.Event()

    def hang(_settings: Settings) -> str:
        started.set()
        end.wait(30)
        return ""

    monkeypatch.setattr("edge_client.commands.doctor.check_store", hang)
    monkeypatch.setitem(doctor._SLOW, "store", 0.2)
    found = failures(load_settings(settings_file))
    end.set()
    assert started.is_set()
    assert "no result within 0.2 s" in found["store"]
