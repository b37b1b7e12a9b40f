"""Contract of every store, over S3 (a real server) and over a folder: the same promises."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import time
import urllib.request
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage import limits
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.storage.opening import open_store
from luigi_tasks.storage.s3_store import read_body
from luigi_tasks.storage.store import StoreConflictError, TooLargeError
from tests.fakes.s3_servers import SERVERS, S3Server

if TYPE_CHECKING:
    from luigi_tasks.storage.store import Store


# SeaweedFS, as in all other tests, a folder, and further servers, each in a process of its own.
FURTHER = [pytest.param(one, marks=pytest.mark.slow) for one in SERVERS]
# What is about our processes, not about the server.
LOCAL = pytest.mark.parametrize("settings", ["s3", "folder"], indirect=True)


@pytest.fixture(scope="module")
def servers():
    """Start each server at its first use."""
    started: dict[str, S3Server] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str) -> S3Server:
            if name not in started:
                started[name] = stack.enter_context(SERVERS[name]())
            return started[name]

        yield start


@pytest.fixture(params=["s3", "folder", *FURTHER])
def settings(request, tmp_path, servers, monkeypatch):
    """Settings of an empty store of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("store_settings")
    if request.param == "folder":
        return StoreSettings(
            (tmp_path / "a store").as_uri(), "", "", "when_required", conditional_writes=True
        )
    server = servers(request.param)
    for name, value in server.credentials().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{server.bucket}/{uuid.uuid4().hex}"
    return StoreSettings(url, server.endpoint_url, "us-east-1", "", conditional_writes=server.is_conditional)


@pytest.fixture
def conditional(settings):
    """Skip what a store without conditional writes cannot promise; such a one is refused elsewhere."""
    if not settings.conditional_writes:
        pytest.skip("this server ignores If-Match and If-None-Match")


@pytest.fixture
def missing(settings):
    """Settings of a store whose bucket, or the folder around it, does not exist."""
    url = "s3://no-such-bucket/x" if settings.url.startswith("s3:") else "file:///no-such-folder/x"
    return dataclasses.replace(settings, url=url)


@pytest.fixture
def store(settings) -> Store:
    return open_store(settings)


def test_what_was_put_is_read_back(store):
    assert not store.exists("a/b.json")
    assert store.get("a/b.json") is None
    store.put("a/b.json", b"content")
    assert store.exists("a/b.json")
    assert store.read("a/b.json") == b"content"
    assert store.get("a/b.json", limit_bytes=7).data == b"content"


def test_a_later_put_replaces_the_object(store, settings):
    store.put("key", b"old content")
    store.put("key", b"new")
    assert open_store(settings).read("key") == b"new"


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""
    assert [one.size_bytes for one in store.list_folder("")] == [0]


def test_a_folder_of_objects_is_no_object(store):
    store.put("a/b/c", b"content")
    for key in ("a", "a/b", "a/b/c/d"):
        assert not store.exists(key)
        assert store.get(key) is None


def test_deleting_a_folder_of_objects_deletes_none(store, request):
    if "rclone" in request.node.name:
        pytest.skip("rclone answers 500 to the deletion of a folder")
    store.put("a/b/c", b"content")
    for key in ("a", "a/b", "a/b/c/d"):
        store.delete(key)
    assert store.read("a/b/c") == b"content"


def test_a_missing_object_that_must_be_there_is_named(store):
    with pytest.raises(TransportError, match=r"a/b.*missing"):
        store.read("a/b")


@pytest.mark.usefixtures("conditional")
def test_a_write_over_a_later_version_is_refused(store):
    store.put_if_unchanged("pointer", b"1", None)
    with pytest.raises(StoreConflictError, match=r"pointer: changed by another process"):
        store.put_if_unchanged("pointer", b"2", None)
    etag = store.get("pointer").etag
    store.put_if_unchanged("pointer", b"3", etag)
    with pytest.raises(StoreConflictError):
        store.put_if_unchanged("pointer", b"4", etag)
    assert store.read("pointer") == b"3"


@pytest.mark.usefixtures("conditional")
def test_a_deleted_version_is_not_written_over(store):
    store.put("pointer", b"1")
    etag = store.get("pointer").etag
    store.delete("pointer")
    with pytest.raises(TransportError):
        store.put_if_unchanged("pointer", b"2", etag)
    assert store.get("pointer") is None
    store.put_if_unchanged("pointer", b"3", None)
    assert store.read("pointer") == b"3"


def test_an_etag_changes_with_the_content_only(store):
    store.put("key", b"one")
    first = store.get("key").etag
    store.put("key", b"two")
    assert store.get("key").etag != first
    assert store.get("key").etag == listed_etag(store, "key")


def listed_etag(store: Store, key: str) -> str:
    """ETag of an object as its listing has it."""
    [listed] = store.list_folder("")
    assert listed.key == key
    return listed.etag


def test_an_object_over_its_limit_is_not_read(store):
    store.put("big", b"x" * 1000)
    with pytest.raises(TooLargeError, match=r"big: 1000 bytes, at most 999"):
        store.get("big", limit_bytes=999)


