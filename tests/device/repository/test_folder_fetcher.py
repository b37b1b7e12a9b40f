"""A device on a folder store: file://, and the same folder behind a plain web server."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import os
import random
import threading
from typing import TYPE_CHECKING

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError

from edge_client.contract.errors import SettingsError, TransportError, TrustError
from edge_client.contract.names import MODEL_FILE
from edge_client.repository.folder_fetcher import FolderFetcher
from edge_client.repository.trusted import NothingPublishedError
from tests.fakes.tuf_repository import object_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TARGET = "releases/big/model.tflite"
DATA = random.Random(1).randbytes(300_000)
OBJECT = object_path(TARGET, DATA)


@pytest.fixture
def store(tmp_path):
    """Folder of the store; not made yet."""
    return tmp_path / "a store"


@pytest.fixture
def web_server(store) -> Iterator[str]:
    """`python -m http.server` in the store's folder: knows no ranges."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(store))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(params=["file", "http"])
def reader(request, device, store):
    """A device that reads the folder in one of both ways."""
    url = store.as_uri() if request.param == "file" else request.getfixturevalue("web_server")
    device.store = dataclasses.replace(device.store, base_url=url)
    return device


@pytest.fixture
def publish(repository, store):
    """Writes all that the repository holds into the folder, and takes away what it does not."""

    def write() -> None:
        for path in [path for path in store.rglob("*") if path.is_file()]:
            path.unlink()
        for key, data in repository.objects.items():
            path = store / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    return write


def fetch(device, folder: Path) -> tuple[Path, int]:
    """One update check that fetches the file; returns it, and the bytes that were read for it."""
    with device.open() as trusted:
        trusted.refresh()
        before = trusted.bytes_pulled
        folder.mkdir(exist_ok=True)
        return trusted.fetch(TARGET, folder), trusted.bytes_pulled - before


def test_a_device_installs_and_follows_what_is_published_into_a_folder(reader, repository, publish):
    first = repository.publish_tiny(0).release
    publish()
    assert reader.check().release == first
    reader.assert_serves(first)
    second = repository.publish_tiny(1).release
    publish()
    assert reader.check().release == second
    reader.assert_serves(second)


def test_an_interrupted_download_is_resumed(reader, repository, publish, tmp_path):
    """A web server without ranges sends all of it again, which is noticed."""
    repository.add({TARGET: DATA})
    repository.sign()
    publish()
    folder = tmp_path / "staging"
    folder.mkdir()
    (folder / f".{MODEL_FILE}.incoming").write_bytes(DATA[:100_000])
    path, pulled = fetch(reader, folder)
    assert path.read_bytes() == DATA
    assert pulled == (200_000 if reader.store.base_url.startswith("file:") else 300_000)


@pytest.mark.parametrize("kept", [DATA[:100_000], DATA[:50_000], b""], ids=["as long", "longer", "empty"])
def test_a_file_that_was_cut_short_is_not_the_signed_content(reader, repository, publish, tmp_path, kept):
    repository.add({TARGET: DATA})
    repository.sign()
    repository.objects[OBJECT] = kept
    publish()
    folder = tmp_path / "staging"
    folder.mkdir()
    (folder / f".{MODEL_FILE}.incoming").write_bytes(DATA[:100_000])
    with pytest.raises(TrustError, match="not the content that was signed"):
        fetch(reader, folder)
    assert list(folder.iterdir()) == []


def test_a_changed_file_is_refused_and_nothing_of_it_stays(reader, repository, publish, tmp_path):
    repository.add({TARGET: DATA})
    repository.sign()
    repository.change_byte(OBJECT)
    publish()
    with pytest.raises(TrustError, match="not the content that was signed"):
        fetch(reader, tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_missing_file_may_come_back(reader, repository, publish, tmp_path):
    repository.add({TARGET: DATA})
    repository.sign()
    gone = repository.objects.pop(OBJECT)
    publish()
    with pytest.raises(TransportError, match=rf"{OBJECT}.* it is missing in the store: ") as caught:
        fetch(reader, tmp_path / "staging")
    asked_of_folders = "is it mounted? Else " if reader.store.base_url.startswith("file:") else ""
    assert f"in the store: {asked_of_folders}publish again" in str(caught.value)
    repository.objects[OBJECT] = gone
    publish()
    assert fetch(reader, tmp_path / "staging")[0].read_bytes() == DATA


def test_an_empty_folder_has_nothing_published_yet(reader, store):
    store.mkdir()
    with (
        reader.open() as trusted,
        pytest.raises(NothingPublishedError, match="nothing is published there yet") as caught,
    ):
        trusted.refresh()
    assert ("is it mounted?" in str(caught.value)) == reader.store.base_url.startswith("file:")


def test_a_folder_that_is_not_mounted_is_named_and_tried_again(device, store, repository, publish):
    device.store = dataclasses.replace(device.store, base_url=store.as_uri())
    with device.open() as trusted, pytest.raises(TransportError, match="mount it, or correct") as caught:
        trusted.refresh()
    assert not isinstance(caught.value, NothingPublishedError)
    release = repository.publish_tiny(0).release
    publish()
    assert device.check().release == release


def test_older_metadata_in_the_folder_is_refused(device, store, repository, publish):
    device.store = dataclasses.replace(device.store, base_url=store.as_uri())
    release = repository.publish_tiny(0).release
    before = dict(repository.objects)
    repository.publish_tiny(1)
    publish()
    newer = device.check().release
    assert newer != release
    repository.go_back_to(before)
    publish()
    with device.open() as trusted, pytest.raises(TrustError, match="older than what this device has seen"):
        trusted.refresh()
    device.assert_serves(newer)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "targets/../../secret",
        "targets/./x",
        "//etc/passwd",
        "",
        "targets/",
        "targets",
        "a\0b",
        "pipe",
    ],
)
def test_no_name_leads_out_of_the_folder_or_blocks(store, tmp_path, path):
    (store / "targets").mkdir(parents=True)
    os.mkfifo(store / "pipe")
    (tmp_path / "secret").write_bytes(b"secret")
    fetcher = FolderFetcher(store.as_uri())
    with pytest.raises(DownloadHTTPError) as caught:
        fetcher.fetch_from(f"{store.as_uri()}/{path}", 0)
    assert caught.value.status_code == 404
    with pytest.raises(DownloadHTTPError):
        fetcher.fetch_from((tmp_path / "secret").as_uri(), 0)


def test_a_link_in_the_folder_is_followed(store, tmp_path):
    store.mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "x").write_bytes(DATA)
    (store / "targets").symlink_to(tmp_path / "disk")
    fetcher = FolderFetcher(f"{store.as_uri()}/")
    start, chunks = fetcher.fetch_from(f"{store.as_uri()}/targets/x", 1000)
    assert (start, b"".join(chunks)) == (1000, DATA[1000:])
    assert fetcher.bytes_pulled == len(DATA) - 1000
    fetcher.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_of_another_user_is_named(store):
    store.mkdir()
    (store / "x").touch(mode=0o000)
    with pytest.raises(DownloadError, match="Permission denied"):
        FolderFetcher(store.as_uri()).fetch_from(f"{store.as_uri()}/x", 0)


@pytest.mark.parametrize("url", ["file://server/share", "file:relative", "file:///"])
def test_an_address_of_no_folder_is_refused(url):
    with pytest.raises(SettingsError, match="give file:///folder"):
        FolderFetcher(url)
