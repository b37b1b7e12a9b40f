"""Each way in which TLS to a broker fails: both sides name the file or the setting, and the way out."""

from __future__ import annotations

import base64
import dataclasses
import getpass
import hashlib
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from local_services import MqttBroker

from edge_client.contract.broker_tls import broker_doubt, explain_connect_failure, find_broker_faults
from edge_client.contract.errors import EdgeError
from edge_client.settings.reporting import BrokerSettings as DeviceSettings
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.settings.values import BrokerSettings
from tests.fakes.broker_connection import try_connection
from tests.fakes.certificates import CertificateAuthority
from tests.fakes.raw_server import RawServer

OPENSSL = shutil.which("openssl")
ENDPOINT = "abc123-ats.iot.eu-central-1.amazonaws.com"


class CertifiedBroker(MqttBroker):
    """Mosquitto with TLS that may want client certificates."""

    lines: tuple[str, ...] = ()

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        file = self.folder / "mosquitto.conf"
        lines = (f"user {getpass.getuser()}", f"listener {self.port} {self.host}", "allow_anonymous true")
        file.write_text("\n".join((*lines, *self.lines)) + "\n")
        return [self.mosquitto, "-c", str(file)]


@dataclasses.dataclass
class Files:
    """Certificates and keys, good and bad ones."""

    folder: Path
    authority: CertificateAuthority
    stranger: CertificateAuthority

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    if MqttBroker().mosquitto is None or OPENSSL is None:
        pytest.skip("no mosquitto, or no openssl")
    folder = tmp_path_factory.mktemp("certificates")
    return Files(folder, CertificateAuthority(folder / "ca"), CertificateAuthority(folder / "other", "Other"))


def serve(files: Files, folder: Path, *lines: str, from_day: int = -1, to_day: int = 1) -> CertifiedBroker:
    pair = files.authority.issue("server", from_day=from_day, to_day=to_day)
    broker = CertifiedBroker(folder)
    broker.lines = (f"certfile {pair.certificate}", f"keyfile {pair.key}", *lines)
    return broker


def said(settings: DeviceSettings) -> list[str]:
    """What device and pipeline say of a connection with these settings; empty: it works."""
    same = {field.name for field in dataclasses.fields(BrokerSettings)} & vars(settings).keys()
    values = {name: getattr(settings, name) for name in same}
    pipeline = BrokerClient(BrokerSettings(**values, fleet="f", timeout_s=5.0), retained_wait_s=0.1)
    told = []
    for connect in (
        lambda: try_connection(settings, "camera-1"),
        lambda: pipeline.read_retained("edge/f/channels/stable"),
    ):
        try:
            connect()
            told.append("")
        except EdgeError as e:
            told.append(str(e))
    return told


def mosquitto_password(user: str, password: str) -> str:
    """A line of Mosquitto's password file: PBKDF2 with SHA-512, as mosquitto_passwd writes it."""
    salt = b"twelve bytes"
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    shown = [base64.b64encode(one).decode() for one in (salt, digest)]
    return f"{user}:$7$101${'$'.join(shown)}\n"