@pytest.mark.parametrize("key", ["work/candidates/7c/candidate.json", "work/batches/7c/batch.json", "other"])
def test_an_object_whose_reader_gives_no_limit_has_that_of_its_kind(store, key, monkeypatch):
    """Documents of `work/` are not read before their limit is looked at."""
    limits_of = {".json": 998, ".npz": 10_000}
    monkeypatch.setattr(limits, "_BY_SUFFIX", limits_of)
    monkeypatch.setattr(limits, "_LIST_LIMIT_BYTES", 999)
    monkeypatch.setattr(limits, "_OTHER_LIMIT_BYTES", 500)
    store.put(key, b"x" * 1000)
    for read in (store.get, store.read):
        with pytest.raises(TooLargeError, match=r"at most \d+ are expected.*not read"):
            read(key)
    store.put("work/heads/7c/head.npz", b"x" * 1000)
    assert len(store.read("work/heads/7c/head.npz")) == 1000


def test_an_answer_without_an_end_is_not_read_to_its_end():
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 101
            return b"x" * size

    for answer in ({"Body": Endless()}, {"Body": Endless(), "ContentLength": 5}):
        with pytest.raises(TooLargeError, match="at most 100"):
            read_body(answer, 100, "s3://bucket/key")


def test_a_sparse_file_of_terabytes_is_not_read(tmp_path):
    url = (tmp_path / "store").as_uri()
    own = FolderStore(StoreSettings(url, "", "", "when_required", conditional_writes=True))
    own.put("work/plans/a.json", b"{}")
    os.truncate(tmp_path / "store/work/plans/a.json", 4 << 40)
    with pytest.raises(TooLargeError):
        own.read("work/plans/a.json")


def test_a_listing_has_what_lies_below_its_folder_by_key(store):
    for key in ("a/2", "a/1", "a/b/3", "a-b/4", "ab/4", "5"):
        store.put(key, key.encode())
    listed = store.list_folder("a/")
    assert [(one.key, one.size_bytes) for one in listed] == [("a/1", 3), ("a/2", 3), ("a/b/3", 5)]
    assert listed[0].etag == store.get("a/1").etag
    assert all(abs((one.written_at or 0.0) - time.time()) < 3600 for one in listed)
    assert [one.key for one in store.list_folder("")] == ["5", "a-b/4", "a/1", "a/2", "a/b/3", "ab/4"]
    assert store.list_folder("none/") == ()
    cheap = store.list_unread("a/")
    assert [(one.key, one.size_bytes) for one in cheap] == [(one.key, one.size_bytes) for one in listed]
    assert [one.key for one in store.list_unread("a/", "a/1")] == ["a/2", "a/b/3"]
    assert [one.key for one in store.list_unread("", "a/12")] == ["a/2", "a/b/3", "ab/4"]
    store.put("a/1", b"other")
    again = store.list_unread("a/")
    assert [one.etag != before.etag for one, before in zip(again, cheap, strict=True)] == [True, False, False]


def test_any_printable_key_is_read_back_and_listed(store):
    keys = ["with space", "grüße/日本", "a+b/c&d=e", "100%", "%41", "a#b?c", "x" * 200]
    for key in keys:
        store.put(key, key.encode())
        assert store.read(key) == key.encode()
    assert [one.key for one in store.list_folder("")] == sorted(keys)


def test_what_was_deleted_is_gone_and_may_be_deleted_again(store):
    store.put("a/b/key", b"content")
    for _ in range(2):
        store.delete("a/b/key")
    assert store.get("a/b/key") is None
    assert store.list_folder("") == ()
    store.put("a/b/key", b"content")
    assert store.read("a/b/key") == b"content"


def test_a_store_that_is_missing_is_named_at_the_first_access(missing):
    store = open_store(missing)
    for access in (
        store.exists,
        store.get,
        store.read,
        lambda key: store.list_folder(f"{key}/"),
        store.delete,
    ):
        with pytest.raises(SettingsError, match=r"/x.* does not exist; create"):
            access("key")


def test_a_presigned_url_shows_the_object_without_credentials(store):
    store.put("a b/report.html", b"<p>hello", content_type="text/html")
    with urllib.request.urlopen(store.presign_url("a b/report.html", 60)) as answer:  # noqa: S310
        assert answer.read() == b"<p>hello"
        assert answer.headers["Content-Type"].partition(";")[0] == "text/html"


def test_stores_of_two_folders_do_not_see_each_other(settings):
    one, other = (open_store(dataclasses.replace(settings, url=f"{settings.url}/{name}")) for name in "ab")
    open_store(settings).put("top", b"")
    one.put("key", b"1")
    other.put("key", b"2")
    assert one.read("key") == b"1"
    assert [found.key for found in other.list_folder("")] == ["key"]


def _count_up(settings: StoreSettings, times: int, together: Any) -> None:
    """Add 1 to a number `times` times, by compare and swap."""
    store = open_store(settings)
    together.wait(30)
    done = 0
    while done < times:
        found = store.get("number")
        try:
            store.put_if_unchanged(
                "number",
                str(int(found.data) + 1 if found else 1).encode(),
                found.etag if found is not None else None,
            )
        except StoreConflictError:
            continue
        done += 1


@LOCAL
def test_processes_that_swap_the_pointer_at_once_lose_no_write(settings):
    processes, times = 3, 10
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    counters = [context.Process(target=_count_up, args=(settings, times, together)) for _ in range(processes)]
    for one in counters:
        one.start()
    for one in counters:
        one.join(60)
    assert [one.exitcode for one in counters] == [0] * processes
    assert open_store(settings).read("number") == str(processes * times).encode()


def _read_at_once(store: Store, number: int, together: Any) -> None:
    together.wait(30)
    assert store.read(f"fork/{number}") == bytes([number]) * 1_000_000


@LOCAL
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
