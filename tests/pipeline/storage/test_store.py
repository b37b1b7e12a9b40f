"""The bucket through its one room, on a real S3 server."""

from __future__ import annotations

import dataclasses
import multiprocessing
import urllib.request
from typing import Any

import pytest
from local_services import free_ports

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.storage.s3_store import S3Store, split_url
from luigi_tasks.storage.store import StoreConflictError


@pytest.fixture
def store(store_settings):
    return S3Store(store_settings)


def test_what_was_put_is_read_back(store):
    assert not store.exists("a/b.json")
    assert store.get("a/b.json") is None
    store.put("a/b.json", b"content")
    assert store.exists("a/b.json")
    assert store.read("a/b.json") == b"content"


def test_a_write_on_top_of_somebody_elses_write_is_refused(store):
    store.put_if_unchanged("pointer", b"1", None)
    with pytest.raises(StoreConflictError):
        store.put_if_unchanged("pointer", b"2", None)
    etag = store.get("pointer").etag
    store.put_if_unchanged("pointer", b"3", etag)
    with pytest.raises(StoreConflictError):
        store.put_if_unchanged("pointer", b"4", etag)
    assert store.read("pointer") == b"3"


def test_missing_bucket_is_named_at_the_first_look(store_settings):
    store = S3Store(dataclasses.replace(store_settings, url="s3://no-such-bucket/x"))
    for look in (store.exists, store.get):
        with pytest.raises(SettingsError, match=r"s3://no-such-bucket/x/key.*does not exist; create it"):
            look("key")


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


def test_an_object_over_its_limit_is_not_read(store):
    store.put("big", b"x" * 1000)
    with pytest.raises(TransportError, match="1000 bytes, at most 999"):
        store.get("big", limit_bytes=999)


def test_a_listing_has_what_lies_below_its_folder_by_key(store):
    for key in ("a/2", "a/1", "a/b/3", "ab/4", "5"):
        store.put(key, key.encode())
    listed = store.list_folder("a/")
    assert [(one.key, one.size_bytes) for one in listed] == [("a/1", 3), ("a/2", 3), ("a/b/3", 5)]
    assert listed[0].etag == store.get("a/1").etag
    assert len(store.list_folder("")) == 5
    assert store.list_folder("none/") == ()


def test_what_was_deleted_is_gone_and_may_be_deleted_again(store):
    store.put("key", b"content")
    for _ in range(2):
        store.delete("key")
    assert store.get("key") is None


def test_listing_and_deleting_in_a_bucket_that_is_missing_name_it(store_settings):
    store = S3Store(dataclasses.replace(store_settings, url="s3://no-such-bucket/x"))
    for act in (store.list_folder, store.delete):
        with pytest.raises(SettingsError, match=r"s3://no-such-bucket/x/key/.*does not exist; create it"):
            act("key/")


def test_a_signed_link_shows_the_object_without_credentials(store):
    store.put("report.html", b"<p>hello", content_type="text/html")
    with urllib.request.urlopen(store.presign_url("report.html", 60)) as answer:  # noqa: S310
        assert answer.read() == b"<p>hello"
        assert answer.headers["Content-Type"] == "text/html"


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


def _read_at_once(store: S3Store, number: int, together: Any) -> None:
    together.wait(30)
    assert store.read(f"fork/{number}") == bytes([number]) * 1_000_000


def test_forked_processes_do_not_read_each_others_answers(store):
    """`luigi --workers 2` forks after the first request, whose connection waits for the next."""
    fork = multiprocessing.get_context("fork")
    for number in range(4):
        store.put(f"fork/{number}", bytes([number]) * 1_000_000)
    for _ in range(8):
        store.read("fork/0")
        together = fork.Barrier(4)
        readers = [fork.Process(target=_read_at_once, args=(store, n, together)) for n in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert [reader.exitcode for reader in readers] == [0] * 4
