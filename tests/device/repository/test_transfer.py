"""Downloads that break, from a store that may lie about where it begins."""

from __future__ import annotations

import dataclasses
import random

import pytest

from edge_client.contract.errors import TransportError, TrustError
from edge_client.repository import transfer
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import TrustedRepository
from tests.fakes.tuf_repository import object_path

TARGET = "releases/big/model.tflite"
DATA = random.Random(1).randbytes(300_000)
OBJECT = object_path(TARGET, DATA)


@pytest.fixture
def big(device, repository):
    """A repository with one big signed file."""
    repository.add({TARGET: DATA})
    repository.sign()
    return repository


def fetch(device, folder):
    """One check that downloads the file, as a process of its own would."""
    with device.open() as trusted:
        trusted.refresh()
        before = trusted.bytes_pulled
        folder.mkdir(exist_ok=True)
        return trusted.fetch(TARGET, folder), trusted.bytes_pulled - before


def break_off(device, repository, folder, after=50_000):
    """Fetch the file over a connection that breaks."""
    repository.break_off_after[OBJECT] = after
    with pytest.raises(TransportError, match="broke off after"):
        fetch(device, folder)
    repository.break_off_after.clear()


def partial(folder):
    [path] = folder.iterdir()
    return path


def test_an_interrupted_download_is_resumed_where_it_stopped(device, big, tmp_path):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    path, pulled = fetch(device, folder)
    assert path.read_bytes() == DATA
    assert big.ranges[OBJECT] == [50_000]
    assert pulled == len(DATA) - 50_000
    assert list(folder.iterdir()) == [path]


def test_each_broken_try_adds_to_it(device, big, tmp_path):
    folder = tmp_path / "staging"
    for _ in range(3):
        break_off(device, big, folder)
    assert partial(folder).read_bytes() == DATA[:150_000]
    assert fetch(device, folder)[0].read_bytes() == DATA


def test_a_connection_that_brought_much_is_worth_another_at_once(device, big, tmp_path):
    big.break_off_after[OBJECT] = 100_000
    path, pulled = fetch(device, tmp_path / "staging")
    assert path.read_bytes() == DATA
    assert pulled == len(DATA)
    assert big.ranges[OBJECT] == [100_000, 200_000]


def test_a_store_without_ranges_begins_again(device, big, tmp_path):
    big.knows_ranges = False
    break_off(device, big, tmp_path / "staging")
    path, pulled = fetch(device, tmp_path / "staging")
    assert path.read_bytes() == DATA
    assert pulled == len(DATA)


def test_a_damaged_beginning_costs_one_more_download(device, big, tmp_path):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    with partial(folder).open("r+b") as file:
        file.write(b"\0" * 100)
    path, pulled = fetch(device, folder)
    assert path.read_bytes() == DATA
    assert pulled == 2 * len(DATA) - 50_000


@pytest.mark.parametrize("there", [DATA + b"more", DATA[:-1] + b"?", DATA], ids=["longer", "other", "all"])
def test_a_whole_file_of_an_earlier_try_is_kept_only_if_it_is_right(device, big, tmp_path, there):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    partial(folder).write_bytes(there)
    path, pulled = fetch(device, folder)
    assert path.read_bytes() == DATA
    assert pulled == (0 if there == DATA else len(DATA))


@pytest.mark.parametrize("lie", ["bytes 0-299999/300000", "bytes 50001-299999/300000", "", "bytes */300000"])
def test_an_answer_that_begins_elsewhere_is_not_appended(device, big, tmp_path, lie):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    big.content_range = lie
    path, pulled = fetch(device, folder)
    assert path.read_bytes() == DATA
    assert pulled == len(DATA)


def test_a_shrunk_object_is_not_the_signed_content(device, big, tmp_path):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    big.objects[OBJECT] = DATA[:40_000]
    with pytest.raises(TrustError, match="not the content that was signed"):
        fetch(device, folder)
    assert list(folder.iterdir()) == []


def test_endless_data_is_cut_off_when_going_on_too(device, big, tmp_path):
    folder = tmp_path / "staging"
    break_off(device, big, folder)
    big.objects[OBJECT] = DATA * 20
    with pytest.raises(TrustError, match="longer than signed"):
        fetch(device, folder)
    assert list(folder.iterdir()) == []


def test_a_long_download_is_on_the_disk_piece_by_piece(device, big, tmp_path, monkeypatch):
    """A power cut costs the last few MiB, not all."""
    monkeypatch.setattr(transfer, "SYNC_BYTES", 65536)
    synced: list[object] = []
    monkeypatch.setattr(transfer, "sync_folder", synced.append)
    fetch(device, tmp_path / "staging")
    assert len(synced) >= 2


def test_reading_keeps_to_the_rate(device, big, tmp_path):
    now = [0.0]

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        now[0] += seconds

    store = dataclasses.replace(device.store, max_bytes_per_s=10_000)
    fetcher = StoreFetcher(store, clock=lambda: now[0], sleep=sleep)
    with TrustedRepository(device.root, store.base_url, tmp_path / "metadata", fetcher) as trusted:
        trusted.refresh()
        trusted.fetch(TARGET, tmp_path)
        assert now[0] == pytest.approx(trusted.bytes_pulled / 10_000)
