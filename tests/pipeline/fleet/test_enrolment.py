"""`edge-fleet enroll` and what follows: keys and bundles that work, that nobody else gets, and that end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import shutil
import ssl
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from installation import wishes as user
from installation.places import InstallError
from installation.settings import change_settings
from securesystemslib.signer import CryptoSigner, SSlibKey

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.report import DeviceReport
from edge_client.contract.signed_report import open_report, seal_report
from edge_client.reporting.broker import BrokerConnection
from edge_client.settings.file import load_settings
from luigi_tasks.fleet.enrolment import read_devices
from luigi_tasks.fleet.handover import change_passwords, device_address
from luigi_tasks.fleet.opening import open_documents
from luigi_tasks.fleet.registry import Registry, load_registry
from luigi_tasks.settings.values import StoreSettings
from tests.fakes.aws_iot import AwsIotBroker, load_policy
from tests.fakes.certificates import CertificateAuthority
from tests.fakes.command_fleet import CommandFleet

if TYPE_CHECKING:
    from edge_client.settings.file import Settings


@st.composite
def cut_and_pasted(draw: st.DrawFn, example: bytes) -> bytes:
    """An example with some bytes put in the place of others."""
    data = bytearray(example)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 40))] = draw(st.binary(max_size=40))
    return bytes(data)


EXAMPLE = (Path(__file__).resolve().parents[3] / "configs/device.toml").read_text()
LIMIT_S = 60.0


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandFleet:
    """A fleet without a device; bundles go below the working folder."""
    made = CommandFleet(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return made


def with_broker(tmp_path: Path) -> Path:
    """Settings that all devices have, with a broker."""
    path = tmp_path / "all.toml"
    path.write_text('[broker]\nhost = "broker.example.com"\nport = 8883\ntls = true\nca_file = "ca.pem"\n')
    path.with_name("ca.pem").write_text("the CA of the broker")
    return path


def registry_of(fleet: CommandFleet) -> Registry:
    """The registry as another machine reads it."""
    return load_registry(open_documents(fleet.settings))


def contents(bundle: Path) -> dict[str, bytes]:
    """Files of a bundle by name."""
    with tarfile.open(bundle) as tar:
        return {one.name: extracted.read() for one in tar if (extracted := tar.extractfile(one))}


def installed(bundle: Path, tmp_path: Path, before: str = EXAMPLE) -> tuple[Settings, user.Wishes, str]:
    """What `scripts/install-device --bundle` makes of a bundle: settings, files, and the text."""
    wanted = user.read_flags(user.parse(["--bundle", str(bundle)]))
    user.is_complete(wanted)
    text = change_settings(before, wanted.changes)
    file = tmp_path / "device.toml"
    file.write_text(text)
    return load_settings(file), wanted, text


def test_a_device_gets_all_that_it_needs_and_nobody_else_gets_its_secrets(fleet, tmp_path):
    with_broker(tmp_path).open("a").write('[source]\nkind = "video"\npath = "/dev/video0"\n')
    facts = ("--site", "shop-7", "--tag", "outdoor", "--tag", "line=3", "--class", "pi4")
    channels = ("--channel", "stable", "--channel", "doors")
    code, text, error = fleet.run("enroll", "camera-1", *facts, *channels, "--settings", "all.toml")
    assert (code, error) == (0, "")
    bundle = tmp_path / "enrolled/camera-1.tar"
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    found = contents(bundle)

    loaded, wanted, _ = installed(bundle, tmp_path)
    device = loaded.device
    assert (device.id, device.site, device.device_class) == ("camera-1", "shop-7", "pi4")
    assert (device.tags, device.channel, device.more_channels) == (
        ("outdoor", "line=3"),
        "stable",
        ("doors",),
    )
    assert device.key_file == "/etc/edge-client/report-key.pem"
    assert (loaded.broker.host, loaded.broker.username) == ("broker.example.com", "camera-1")
    assert loaded.broker.password_file == "/etc/edge-client/broker-password"
    assert wanted.files["broker-ca.pem"] == (b"the CA of the broker", False)
    assert wanted.files["report-key.pem"] == (found["report-key.pem"], True)
    assert wanted.files["root.json"][0] == fleet.settings.trust.root.read_bytes()
    assert loaded.store.base_url == fleet.bucket.as_uri()

    row = registry_of(fleet).devices["camera-1"]
    assert (row.site, row.device_class, row.tags) == ("shop-7", "pi4", ("outdoor", "line=3"))
    assert (row.channels, row.epoch) == (("stable", "doors"), 1)
    assert row.member.site == device.site
    assert is_key(found["report-key.pem"], row.key)

    assert (loaded.source.kind, loaded.source.path) == ("video", "/dev/video0")

    # Unpacked by hand, it works as well.
    (tmp_path / "unpacked").mkdir()
    for name, data in found.items():
        (tmp_path / "unpacked" / name).write_bytes(data)
    by_hand = load_settings(tmp_path / "unpacked/device.toml")
    assert Path(by_hand.device.key_file).read_bytes() == found["report-key.pem"]

    # No secret went to the screen, into the bucket, or into another file.
    password = found["broker-password"].decode().strip()
    body = found["report-key.pem"].decode().splitlines()[1]
    others = [path for path in tmp_path.rglob("*") if path.is_file() and "unpacked" not in str(path)]
    for secret in (password, body):
        assert secret not in text
        assert [path for path in others if secret.encode() in path.read_bytes()] == [bundle]
    line = (tmp_path / "enrolled/mosquitto-passwords").read_text()
    assert line.startswith("camera-1:$7$101$")
    assert "enrolled/mosquitto-passwords" in text


def is_key(private: bytes, public: str) -> bool:
    """Whether two halves belong together."""
    key = load_pem_private_key(private, None)
    return bool(key.public_key() == load_pem_public_key(public.encode()))


def test_many_are_enrolled_by_one_file_all_or_none(fleet, tmp_path):
    file = tmp_path / "devices.csv"
    names = [f"camera-{number}" for number in range(12)]
    # As a spreadsheet writes it in many countries.
    rows = "".join(f"{name};shop-{number % 3};a b;pi4;stable doors\r\n" for number, name in enumerate(names))
    file.write_bytes(b"\xef\xbb\xbfdevice;site;tags;class;channels\r\n" + rows.encode() + b";;;;\r\n")
    code, text, _ = fleet.run("enroll", "--from", str(file), "--json")
    assert code == 0
    assert json.loads(text)["enrolled"].keys() == set(names)
    found = registry_of(fleet)
    assert found.devices.keys() == set(names)
    assert found.devices["camera-4"].tags == ("a", "b")
    assert len({row.key for row in found.devices.values()}) == len(names)

    file.write_text("device,site\nnew-1,a\ncamera-3,b\nnew-2,c\n")
    code, _, error = fleet.run("enroll", "--from", str(file))
    assert code == 1
    assert "camera-3: enrolled before" in error
    assert registry_of(fleet) == found
    assert not list((tmp_path / "enrolled").glob("new-*"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "row 1: It names the columns: device"),
        ("name,site\na,b\n", "row 1: 'name': no such column"),
        ("device,device\na,b\n", "row 1"),
        ("device\n\n", "names no device"),
        ("device,site\na,b,c\n", "row 2: 3 cells, and 2 columns"),
        ("device\na\nb\na\n", "row 4: a stands in row 2 too"),
        ("device,site\n../a,b\nc,d e\n", r"row 2: device '../a'.*row 3: site 'd e'"),
        ("device,tags\na,site=b\n", "row 2: tag 'site=b'"),
        ("device\npipeline\n", "row 2: device 'pipeline': is a user of the broker"),
        ('device,site\na,"b\n', "is a quotation mark open"),
        ("device,channels\na,x x\n", "named twice"),
        ("device\n" + "-\n" * 100, "and 80 more"),
        ("device\n\0\n", "row 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_row(tmp_path, text, told):
    file = tmp_path / "devices.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read_devices(file)


def test_old_keys_count_no_more_after_re_enroll_and_none_after_retire(fleet, tmp_path):
    fleet.run("enroll", "camera-1", "--site", "shop-7", "--tag", "old")
    old = contents(tmp_path / "enrolled/camera-1.tar")["report-key.pem"]
    assert fleet.run("re-enroll", "camera-1", "--tag", "new")[0] == 0
    row = registry_of(fleet).devices["camera-1"]
    assert (row.epoch, row.site, row.tags) == (2, "shop-7", ("new",))
    new = contents(tmp_path / "enrolled/camera-1.tar")["report-key.pem"]

    report = DeviceReport(fleet="fleet", device="camera-1", channel="stable")
    key = SSlibKey.from_crypto(load_pem_public_key(row.key.encode()))
    assert open_report(seal_report(report, signer_of(new)), "topic", key).is_signed
    with pytest.raises(TrustError):
        open_report(seal_report(report, signer_of(old)), "topic", key)

    code, text, _ = fleet.run("retire", "camera-1")
    assert code == 0
    assert "Revoke its credentials" in text
    found = registry_of(fleet)
    assert "camera-1" not in found.devices
    assert found.retired["camera-1"].key == ""
    assert fleet.run("retire", "camera-1")[0] == 0, "again, as after a broker that was away"
    assert "re-enroll" in fleet.run("enroll", "camera-1")[2]
    assert fleet.run("re-enroll", "camera-1")[0] == 0
    assert registry_of(fleet).devices["camera-1"].epoch == 3
    for command in ("re-enroll", "retire"):
        assert "was never enrolled" in fleet.run(command, "camera-9")[2]


def signer_of(private: bytes) -> CryptoSigner:
    """A signer as the device has it."""
    return CryptoSigner(load_pem_private_key(private, None))


def test_a_registry_that_cannot_be_changed_leaves_no_bundle(fleet, tmp_path):
    fleet.run("enroll", "camera-1")
    for name in ("rollouts.pem",):
        (tmp_path / "keys/pipeline" / name).unlink()
    code, _, error = fleet.run("enroll", "camera-2")
    assert code == 2, error
    assert not (tmp_path / "enrolled/camera-2.tar").exists()
    assert fleet.run("collector-key", "east")[0] == 2
    assert not (tmp_path / "collector-east.pem").exists()
    assert json.loads(fleet.run("registry", "--json")[1])["devices"] == 1


def test_a_collector_has_a_key_of_its_own_which_the_registry_names(fleet, tmp_path):
    fleet.run("enroll", "camera-1")
    code, text, _ = fleet.run("collector-key", "east", "--out", "east.pem")
    assert code == 0
    key = (tmp_path / "east.pem").read_bytes()
    assert stat.S_IMODE((tmp_path / "east.pem").stat().st_mode) == 0o600
    assert is_key(key, registry_of(fleet).collectors["east"])
    assert key.decode().splitlines()[1] not in text
    assert "--replace" in fleet.run("collector-key", "east", "--out", "other.pem")[2]
    assert not (tmp_path / "other.pem").exists()
    assert fleet.run("collector-key", "east", "--out", "other.pem", "--replace")[0] == 0
    assert not is_key(key, registry_of(fleet).collectors["east"])
    assert fleet.run("collector-key", "east", "--remove")[0] == 0
    assert registry_of(fleet).collectors == {}


def test_a_restored_registry_is_refused_until_a_person_accepts_it(fleet):
    fleet.run("enroll", "camera-1")
    saved = {path: path.read_bytes() for path in (fleet.bucket / "fleet").rglob("*") if path.is_file()}
    fleet.run("enroll", "camera-2")
    for path, data in saved.items():
        path.write_bytes(data)
    code, _, error = fleet.run("registry")
    assert code == 3
    assert "--accept" in error
    assert fleet.run("enroll", "camera-3")[0] == 3
    code, text, _ = fleet.run("registry", "--accept")
    assert code == 0
    assert "Devices in the fleet: 1" in text


CSV = b"device,site,tags\ncamera-1,shop-7,a b\n"


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), cut_and_pasted(CSV)))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_any_file_of_devices_is_read_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(data)
    with contextlib.suppress(InputError):
        for one in read_devices(file):
            assert list(one.faults()) == []


# Certificates


def test_a_certificate_lets_its_device_in_and_no_other(fleet, tmp_path):
    authority = CertificateAuthority(tmp_path / "authority")
    ca_key = tmp_path / "ca.key"
    ca_key.write_bytes(authority.private_key())
    given = ("--broker-certificate", "--ca-certificate", str(authority.certificate), "--ca-key", str(ca_key))
    assert fleet.run("enroll", "camera-1", *given)[0] == 0
    assert fleet.run("enroll", "camera-2", *given)[0] == 0
    found = contents(tmp_path / "enrolled/camera-1.tar")
    assert "broker-password" not in found
    assert (tmp_path / "enrolled/camera-1.crt").read_bytes() == found["device-certificate.pem"]
    loaded, _, _ = installed(tmp_path / "enrolled/camera-1.tar", tmp_path)
    assert loaded.broker.tls

    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    policies = {name: load_policy("aws-iot-policy.json", "fleet") for name in ("camera-1", "camera-2")}
    with AwsIotBroker(policies, context) as broker:
        for device, is_let_in in (("camera-1", True), ("camera-2", False)):
            settings = broker_settings(broker, authority, found, tmp_path)
            connected: queue.Queue[bool] = queue.Queue()
            connection = BrokerConnection(
                settings,
                device,
                handlers={},
                online_topic=f"edge/fleet/devices/{device}/online",
                on_connection=lambda: connected.put(True),  # noqa: B023 - called within this turn
            )
            connection.start()
            try:
                if is_let_in:
                    assert connected.get(timeout=LIMIT_S)
                else:
                    wait_for_refusal(broker, device)
                    assert connected.empty()
            finally:
                connection.stop()


def broker_settings(
    broker: AwsIotBroker, authority: CertificateAuthority, found: dict[str, bytes], folder: Path
) -> Any:
    """Settings of a device with the certificate of a bundle."""
    from edge_client.settings.reporting import BrokerSettings  # noqa: PLC0415 - of the device

    for name in ("device-certificate.pem", "device-key.pem"):
        (folder / name).write_bytes(found[name])
    return BrokerSettings(
        host=broker.host,
        port=broker.port,
        tls=True,
        ca_file=str(authority.certificate),
        certificate_file=str(folder / "device-certificate.pem"),
        key_file=str(folder / "device-key.pem"),
    )


def wait_for_refusal(broker: AwsIotBroker, device: str) -> None:
    """Wait until the broker refused a client."""
    from local_services import wait_until  # noqa: PLC0415

    wait_until(lambda: any(one[0] == device for one in broker.refusals), "a refusal")


def test_aws_gets_certificates_and_commands_that_register_them(fleet, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    assert "no dots" in fleet.run("enroll", "camera.1", "--aws-iot")[2]
    assert fleet.run("enroll", "camera-1", "--aws-iot")[0] == 0
    # An `aws` that notes what it is asked, and knows one older certificate of the thing.
    log, fake = tmp_path / "asked", tmp_path / "bin/aws"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\ncase "$2" in\ndescribe-certificate) exit 254;;\n'
        "register-certificate-without-ca) echo arn:aws:iot:r:1:cert/new;;\n"
        'list-thing-principals) printf "arn:aws:iot:r:1:cert/old\\tarn:aws:iot:r:1:cert/new\\n";;\nesac\n'
    )
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    subprocess.run([tmp_path / "enrolled/aws-iot.sh"], env={"PATH": path}, check=True, cwd="/")
    asked = log.read_text().splitlines()
    assert any(
        "register-certificate-without-ca --certificate-pem file://camera-1.crt" in one for one in asked
    )
    assert "iot attach-policy --policy-name edge-aws-iot-policy --target arn:aws:iot:r:1:cert/new" in asked
    assert "iot attach-thing-principal --thing-name camera-1 --principal arn:aws:iot:r:1:cert/new" in asked
    assert "iot update-certificate --certificate-id old --new-status REVOKED" in asked
    assert not any("--certificate-id new --new-status" in one for one in asked)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("enroll",), "give one DEVICE, or --from FILE"),
        (("enroll", "a", "--from", "x.csv"), "give one DEVICE, or --from FILE"),
        (("enroll", "--from", "x.csv", "--site", "s"), "has columns for"),
        (("enroll", "a b"), "device 'a b'"),
        (("enroll", "a", "--tag", "class=x"), "tag 'class=x'"),
        (("enroll", "a", "--broker-certificate"), "--ca-certificate and --ca-key"),
        (("enroll", "a", "--ca-key", "x", "--ca-certificate", "y"), "goes with --broker-certificate"),
        (("enroll", "a", "--settings", "none.toml"), "none.toml: No such file"),
        (("retire", "../a"), "device '../a'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(fleet, tmp_path, arguments, told):
    code, _, error = fleet.run(*arguments)
    assert code == 1
    assert told in error
    assert not (tmp_path / "enrolled").exists()


def test_settings_that_no_device_would_start_with_are_refused(fleet, tmp_path):
    (tmp_path / "all.toml").write_text("[probation]\nframes = 5\n[sinks]\nmqttt = true\n")
    code, _, error = fleet.run("enroll", "a", "--settings", "all.toml")
    assert code == 1
    assert "no device would start with it: [sinks] mqttt" in error
    (tmp_path / "all.toml").write_text('[probation]\nframes = 5\n[source]\nkind = "picamera"\n')
    assert (
        "all.toml: no device would start with it: [probation] frames"
        in fleet.run("enroll", "a", "--settings", "all.toml")[2]
    )
    assert not (tmp_path / "enrolled").exists()


def test_lines_of_other_users_stay_in_the_password_file(tmp_path):
    file = tmp_path / "passwords"
    file.write_text("pipeline:$7$101$a$b\ncamera-1:$7$101$old$old\n")
    file.chmod(0o640)
    change_passwords(file, {"camera-1": "camera-1:$7$101$new$new"}, ["camera-2"])
    assert file.read_text() == "pipeline:$7$101$a$b\ncamera-1:$7$101$new$new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    change_passwords(file, {}, ["camera-1"])
    assert file.read_text() == "pipeline:$7$101$a$b\n"
    file.write_text("[broker]\nhost = x\n")
    with pytest.raises(InputError, match="line 1 is none of mosquitto_passwd"):
        change_passwords(file, {"a": "a:$7$"})


@pytest.mark.parametrize(
    ("url", "endpoint", "address"),
    [
        ("s3://edge-models/prod", "", "https://s3.eu-central-1.amazonaws.com/edge-models/prod"),
        ("s3://edge-models", "https://s3.example.com/", "https://s3.example.com/edge-models"),
        ("s3://b/a b#1", "http://minio:9000", "http://minio:9000/b/a%20b%231"),
        ("file:///srv/models", "", "file:///srv/models"),
    ],
)
def test_devices_find_the_store_where_the_pipeline_has_it(url, endpoint, address):
    settings = StoreSettings(url, endpoint, "eu-central-1", "when_required", conditional_writes=True)
    assert device_address(settings) == address


# Bundles at the device


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    """A tar with entries as they are."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[Any, bytes]:
    """An entry of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


TOML = b'[device]\nid = "camera-1"\n'
HOSTILE = {
    "a path out of the folder": (
        tar_of(entry("device.toml", TOML), entry("../../etc/passwd", b"x")),
        "does not",
    ),
    "an absolute path": (tar_of(entry("/etc/shadow", b"x")), "does not belong"),
    "a link": (tar_of(entry("root.json", kind=tarfile.SYMTYPE, link="/etc/shadow")), "does not belong"),
    "a device": (tar_of(entry("report-key.pem", kind=tarfile.CHRTYPE)), "does not belong"),
    "a file twice": (tar_of(entry("device.toml", TOML), entry("device.toml", b"")), "does not belong"),
    "compressed": (tar_of(entry("device.toml", TOML), mode="w:gz"), "damaged, or no bundle"),
    "cut off": (tar_of(entry("device.toml", TOML * 100))[:1200], "damaged"),
    "no tar": (b"#!/bin/sh\n" * 100, "damaged, or no bundle"),
    "empty": (b"", "damaged, or no bundle"),
    "no device": (tar_of(entry("device.toml", b'[broker]\nhost = "x"\n')), "names no device"),
    "no TOML": (tar_of(entry("device.toml", b"secret = = 1")), "is no TOML"),
    "no root of trust": (tar_of(entry("device.toml", TOML), entry("root.json", b"{}")), "no root of trust"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bundle_that_is_none_is_refused_before_anything_is_written(tmp_path, case):
    data, told = HOSTILE[case]
    bundle = tmp_path / "camera-1.tar"
    bundle.write_bytes(data)
    with pytest.raises(InstallError, match=told) as caught:
        user.read_flags(user.parse(["--bundle", str(bundle)]))
    assert "secret" not in str(caught.value)


@given(cut_and_pasted(tar_of(entry("device.toml", TOML), entry("root.json", b'{"signed":{"_type":"root"}}'))))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_any_bundle_is_read_or_refused(tmp_path_factory, data):
    bundle = tmp_path_factory.getbasetemp() / "any.tar"
    bundle.write_bytes(data)
    with contextlib.suppress(InstallError):
        wanted = user.read_flags(user.parse(["--bundle", str(bundle)]))
        assert wanted.files.keys() == {"root.json"}


def test_a_bundle_changes_an_installed_device_and_leaves_the_rest_as_it_is(fleet, tmp_path):
    with_broker(tmp_path)
    fleet.run("enroll", "camera-1", "--settings", "all.toml", "--site", "a", "--tag", "x")
    _, _, text = installed(tmp_path / "enrolled/camera-1.tar", tmp_path)
    text = text.replace('path = "/var/lib/edge-client/camera"', 'path = "/srv/pictures"  # mine')
    fleet.run("re-enroll", "camera-1", "--settings", "all.toml", "--site", "b", "--tag", "", "--anonymous")
    loaded, wanted, text = installed(tmp_path / "enrolled/camera-1.tar", tmp_path, text)
    assert (loaded.device.site, loaded.device.tags) == ("b", ())
    assert (loaded.broker.username, loaded.broker.password_file) == ("", "")
    assert '"/srv/pictures"  # mine' in text
    assert "broker-password" not in wanted.files


def test_a_device_that_runs_already_is_enrolled_and_keeps_its_broker(fleet, tmp_path):
    with_broker(tmp_path)
    mine = change_settings(
        EXAMPLE,
        {
            ("broker", "host"): "10.0.0.5",
            ("broker", "username"): "mine",
            ("broker", "password_file"): "/etc/edge-client/my-password",
        },
    )
    assert fleet.run("enroll", "camera-1", "--settings", "all.toml", "--keep-broker")[0] == 0
    loaded, wanted, _ = installed(tmp_path / "enrolled/camera-1.tar", tmp_path, mine)
    assert (loaded.broker.host, loaded.broker.username) == ("10.0.0.5", "mine")
    assert loaded.broker.password_file == "/etc/edge-client/my-password"
    assert wanted.files.keys() == {"root.json", "report-key.pem"}
    assert not (tmp_path / "enrolled/mosquitto-passwords").exists()
