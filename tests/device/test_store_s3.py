"""The device's own S3 client against real S3: signed requests, no boto3."""

from __future__ import annotations

import dataclasses
import uuid

import pytest

from edge_client.contract.errors import TransportError
from edge_client.settings import StoreCredentials, StoreSettings
from edge_client.update.fetcher import StoreFetcher
from edge_client.update.trust import NothingPublishedError, TrustedRepository

pytest.importorskip("boto3", reason="the embedded S3 is set up with boto3, which devices do not have")


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


def look(repository, tmp_path, settings, credentials) -> str:
    fetcher = StoreFetcher(settings, credentials)
    with TrustedRepository(repository.root, settings.base_url, tmp_path / "metadata", fetcher) as trusted:
        trusted.refresh()
        return trusted.channel("stable").release


def test_a_private_bucket_is_read_with_the_devices_own_rights(bucket, repository, tmp_path):
    settings, credentials = bucket
    release = look(repository, tmp_path, settings, credentials)
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
        look(repository, tmp_path, settings, wrong)


def test_a_prefix_without_anything_is_nothing_published(bucket, repository, tmp_path):
    settings, credentials = bucket
    empty = dataclasses.replace(settings, base_url=f"{settings.base_url}-other")
    with pytest.raises(NothingPublishedError):
        look(repository, tmp_path, empty, credentials)
