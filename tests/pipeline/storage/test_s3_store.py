"""Faults and addresses of S3 alone, on a real S3 server; `test_store` has what every store promises."""

from __future__ import annotations

import dataclasses

import pytest
from local_services import free_ports

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.storage.s3_client import split_url
from luigi_tasks.storage.s3_store import S3Store


def test_wrong_credentials_are_named(store_settings, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3Store(store_settings)
    with pytest.raises(SettingsError, match="refused the credentials"):
        store.put("key", b"")
    with pytest.raises(SettingsError, match="refused the credentials"):
        store.exists("key")


def test_no_credentials_are_named(store_settings, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        S3Store(store_settings).exists("key")


def test_store_that_is_down_is_a_transport_error(store_settings):
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    store = S3Store(dataclasses.replace(store_settings, endpoint_url=dead))
    with pytest.raises(TransportError, match="endpoint_url"):
        store.exists("key")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/a/b/", ("bucket", "a/b/")),
    ],
)
def test_urls_split_into_bucket_and_prefix(url, expected):
    assert split_url(url) == expected


@pytest.mark.parametrize("url", ["", "bucket/prefix", "http://bucket/prefix", "s3://"])
def test_other_urls_are_refused(url):
    with pytest.raises(SettingsError, match="s3://bucket"):
        split_url(url)
