"""The user's AWS configuration counts, and the settings of the store before it where they are given."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

import pytest
from local_services import free_ports

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.s3_client import open_client
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.certificates import CertificateAuthority
from tests.fakes.refusing_s3 import RefusingS3

NOTHING = StoreSettings("s3://models/fleet", "", "", "", conditional_writes=True)
CONFIG = """
[default]
region = eu-north-1
[profile minio]
aws_access_key_id = KEY
aws_secret_access_key = SECRET
region = eu-south-1
endpoint_url = http://127.0.0.1:9
[profile oss]
aws_access_key_id = KEY
aws_secret_access_key = SECRET
region = cn-hangzhou
services = oss
retry_mode = adaptive
max_attempts = 9
request_checksum_calculation = when_supported
s3 =
  addressing_style = virtual
[services oss]
s3 =
  endpoint_url = https://oss-cn-hangzhou.aliyuncs.com
"""


@pytest.fixture(autouse=True)
def aws_config(monkeypatch, tmp_path):
    """A configuration of the user's, and nothing else of AWS in the environment."""
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(CONFIG)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")


def address(settings: StoreSettings) -> tuple[str, str]:
    """Host and path at which an object is asked for."""
    parts = urlsplit(S3Store(settings).presign_url("a key#?", 60))
    return parts.netloc, parts.path


AT_AWS = ("models.s3.amazonaws.com", "/fleet/a%20key%23%3F")
PATH_STYLE = "/models/fleet/a%20key%23%3F"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, AT_AWS),
        ({"addressing_style": "path"}, ("s3.eu-north-1.amazonaws.com", PATH_STYLE)),
        ({"endpoint_url": "http://minio:9000"}, ("minio:9000", PATH_STYLE)),
        (
            {"endpoint_url": "https://oss-cn-beijing.aliyuncs.com", "addressing_style": "virtual"},
            ("models.oss-cn-beijing.aliyuncs.com", AT_AWS[1]),
        ),
        ({"profile": "minio"}, ("127.0.0.1:9", PATH_STYLE)),
        ({"profile": "oss"}, ("models.oss-cn-hangzhou.aliyuncs.com", AT_AWS[1])),
        ({"profile": "oss", "addressing_style": "path"}, ("oss-cn-hangzhou.aliyuncs.com", PATH_STYLE)),
        ({"profile": "oss", "endpoint_url": "http://minio:9000"}, ("models.minio:9000", AT_AWS[1])),
    ],
)
def test_settings_count_before_the_profile_and_the_profile_before_defaults(given, expected):
    assert address(dataclasses.replace(NOTHING, **given)) == expected


