"""Temporary keys of the store from AWS IoT's credentials provider: fetched, renewed, never shown."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from edge_client.cli import main
from edge_client.contract.errors import DeviceError, EdgeError, SettingsError, TransportError
from edge_client.inbox.upload_child import open_writer
from edge_client.repository.keys import TemporaryKeys
from edge_client.settings.file import load_settings
from edge_client.settings.update import StoreSettings
from tests.fakes.certificates import CertificateAuthority, KeyPair
from tests.fakes.credentials_provider import ALIAS, CredentialsProvider, write_encrypted_key
from tests.fakes.raw_server import RawServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.device.conftest import DeviceUnderTest
    from tests.fakes.tuf_repository import TufRepository


@pytest.fixture
def authority(tmp_path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


@pytest.fixture
def identity(authority: CertificateAuthority) -> KeyPair:
    return authority.issue("camera-1")


@pytest.fixture
def provider(authority: CertificateAuthority) -> Iterator[CredentialsProvider]:
    with CredentialsProvider(authority) as provider:
        yield provider


@pytest.fixture
def given(
    provider: CredentialsProvider, authority: CertificateAuthority, identity: KeyPair
) -> dict[str, Any]:
    """Settings of [store]."""
    return provider.settings(authority, identity)


@pytest.fixture
def private(
    device: DeviceUnderTest, repository: TufRepository, provider: CredentialsProvider, given: dict[str, Any]
) -> DeviceUnderTest:
    """A device whose store takes the provider's tokens alone."""
    repository.guard = provider.guard
    device.store = dataclasses.replace(device.store, **given)
    return device


class Time:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_release_comes_with_keys_of_the_certificate(private, repository, provider):
    release = repository.publish_tiny(0).release
    private.check()
    private.assert_serves(release)
    assert provider.things == ["camera-1"], "one fetch a check"


def test_keys_that_expire_in_the_middle_are_renewed_and_the_request_repeated(private, repository, provider):
    release = repository.publish_tiny(0).release
    provider.revoke_after = 2
    private.check()
    private.assert_serves(release)
    assert len(provider.things) > 2


def test_keys_are_renewed_before_they_expire_and_not_sooner(provider, given):
    time = Time()
    keys = TemporaryKeys(StoreSettings(**given), time)
    first = keys.current()
    assert keys.life_s == pytest.approx(3600, abs=2)
    for now, fetched in ((time.now + 3290, 1), (time.now + 3310, 2), (time.now + 3310 + 3290, 2)):
        time.now = now
        assert keys.current().session_token
        assert len(provider.things) == fetched
    assert keys.current() != first


def test_a_wrong_clock_of_the_device_does_not_matter(provider, given):
    for days in (-3650, 3650):
        provider.clock_ahead = datetime.timedelta(days=days)
        keys = TemporaryKeys(StoreSettings(**given))
        assert keys.current().session_token
        assert keys.life_s == pytest.approx(3600, abs=2)


def test_valid_keys_serve_while_the_provider_is_away(provider, given, caplog):
    time = Time()
    keys = TemporaryKeys(StoreSettings(**given), time)
    first = keys.current()
    provider.refusal = (503, b"")
    time.now += 3400
    assert keys.current() == first
    assert "503" in caplog.text
    time.now += 30
    assert keys.current() == first
    assert len(provider.things) == 2, "asked again after a minute"
    time.now += 300
    with pytest.raises(TransportError, match="503"):
        keys.current()
    provider.refusal = None
    assert keys.current() != first