def test_what_is_wrong_with_certificates_is_named_on_both_sides(files, tmp_path):
    authority = files.authority
    device, other = authority.issue("camera-1"), authority.issue("camera-2")
    expired = authority.issue("expired", from_day=-3, to_day=-1)
    alien = files.stranger.issue("camera-1")
    key, certificate = str(device.key), str(device.certificate)
    encrypted = str(files.folder / "encrypted.key")
    subprocess.run(
        [
            str(OPENSSL),
            "pkcs8",
            "-topk8",
            "-in",
            key,
            "-out",
            encrypted,
            "-passout",
            "pass:x",
            "-v2",
            "aes256",
        ],
        check=True,
    )
    junk = files.write("junk", "junk\n")
    damaged = files.write(
        "damaged.pem", device.certificate.read_text()[:200] + "\n-----END CERTIFICATE-----\n"
    )
    both = files.write("both.pem", device.certificate.read_text() + device.key.read_text())
    bundle = files.write("bundle.pem", "# Label: Főtanúsítvány\n" + authority.certificate.read_text())
    windows = files.write("windows", "\ufeffpässword\r\n")
    wrong = files.write("wrong", "else\n")
    latin = files.write("latin", "")
    Path(latin).write_bytes("pässword\n".encode("latin-1"))
    request = files.write("device.csr", "-----BEGIN CERTIFICATE REQUEST-----\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"ca_file": bundle}, ""),
        ({"username": "camera-1", "password_file": windows}, ""),
        ({"username": "camera-1", "password_file": wrong}, "ot authorized; check [broker] username"),
        ({"certificate_file": both, "key_file": both}, ""),
        ({"key_file": encrypted}, f"key_file {encrypted}: the key is encrypted"),
        ({"key_file": str(other.key)}, f"{other.key} is not the key of certificate_file {certificate}"),
        ({"key_file": certificate, "certificate_file": key}, "certificate_file and key_file are exchanged"),
        ({"key_file": "/none.key"}, "[broker] key_file /none.key: "),
        ({"certificate_file": junk}, f"certificate_file {junk}: holds no certificate in PEM"),
        ({"certificate_file": damaged}, "damaged"),
        ({"ca_file": junk}, f"ca_file {junk}: no PEM certificate"),
        ({"ca_file": "/none.pem"}, "[broker] ca_file /none.pem: "),
        ({"ca_file": str(files.stranger.certificate)}, "is not signed by the CA in [broker] ca_file"),
        ({"ca_file": ""}, "name the certificate of its CA in [broker] ca_file"),
        ({"host": "localhost"}, "its certificate is for another name than localhost"),
        ({"certificate_file": "", "key_file": ""}, "it wants a client certificate"),
        (
            {"certificate_file": str(alien.certificate), "key_file": str(alien.key)},
            f"does not take the client certificate {alien.certificate}",
        ),
        (
            {"certificate_file": str(expired.certificate), "key_file": str(expired.key)},
            f"does not take the client certificate {expired.certificate}",
        ),
        ({"username": "camera-1", "password_file": "/none"}, "[broker] password_file /none"),
        ({"username": "camera-1", "password_file": "/dev/null"}, "/dev/null: has nothing in its first line"),
        ({"username": "camera-1", "password_file": latin}, f"{latin}: is not UTF-8; save it as UTF-8"),
        ({"certificate_file": request}, f"certificate_file {request}: holds no certificate in PEM; it is a"),
        ({"alpn": ("n" * 300,)}, "[broker] alpn"),
    ]
    passwords = files.write("passwords", mosquitto_password("camera-1", "pässword"))
    lines = (
        f"cafile {authority.certificate}",
        "require_certificate true",
        f"password_file {passwords}",
    )
    with serve(files, tmp_path / "broker", *lines) as broker:
        good = DeviceSettings(
            port=broker.port,
            tls=True,
            ca_file=str(authority.certificate),
            certificate_file=certificate,
            key_file=key,
        )
        for changes, expected in cases:
            for told in said(dataclasses.replace(good, **changes)):
                assert (expected in told) if expected else not told, (changes, told)
                assert "\n" not in told
        plain = dataclasses.replace(good, tls=False, ca_file="", certificate_file="", key_file="")
        assert all("or it wants TLS, or is no MQTT port" in told for told in said(plain))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"\x20\x02\x00\x02", "it does not take the client id"),
        (b"\x20\x02\x00\x03", "it starts, or is overloaded: wait"),
        (b"\x20\x02\x00\x04", "check [broker] username and password_file"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no MQTT port (9001 and 8083 are often WebSockets)"),
    ],
)
def test_what_refuses_or_does_not_speak_mqtt_is_told(answer, expected):
    with RawServer(answer) as server:
        assert all(expected in told for told in said(DeviceSettings(port=server.port)))