def test_the_endpoints_of_the_environment_count(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    assert address(NOTHING) == ("general:1", PATH_STYLE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-s3:2")
    assert address(NOTHING) == ("of-s3:2", PATH_STYLE)
    assert address(dataclasses.replace(NOTHING, endpoint_url="http://given:3"))[0] == "given:3"


def test_the_region_is_that_of_settings_environment_and_profile_in_this_order(monkeypatch):
    assert open_client(NOTHING).meta.region_name == "eu-north-1"
    monkeypatch.setenv("AWS_PROFILE", "oss")
    assert open_client(NOTHING).meta.region_name == "cn-hangzhou"
    monkeypatch.setenv("AWS_REGION", "ap-east-1")
    assert open_client(NOTHING).meta.region_name == "ap-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "sa-east-1")  # boto3's own name counts first
    assert open_client(NOTHING).meta.region_name == "sa-east-1"
    assert open_client(dataclasses.replace(NOTHING, region="us-west-2")).meta.region_name == "us-west-2"


def test_retries_and_checksums_are_those_of_the_user_where_there_are_any():
    ours = open_client(NOTHING).meta.config
    assert (ours.retries["mode"], ours.retries["total_max_attempts"]) == ("standard", 4)
    assert ours.request_checksum_calculation == "when_required"
    theirs = open_client(dataclasses.replace(NOTHING, profile="oss")).meta.config
    assert (theirs.retries["mode"], theirs.retries["total_max_attempts"]) == ("adaptive", 9)
    assert theirs.request_checksum_calculation == "when_supported"
    assert theirs.response_checksum_validation == "when_required"
    given = dataclasses.replace(NOTHING, profile="oss", checksums="when_required")
    assert open_client(given).meta.config.request_checksum_calculation == "when_required"


@pytest.mark.parametrize(
    ("arrange", "says"),
    [
        (lambda env: env("AWS_PROFILE", "nobody"), r"nobody.*check \[store\] .*profile.* AWS_PROFILE"),
        (lambda env: env("AWS_RETRY_MODE", "never"), "never.*~/.aws/config"),
        (lambda env: env("AWS_ENDPOINT_URL", "minio:9000"), r"minio:9000.*check \[store\] endpoint_url"),
        (lambda env: env("AWS_REGION", "eu west"), "eu west.*region"),
        (lambda env: env("AWS_MAX_ATTEMPTS", "many"), "many.*AWS_"),
        (lambda env: env("AWS_REQUEST_CHECKSUM_CALCULATION", "never"), "never.*~/.aws/config"),
    ],
)
def test_a_faulty_aws_configuration_is_one_paragraph(monkeypatch, arrange, says):
    arrange(monkeypatch.setenv)
    with pytest.raises(SettingsError, match=rf"s3://models/fleet/key: .*{says}"):
        S3Store(NOTHING).get("key")


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("credential_process = false", "no credentials: .*mend the profile"),
        ("credential_process = /no/such/program", "/no/such/program.*programs"),
        ("credential_process = echo hello", "AWS configuration"),
        ("role_arn = arn:aws:iam::1:role/x\nsource_profile = nobody", "nobody.*~/.aws/config"),
        ("sso_session = x\nsso_account_id = 1\nsso_role_name = r", "sso|SSO"),
        ("web_identity_token_file = /no/token\nrole_arn = arn:aws:iam::1:role/x", "/no/token.*token files"),
        ("s3 = x", r"~/.aws/config: a section is not as AWS tools expect"),
    ],
)
def test_a_profile_without_credentials_is_one_paragraph(monkeypatch, tmp_path, profile, says):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "config").write_text(f"[default]\n{profile}\n")
    with pytest.raises(SettingsError, match=says):
        S3Store(NOTHING).get("key")


def test_a_ca_file_that_is_none_is_named(tmp_path, monkeypatch):
    missing = dataclasses.replace(NOTHING, ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=r"\[store\] ca_file .*ca.pem: no such file"):
        S3Store(missing).get("key")


def test_a_bucket_without_a_host_of_its_own_is_told_of_the_setting():
    settings = dataclasses.replace(
        NOTHING, endpoint_url=f"http://localhost.invalid:{free_ports(1)[0]}", addressing_style="virtual"
    )
    with pytest.raises(TransportError, match="addressing_style = path"):
        S3Store(settings).get("key")


def test_a_private_ca_is_trusted_where_it_is_named(tmp_path, monkeypatch):
    authority = CertificateAuthority(tmp_path / "ca")
    with RefusingS3(authority.issue("store")).running() as endpoint:
        settings = dataclasses.replace(NOTHING, endpoint_url=endpoint.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(TransportError, match=r"CERTIFICATE_VERIFY.*\[store\] ca_file.*AWS_CA_BUNDLE"):
            S3Store(settings).put("key", b"")
        S3Store(dataclasses.replace(settings, ca_file=str(authority.certificate))).put("key", b"")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.certificate))
        S3Store(settings).put("key", b"")
        plain = dataclasses.replace(settings, endpoint_url=endpoint.url.replace("https", "http"))
        with pytest.raises(TransportError):
            S3Store(plain).put("key", b"")
    with RefusingS3().running() as endpoint:
        wrong = dataclasses.replace(NOTHING, endpoint_url=endpoint.url.replace("http", "https"))
        with pytest.raises(TransportError, match=r"speaks no TLS, .*http://"):
            S3Store(wrong).put("key", b"")
