"""What a production device meets: a broker and a store behind TLS, each with its own idea of identity."""

from __future__ import annotations

import dataclasses
import getpass
import queue
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from local_services import MqttBroker, wait_until

from edge_client.contract.errors import TransportError
from edge_client.reporting.broker import BrokerConnection
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.settings.reporting import BrokerSettings
from edge_client.settings.update import StoreSettings
from tests.fakes.broker_connection import try_connection
from tests.fakes.certificates import CertificateAuthority
from tests.fakes.tuf_repository import TufRepository

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LIMIT_S = 15.0
PASSWORD = "a password, with spaces"


class ClosedBroker(MqttBroker):
    """Mosquitto that lets in only who it knows."""

    def __init__(self, folder, lines: list[str]) -> None:
        super().__init__(folder)
        self._lines = lines

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        # As root it would become a user who may not read the key.
        lines = [
            f"user {getpass.getuser()}",
            f"listener {self.port} {self.host}",
            "allow_anonymous false",
            *self._lines,
        ]
        file = self.folder / "closed.conf"
        file.write_text("\n".join(lines) + "\n")
        return [self.mosquitto, "-c", str(file)]


@pytest.fixture
def authority(tmp_path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


@pytest.fixture
def server_lines(authority) -> list[str]:
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker has no TLS")
    pair = authority.issue("server")
    return [f"certfile {pair.certificate}", f"keyfile {pair.key}"]


@pytest.fixture
def password_broker(tmp_path, server_lines):
    """TLS and a password each, as configs/mosquitto.conf has it."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("no mosquitto_passwd")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run([tool, "-b", str(passwords), "camera-1", PASSWORD], check=True, capture_output=True)
    with ClosedBroker(tmp_path / "broker", [*server_lines, f"password_file {passwords}"]) as broker:
        yield broker


@pytest.fixture
def password_settings(password_broker, authority, tmp_path) -> BrokerSettings:
    password_file = tmp_path / "password"
    password_file.write_text(f"{PASSWORD}\n")
    return BrokerSettings(
        port=password_broker.port,
        tls=True,
        ca_file=str(authority.certificate),
        username="camera-1",
        password_file=str(password_file),
    )


def test_a_device_receives_announcements_through_tls_with_its_password(password_settings):
    received: queue.Queue[bytes] = queue.Queue()
    connected: queue.Queue[bool] = queue.Queue()
    connection = BrokerConnection(
        password_settings,
        "camera-1",
        handlers={"edge/f/channels/stable": received.put},
        online_topic="edge/f/devices/camera-1/online",
        on_connection=lambda: connected.put(True),
    )
    connection.start()
    try:
        assert connected.get(timeout=LIMIT_S)
        assert connection.send("edge/f/channels/stable", b"itself")
        assert received.get(timeout=LIMIT_S) == b"itself"
    finally:
        connection.stop()


class ConfiguredBroker(MqttBroker):
    """Mosquitto with configs/mosquitto.conf and configs/mosquitto.acl, as they are but for paths and port."""

    def __init__(self, folder, certificate, key, passwords) -> None:
        super().__init__(folder)
        self._paths = {
            "/etc/mosquitto/certs/server.crt": certificate,
            "/etc/mosquitto/certs/server.key": key,
            "/etc/mosquitto/passwords": passwords,
            "/etc/mosquitto/mosquitto.acl": self.folder / "mosquitto.acl",
            "/var/lib/mosquitto/": f"{self.folder}/",
            "listener 8883": f"listener {self.port} {self.host}",
        }

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        acl, file = self.folder / "mosquitto.acl", self.folder / "mosquitto.conf"
        acl.touch(mode=0o600)
        acl.write_text((CONFIGS / "mosquitto.acl").read_text())
        text = (CONFIGS / "mosquitto.conf").read_text()
        for path, here in self._paths.items():
            assert path in text
            text = text.replace(path, str(here))
        file.write_text(f"user {getpass.getuser()}\n{text}")
        return [self.mosquitto, "-c", str(file)]


def test_no_camera_throws_another_one_off_the_broker(tmp_path, authority, caplog):
    tool = shutil.which("mosquitto_passwd")
    if tool is None or MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto")
    passwords, pair = tmp_path / "passwords", authority.issue("server")
    passwords.touch(mode=0o600)
    settings = {}
    for name in ("camera-1", "camera-2", "dashboard"):
        subprocess.run([tool, "-b", str(passwords), name, f"{name}'s"], check=True, capture_output=True)
        (tmp_path / name).write_text(f"{name}'s\n")
    with ConfiguredBroker(tmp_path / "broker", pair.certificate, pair.key, passwords) as broker:
        settings = {
            name: BrokerSettings(
                port=broker.port,
                tls=True,
                ca_file=str(authority.certificate),
                username=name,
                password_file=str(tmp_path / name),
            )
            for name in ("camera-1", "camera-2", "dashboard")
        }
        connected: queue.Queue[bool] = queue.Queue()
        seen: queue.Queue[bytes] = queue.Queue()
        results = "edge/f/devices/camera-1/results"
        camera = BrokerConnection(
            settings["camera-1"],
            "camera-1",
            handlers={"edge/f/channels/stable": seen.put},
            online_topic="edge/f/devices/camera-1/online",
            on_connection=lambda: connected.put(True),
        )
        dashboard = BrokerConnection(
            settings["dashboard"],
            "any-id",
            handlers={results: seen.put},
            online_topic="edge/f/dashboards/online",
            on_connection=lambda: connected.put(True),
        )
        for one in (dashboard, camera):
            one.start()
            assert connected.get(timeout=LIMIT_S)
        try:
            for _ in range(10):
                try_connection(settings["camera-2"], "camera-1")  # under the other's id
            wait_until(lambda: camera.send(results, b"still there") is not None, "the connection")
            assert seen.get(timeout=LIMIT_S) == b"still there"
            assert connected.empty()
            assert "connection lost" not in caplog.text
        finally:
            camera.stop()
            dashboard.stop()


def test_a_wrong_password_is_named(password_settings, tmp_path):
    (tmp_path / "password").write_text("another\n")
    with pytest.raises(TransportError, match="check \\[broker\\] username and password_file"):
        try_connection(password_settings, "probe")


def test_a_broker_with_a_certificate_of_another_authority_is_refused(password_settings, tmp_path):
    other = CertificateAuthority(tmp_path / "other", "Another CA")
    settings = dataclasses.replace(password_settings, ca_file=str(other.certificate))
    with pytest.raises(TransportError, match="certificate verify failed"):
        try_connection(settings, "probe")


def test_a_broker_under_another_name_is_refused(password_settings):
    settings = dataclasses.replace(password_settings, host="localhost")
    with pytest.raises(TransportError, match="certificate"):
        try_connection(settings, "probe")


def test_plain_mqtt_to_a_tls_port_is_an_error_that_names_the_settings(password_settings):
    settings = dataclasses.replace(password_settings, tls=False, ca_file="")
    with pytest.raises(TransportError, match="\\[broker\\] host, port and tls"):
        try_connection(settings, "probe")


def test_a_device_proves_itself_by_certificate(tmp_path, authority, server_lines):
    """As AWS IoT Core wants it."""
    lines = [*server_lines, f"cafile {authority.certificate}", "require_certificate true"]
    lines.append("use_identity_as_username true")
    device = authority.issue("camera-1")
    with ClosedBroker(tmp_path / "broker", lines) as broker:
        settings = BrokerSettings(port=broker.port, tls=True, ca_file=str(authority.certificate))
        with pytest.raises(TransportError):
            try_connection(settings, "probe")
        certified = dataclasses.replace(
            settings, certificate_file=str(device.certificate), key_file=str(device.key)
        )
        try_connection(certified, "probe")


@pytest.fixture
def tls_repository(authority):
    pair = authority.issue("store")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with TufRepository(tls=context) as repository:
        repository.publish_tiny()
        yield repository


def check(repository, tmp_path, ca_file: str) -> str:
    store = StoreSettings(base_url=repository.url, timeout_s=5.0, ca_file=ca_file)
    metadata = tmp_path / "state/metadata"
    with TrustedRepository(repository.root, repository.url, metadata, StoreFetcher(store)) as trusted:
        trusted.refresh()
        return trusted.channel("stable").release


def test_a_store_with_a_certificate_of_its_own_is_read(tls_repository, authority, tmp_path):
    assert check(tls_repository, tmp_path, str(authority.certificate)) in tls_repository.find("release.json")


def test_a_store_with_a_certificate_of_an_unknown_authority_is_not_read(tls_repository, tmp_path):
    with pytest.raises(TransportError, match=r"certificate verify failed.*"):
        check(tls_repository, tmp_path, "")
    assert tls_repository.requests == []