@pytest.mark.parametrize(
    ("from_day", "to_day", "expected"),
    [(-3, -1, "has expired: renew it there, or set this machine's clock"), (2, 4, "set it (timedatectl)")],
)
def test_a_brokers_certificate_out_of_time_is_told_with_the_clock(
    files, tmp_path, from_day, to_day, expected
):
    with serve(files, tmp_path / "broker", from_day=from_day, to_day=to_day) as broker:
        settings = DeviceSettings(port=broker.port, tls=True, ca_file=str(files.authority.certificate))
        assert all(expected in told for told in said(settings))


def test_a_clock_that_was_never_set_is_told_before_the_certificate(monkeypatch):
    monkeypatch.setattr("edge_client.contract.broker_tls._OLDEST_CLOCK", _in_a_thousand_years())
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 18, "self-signed certificate"
    assert "set it (timedatectl)" in explain_connect_failure(error, DeviceSettings(tls=True))


def _in_a_thousand_years():
    import datetime  # noqa: PLC0415

    return datetime.datetime(3000, 1, 1, tzinfo=datetime.timezone.utc)


AWS = DeviceSettings(host=ENDPOINT, port=8883, tls=True, certificate_file="c", key_file="k")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AWS, ""),
        (dataclasses.replace(AWS, port=443, alpn=("x-amzn-mqtt-ca",)), ""),
        (dataclasses.replace(AWS, port=443), 'set alpn = "x-amzn-mqtt-ca", or port = 8883'),
        (dataclasses.replace(AWS, certificate_file="", key_file=""), "knows a client by its certificate"),
        (DeviceSettings(host=ENDPOINT), "speaks TLS alone"),
        (dataclasses.replace(AWS, key_file=""), "give both or none"),
        (DeviceSettings(certificate_file="c", key_file="k"), "need tls = true"),
        (DeviceSettings(alpn=("mqtt",)), "need tls = true"),
        (DeviceSettings(ca_file="c"), "need tls = true"),
        (DeviceSettings(host="wss://broker.example/mqtt"), "WebSockets (ws, wss) are not spoken"),
        (DeviceSettings(host="broker.example:8883"), "give the name alone"),
        (DeviceSettings(host=" broker.example"), "give the name alone"),
        (dataclasses.replace(AWS, host="iot.eu-central-1.amazonaws.com"), "iot:Data-ATS` prints"),
        (dataclasses.replace(AWS, host=ENDPOINT.replace("-ats.", ".credentials.")), "iot:Data-ATS` prints"),
        (
            dataclasses.replace(AWS, host=ENDPOINT.replace(".iot.", ".iot-fips."), tls=False),
            "speaks TLS alone",
        ),
        (dataclasses.replace(AWS, host="abc.ats.iot.cn-north-1.amazonaws.com.cn"), ""),
        (DeviceSettings(host="2001:db8::7"), ""),
        (DeviceSettings(host="[2001:db8::7]"), "without brackets"),
        (DeviceSettings(port=0), "port: 1 to 65535"),
        (DeviceSettings(host=""), ""),
        (DeviceSettings(host="None"), "for no broker leave it empty"),
        (DeviceSettings(host="", port=443, alpn=("mqtt",)), ""),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, expected):
    told = "; ".join(find_broker_faults(settings))
    assert expected in told
    assert bool(told) == bool(expected)
    assert settings.faults() == find_broker_faults(settings)


def test_settings_that_hardly_fit_are_warned_of():
    timeout = explain_connect_failure(TimeoutError("timed out"), DeviceSettings(host="b.example", tls=True))
    assert "set port = 8883" in timeout
    assert "set tls = true" in str(broker_doubt(DeviceSettings(host="broker.example", port=8883)))
    assert "set port = 8883" in str(broker_doubt(DeviceSettings(host="broker.example", tls=True)))
    assert "give username" in str(broker_doubt(DeviceSettings(password_file="p")))
    assert broker_doubt(DeviceSettings(host="broker.example", port=8883, tls=True)) is None
    old = ssl.SSLCertVerificationError(1, "certificate verify failed")
    old.verify_code, old.verify_message = 20, "unable to get local issuer certificate"
    legacy = dataclasses.replace(AWS, host=ENDPOINT.replace("-ats", ""))
    assert "use the endpoint with -ats in its name" in explain_connect_failure(old, legacy)