REFUSALS = {
    "another alias": (404, b'{"message":"Not Found","traceId":"1"}', "404 Not Found; is there a role alias"),
    "no policy": (
        403,
        b'{"message":"Access Denied","traceId":"1"}',
        "403 Access Denied; the certificate must",
    ),
    "another thing": (400, b'{"message":"Invalid thing name passed"}', "attached to the thing camera-1"),
    "no message": (403, b"<html>", "403 Forbidden; the certificate must"),
    "a proxy's page": (200, b"<html>", "not an answer of the credentials provider"),
    "no keys": (200, b'{"credentials":{}}', "not an answer of the credentials provider"),
    "too busy": (429, b"", "cannot answer now"),
    "an outage": (500, b"", "cannot answer now"),
    "a message that plays tricks": (403, b'{"message":"a\\u001b[2J\\nb"}', "403 a [2J b; the certificate"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_refusal_is_one_paragraph_with_its_way_out(provider, given, name):
    status, body, told = REFUSALS[name]
    provider.refusal = (status, body)
    with pytest.raises(TransportError) as caught:
        TemporaryKeys(StoreSettings(**given)).current()
    message = str(caught.value)
    assert told in message
    assert f"no temporary keys of role alias {ALIAS}: " in message
    assert message.startswith(f"https://{provider.endpoint}")
    assert "\n" not in message


def test_keys_that_are_dead_on_arrival_name_the_clock(provider, given):
    provider.life_s = -10.0
    with pytest.raises(TransportError, match="sent keys that have expired; set this device's clock"):
        TemporaryKeys(StoreSettings(**given)).current()


def test_a_role_alias_that_does_not_exist_is_named(private, repository):
    repository.publish_tiny(0)
    private.store = dataclasses.replace(private.store, role_alias="edge stroe/x")
    with pytest.raises(TransportError, match=r"404 Not Found; is there a role alias edge stroe/x"):
        private.check()


def test_a_provider_that_says_nothing_is_given_up(given):
    with RawServer(b"") as silent, silent.silent():
        store = StoreSettings(
            **{**given, "credentials_endpoint": f"127.0.0.1:{silent.port}", "timeout_s": 0.2}
        )
        with pytest.raises(TransportError, match=r"in time \(\[store\] timeout_s\); is the network up"):
            TemporaryKeys(store).current()
        assert len(silent.requests) == 1


def certificate_files(tmp_path, identity) -> dict[str, tuple[dict[str, Any], type[EdgeError], str]]:
    stranger = CertificateAuthority(tmp_path / "stranger", "Another CA")
    other = stranger.issue("camera-1")
    encrypted = write_encrypted_key(identity, tmp_path / "encrypted.key")
    cut = tmp_path / "cut.pem"
    cut.write_bytes(identity.certificate.read_bytes()[:100])
    return {
        "of a CA that the provider does not know": (
            {"certificate_file": str(other.certificate), "key_file": str(other.key)},
            TransportError,
            "is the network up, the certificate active in AWS IoT",
        ),
        "a provider of another CA": (
            {"credentials_ca_file": str(stranger.certificate)},
            TransportError,
            "credentials_ca_file (empty: the CAs of this system) must have the CA of that host",
        ),
        "the key of another certificate": (
            {"key_file": str(other.key)},
            SettingsError,
            "MISMATCH",
        ),
        "an encrypted key": ({"key_file": str(encrypted)}, SettingsError, "the key without a passphrase"),
        "a damaged certificate": ({"certificate_file": str(cut)}, SettingsError, "[store] certificate_file"),
        "a missing key": ({"key_file": str(tmp_path / "none")}, SettingsError, "copy it to this device"),
        "a folder": ({"certificate_file": str(tmp_path)}, SettingsError, "Is a directory"),
        "a CA that is none": (
            {"credentials_ca_file": str(identity.key)},
            SettingsError,
            "no certificate",
        ),
    }


def test_each_certificate_that_does_not_do_is_named(tmp_path, identity, given):
    for name, (changes, kind, told) in certificate_files(tmp_path, identity).items():
        with pytest.raises(kind) as caught:
            TemporaryKeys(StoreSettings(**{**given, **changes})).current()
        assert told in str(caught.value), name
        assert not isinstance(caught.value, DeviceError)


def settings_text(repository: TufRepository, store: dict[str, Any], broker: str = "") -> str:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in store.items())
    return (
        f'[device]\nid = "camera-1"\nstate_dir = "state"\n[store]\nbase_url = "{repository.url}"\n{lines}'
        f'[trust]\nroot = "root.json"\n[broker]\nhost = ""\n{broker}[source]\npath = "camera"\n'
    )


def test_frames_are_uploaded_with_the_same_keys(tmp_path, private, repository, provider, given):
    file = tmp_path / "device.toml"
    file.write_text(settings_text(repository, given) + "[inbox]\nunsure = true\nupload = true\n")
    writer = open_writer(load_settings(file))
    provider.revoke_after = 1
    for name in ("a", "b"):
        writer.write(f"inbox/camera-1/{name}.jpg", name.encode(), "image/jpeg")
    assert repository.objects["inbox/camera-1/b.jpg"] == b"b"
    assert len(provider.things) == 2, "renewed for the second"


def test_doctor_shows_the_keys_without_their_secrets(tmp_path, capsys, caplog, repository, provider, given):
    caplog.set_level(logging.DEBUG)
    repository.guard = provider.guard
    repository.publish_tiny(0)
    (tmp_path / "root.json").write_bytes(repository.root)
    (tmp_path / "camera").mkdir()
    file = tmp_path / "device.toml"
    file.write_text(settings_text(repository, given))
    assert main(["doctor", "--config", str(file)]) == 0
    told = capsys.readouterr().out
    assert f"temporary ones of role alias {ALIAS} for thing camera-1, for 60 minutes" in told
    assert main(["export", "--config", str(file), str(tmp_path / "bundle.tar")]) == 0
    provider.clock_ahead = datetime.timedelta(hours=3)
    assert main(["doctor", "--config", str(file)]) == 5
    assert "this device's clock is 3.0 hours behind: Amazon S3 refuses" in capsys.readouterr().out
    provider.refusal = (403, b'{"message":"Access Denied"}')
    assert main(["export", "--config", str(file), str(tmp_path / "bundle.tar")]) == 4
    assert main(["doctor", "--config", str(file)]) == 5
    output = capsys.readouterr()
    assert "iot:AssumeRoleWithCertificate on the role alias edge-store" in output.out
    said = told + output.out + output.err + caplog.text
    assert provider.secrets
    assert not [secret for secret in provider.secrets if secret in said]


def test_certificate_and_thing_come_from_the_rest_of_the_settings(tmp_path, repository, given, identity):
    alone = {key: given[key] for key in ("credentials_endpoint", "role_alias")}
    broker = f'tls = true\ncertificate_file = "{identity.certificate}"\nkey_file = "{identity.key}"\n'
    file = tmp_path / "device.toml"
    file.write_text(settings_text(repository, alone, broker))
    store = load_settings(file).store
    assert (store.thing_name, store.certificate_file, store.key_file) == (
        "camera-1",
        str(identity.certificate),
        str(identity.key),
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"role_alias": ""}, "role_alias: credentials_endpoint needs one"),
        ({"role_alias": "arn:aws:iot:eu-west-1:1:rolealias/edge"}, "give the name of the alias alone"),
        ({"credentials_endpoint": ""}, "role_alias: give credentials_endpoint, too, or remove it"),
        (
            {"credentials_endpoint": "https://c1.credentials.iot.eu-central-1.amazonaws.com"},
            "the host alone",
        ),
        ({"credentials_endpoint": "a1-ats.iot.eu-central-1.amazonaws.com"}, "is the broker's; give what"),
        ({"access_key_file": "/keys.toml"}, "give one of the two"),
        ({"key_file": ""}, "credentials_endpoint needs both, here or in [broker]"),
    ],
)
def test_settings_that_cannot_give_keys_are_refused(given, changes, told):
    store = StoreSettings(base_url="https://s3.example/b", **given)
    assert store.faults() == ()
    assert told in "".join(dataclasses.replace(store, **changes).faults())


def test_a_key_and_a_token_are_never_shown(given):
    keys = TemporaryKeys(StoreSettings(**given)).current()
    assert not re.search("very-secret|token-", f"{keys!r} {keys}")


@pytest.mark.slow
def test_a_daemon_follows_its_channel_with_temporary_keys(daemon, watcher, repository, provider, given):
    repository.guard = provider.guard
    provider.revoke_after = 3
    daemon.settings["store"] |= given
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    watcher.wait_release(second)
    provider.refusal = (403, b'{"message":"Access Denied"}')
    watcher.announce(repository.publish_tiny(2).release)
    status = watcher.wait_status(lambda s: s.last_error is not None, "why there is no update")
    assert "403 Access Denied; the certificate must be active" in str(status.last_error)
    provider.refusal = None
    assert daemon.terminate() == 0
    said = daemon.log + daemon.ask("status").stdout
    assert not [secret for secret in provider.secrets if secret in said]
