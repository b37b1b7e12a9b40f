"""The device's own S3 client against real S3: signed requests, no boto3."""

from __future__ import annotations

import dataclasses
import uuid

import numpy as np
import pytest
import urllib3
from local_services import wait_until

from edge_client.contract.errors import TransportError
from edge_client.inbox.keeper import FrameKeeper, kept_records
from edge_client.inbox.selection import UNSURE
from edge_client.inbox.upload import upload_in_child
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.sigv4 import sign_put
from edge_client.repository.trusted import NothingPublishedError, TrustedRepository
from edge_client.settings.file import load_settings
from edge_client.settings.frames import InboxSettings
from edge_client.settings.update import StoreCredentials, StoreSettings
from tests.fakes.raw_server import RawServer
from tests.fakes.results import example_result

pytest.importorskip("boto3", reason="the embedded S3 is set up with boto3, which devices do not have")


RESULT = example_result(device="camera-1")


@pytest.fixture
def bucket(object_store, repository):
    """A private bucket with a signed repository; returns (settings, the device's credentials)."""
    repository.publish_tiny(0)
    prefix = uuid.uuid4().hex
    client = object_store.client()
    for path, data in repository.objects.items():
        client.put_object(Bucket=object_store.bucket, Key=f"{prefix}/{path}", Body=data)
    settings = StoreSettings(base_url=f"{object_store.endpoint_url}/{object_store.bucket}/{prefix}")
    return settings, StoreCredentials(object_store.device_access_key, object_store.device_secret_key)


def check(repository, tmp_path, settings, credentials) -> str:
    fetcher = StoreFetcher(settings, credentials)
    with TrustedRepository(repository.root, settings.base_url, tmp_path / "metadata", fetcher) as trusted:
        trusted.refresh()
        return trusted.channel("stable").release


def test_a_private_bucket_is_read_with_the_devices_own_rights(bucket, repository, tmp_path):
    settings, credentials = bucket
    release = check(repository, tmp_path, settings, credentials)
    fetcher = StoreFetcher(settings, credentials)
    with TrustedRepository(repository.root, settings.base_url, tmp_path / "metadata", fetcher) as trusted:
        trusted.refresh()
        model = trusted.fetch(f"releases/{release}/model.tflite", tmp_path)
    assert model.read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize("fault", ["wrong secret", "unknown key", "none"])
def test_wrong_credentials_are_named(bucket, repository, tmp_path, fault):
    settings, credentials = bucket
    wrong = {
        "wrong secret": dataclasses.replace(credentials, secret_access_key="wrong"),
        "unknown key": StoreCredentials("NOBODY", "x"),
        "none": None,
    }[fault]
    with pytest.raises(TransportError, match="access_key_file"):
        check(repository, tmp_path, settings, wrong)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("SecondLevelDomainForbidden", "must stand in the host name of base_url"),
        ("InvalidObjectState", "archived by a lifecycle rule"),
        ("RequestTimeTooSkewed", "clock is wrong"),
        ("PermanentRedirect", "region"),
    ],
)
def test_a_refusal_says_its_way_out(repository, tmp_path, code, says):
    body = f"<Error><Code>{code}</Code></Error>"
    with RawServer(f"HTTP/1.1 403 no\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()) as store:
        settings = StoreSettings(base_url=store.url)
        with pytest.raises(TransportError, match=rf"403 {code} \(.*{says}"):
            check(repository, tmp_path, settings, StoreCredentials("KEY", "SECRET"))


def test_a_prefix_without_anything_is_nothing_published(bucket, repository, tmp_path):
    settings, credentials = bucket
    empty = dataclasses.replace(settings, base_url=f"{settings.base_url}-other")
    with pytest.raises(NothingPublishedError):
        check(repository, tmp_path, empty, credentials)


def test_kept_frames_arrive_with_rights_to_the_inbox_alone(bucket, object_store, tmp_path, monkeypatch):
    store, credentials = bucket
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key)
    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nid = "camera-1"\nstate_dir = "{tmp_path}"\n[store]\nbase_url = "{store.base_url}"\n'
        f'[source]\npath = "{tmp_path}"\n'
    )
    settings = load_settings(file)
    folder = tmp_path / "inbox"
    keeper = FrameKeeper(InboxSettings(unsure_below=0.5), folder)
    assert keeper.keep(np.zeros((32, 32, 3), np.uint8), RESULT, UNSURE)
    wait_until(lambda: kept_records(folder) != [], "the frame")
    keeper.close()
    [record] = kept_records(folder)
    picture, said = record.with_suffix(".jpg").read_bytes(), record.read_bytes()
    report = upload_in_child(settings)
    assert (report.uploaded, report.error) == (1, None)
    client, prefix = object_store.client(), store.base_url.rpartition("/")[2]
    for name, content in ((record.with_suffix(".jpg").name, picture), (record.name, said)):
        found = client.get_object(Bucket=object_store.bucket, Key=f"{prefix}/inbox/camera-1/{name}")
        assert found["Body"].read() == content


def test_a_device_writes_nowhere_else(bucket, tmp_path):
    """Its key must not be able to change what is published, signed or not."""
    store, credentials = bucket
    url = f"{store.base_url}/metadata/timestamp.json"
    answer = urllib3.request("PUT", url, body=b"{}", headers=sign_put(url, "us-east-1", credentials, b"{}"))
    assert answer.status == 403
