"""Archives: every format, and what a liar, a bomb, a broken line or a full disk can do."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
import zipfile
from pathlib import Path

import pytest
from local_services import free_ports

from edge_client.contract.errors import InputError, SettingsError, TransportError
from luigi_tasks.dataset import archive as room
from luigi_tasks.dataset import archive_members
from luigi_tasks.dataset.archive import Archive, unpack_archive
from luigi_tasks.storage.cache import LEFTOVER_AGE_S, STAGING_PREFIX
from tests.fakes.datasets import ArchiveServer, tar_bytes, zip_bytes

REPOSITORY = Path(__file__).resolve().parents[3]
TREE = {"a/1.png": b"one", "a/sub/2.png": b"two" * 5000, "b/3.png": b"three"}
LIMIT = 1 << 30
ESCAPED = Path(tempfile.gettempdir()) / f"escaped-{uuid.uuid4().hex}"

UNPACK = """
import resource, sys
from pathlib import Path
from luigi_tasks.dataset.archive import Archive, unpack_archive
url, sha256, cache, file_limit = sys.argv[1:]
if int(file_limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_limit), int(file_limit)))
print(unpack_archive(Archive(url, sha256), Path(cache), 1 << 30))
"""


@pytest.fixture
def server():
    with ArchiveServer().running() as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "outer" / "cache"


def unpack(server, cache, limit=LIMIT):
    return unpack_archive(Archive(server.url, server.sha256), cache, limit)


def start_unpacking(server, cache, *, file_limit_bytes=0):
    """Unpack in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", UNPACK, server.url, server.sha256, str(cache), str(file_limit_bytes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_was_left(cache):
    """Neither in the cache, nor next to it where an escape would have written."""
    assert [
        path for path in cache.parent.parent.rglob("*") if not path.is_dir() or path.parent.name == "archives"
    ] == []


def wait_until(holds, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)  # another process offers no event


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(zip_bytes, id="zip"),
        pytest.param(lambda tree: tar_bytes(tree, ""), id="tar"),
        pytest.param(lambda tree: tar_bytes(tree, "gz"), id="tar.gz"),
        pytest.param(lambda tree: tar_bytes(tree, "bz2"), id="tar.bz2"),
        pytest.param(lambda tree: tar_bytes(tree, "xz"), id="tar.xz"),
        pytest.param(lambda tree: tar_bytes(tree, "zst"), id="tar.zst"),
    ],
)
def test_each_format_is_unpacked_whole_and_downloaded_once(server, cache, pack):
    server.data = pack(TREE)
    folder = unpack(server, cache)
    assert folder == cache / "archives" / server.sha256
    assert files_below(folder) == TREE
    assert unpack(server, cache) == folder
    assert server.requests == ["/pictures"]
    assert [path.name for path in (cache / "archives").iterdir()] == [server.sha256]


def test_a_tar_that_ends_in_a_zip_is_a_tar(server, cache):
    tree = {"a/1.png": b"one", "b/2.zip": zip_bytes({"inner.txt": b"x"})}
    server.data = tar_bytes(tree, "")
    assert files_below(unpack(server, cache)) == tree


def test_a_server_that_calls_the_archive_an_encoding_does_not_change_its_digest(server, cache):
    server.data = tar_bytes(TREE, "gz")
    server.headers = {"Content-Encoding": "gzip"}
    assert files_below(unpack(server, cache)) == TREE


def test_another_digest_is_refused(server, cache):
    server.data = tar_bytes(TREE)
    expected = "0" * 64
    with pytest.raises(InputError, match=f"has SHA-256 {server.sha256}.*sha256 is {expected}"):
        unpack_archive(Archive(server.url, expected), cache, LIMIT)
    assert_nothing_was_left(cache)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_answer_without_the_archive_is_named(server, cache, status):
    server.data, server.status = tar_bytes(TREE), status
    with pytest.raises(TransportError, match=rf"the server answered {status}; check \[dataset\] url"):
        unpack(server, cache)
    assert_nothing_was_left(cache)


def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_works(server, cache):
    server.data, server.cut_bytes = tar_bytes(TREE), 10
    with pytest.raises(TransportError, match="download failed"):
        unpack(server, cache)
    assert_nothing_was_left(cache)
    server.cut_bytes = 0
    assert files_below(unpack(server, cache)) == TREE


def test_a_server_that_is_down_is_named(cache):
    [port] = free_ports(1)
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}/x.zip: download failed"):
        unpack_archive(Archive(f"http://127.0.0.1:{port}/x.zip", "0" * 64), cache, LIMIT)
    assert_nothing_was_left(cache)


def tar_of(**fields):
    """Return a good picture, then one member with these fields."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        good = tarfile.TarInfo("a/1.png")
        good.size = 3
        archive.addfile(good, io.BytesIO(b"one"))
        member = tarfile.TarInfo()
        for name, value in fields.items():
            setattr(member, name, value)
        member.size = 4 if member.isreg() else 0
        archive.addfile(member, io.BytesIO(b"evil"))
    return file.getvalue()


def zip_link():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a/1.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Attack:
    """An archive that must not be unpacked, and the message."""

    data: bytes
    message: str


ATTACKS = {
    "tar, above": Attack(tar_of(name="../evil"), "'../evil' reaches outside"),
    "tar, above by a detour": Attack(tar_of(name="a/../../evil"), "reaches outside"),
    "tar, absolute": Attack(tar_of(name=str(ESCAPED)), f"'{ESCAPED}' reaches outside"),
    "tar, symbolic link": Attack(
        tar_of(name="a/l", type=tarfile.SYMTYPE, linkname="/etc"), "'a/l' is a link"
    ),
    "tar, link to above": Attack(tar_of(name="a/l", type=tarfile.SYMTYPE, linkname="../.."), "is a link"),
    "tar, hard link": Attack(tar_of(name="a/l", type=tarfile.LNKTYPE, linkname="a/1.png"), "is a link"),
    "tar, pipe": Attack(tar_of(name="a/p.png", type=tarfile.FIFOTYPE), "'a/p.png' is a link or a device"),
    "tar, character device": Attack(
        tar_of(name="a/z", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "device"
    ),
    "tar, block device": Attack(tar_of(name="a/d", type=tarfile.BLKTYPE), "device"),
    "tar, a file that is also a folder": Attack(tar_of(name="a/1.png/x.png"), "cannot be unpacked"),
    "tar, overlong name": Attack(tar_of(name="a/" + "x" * 300), "cannot be unpacked"),
    "zip, above": Attack(zip_bytes({"../evil": b""}), "reaches outside"),
    "zip, absolute": Attack(zip_bytes({"/evil": b""}), "reaches outside"),
    "zip, backslashes": Attack(zip_bytes({"..\\evil": b""}), "reaches outside"),
    "zip, symbolic link": Attack(zip_link(), "'a/1.png' is a link"),
    "neither": Attack(b"<html>Sign in to the network</html>", "neither a zip nor a tar"),
    "empty": Attack(b" ", "neither a zip nor a tar"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(server, cache, name):
    server.data = ATTACKS[name].data
    with pytest.raises(InputError, match=ATTACKS[name].message) as caught:
        unpack(server, cache)
    assert server.url in str(caught.value)
    assert_nothing_was_left(cache)
    assert not ESCAPED.exists()


def test_more_bytes_than_allowed_are_not_unpacked(server, cache):
    server.data = zip_bytes({"a/1.png": bytes(50_000), "a/2.png": bytes(50_000)})
    with pytest.raises(InputError, match=r"more than 99999 bytes.*max_unpacked_bytes"):
        unpack(server, cache, 99_999)
    assert_nothing_was_left(cache)
    assert unpack(server, cache, 100_000).is_dir()


def test_a_bomb_is_not_unpacked_however_much_is_allowed(server, cache, monkeypatch):
    monkeypatch.setattr(room, "RATIO_FREE_BYTES", 1 << 20)
    server.data = tar_bytes({"a/1.png": bytes(30 << 20)})  # shrinks a thousandfold
    with pytest.raises(InputError, match="bomb"):
        unpack(server, cache)
    assert_nothing_was_left(cache)


def test_a_zip_that_lies_about_its_size_is_counted_as_it_unpacks(server, cache):
    data = bytearray(zip_bytes({"a/1.png": bytes(1_000_000)}))
    for field in (22, data.rindex(b"PK\x01\x02") + 24):  # uncompressed size, local and central
        data[field : field + 4] = (10).to_bytes(4, "little")
    server.data = bytes(data)
    with contextlib.suppress(InputError):
        assert sum(map(len, files_below(unpack(server, cache, 1000)).values())) <= 1000
    assert not list(cache.rglob(f"{STAGING_PREFIX}*"))


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_members_are_refused_folders_too(server, cache, monkeypatch, kind):
    monkeypatch.setattr(archive_members, "MAX_MEMBERS", 5)
    file = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(6):
                folder = tarfile.TarInfo(f"a{number}")
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
    else:
        file.write(zip_bytes({f"a{number}/": b"" for number in range(6)}))
    server.data = file.getvalue()
    with pytest.raises(InputError, match="over 5 files and folders"):
        unpack(server, cache)
    assert_nothing_was_left(cache)


def test_an_endless_download_is_cut_off(server, cache):
    server.data = os.urandom(3 << 20)
    with pytest.raises(InputError, match="over 1048576 bytes"):
        unpack(server, cache, 1 << 20)
    assert_nothing_was_left(cache)


def test_an_encrypted_zip_is_named(server, cache):
    data = bytearray(zip_bytes({"a/1.png": b"one"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    server.data = bytes(data)
    with pytest.raises(InputError, match=r"'a/1.png' is encrypted.*without a password"):
        unpack(server, cache)
    assert_nothing_was_left(cache)


@pytest.mark.parametrize("compression", ["zip", "", "gz", "bz2", "xz"])
def test_any_broken_archive_is_unpacked_or_refused_never_a_crash(server, cache, compression):
    whole = zip_bytes(TREE) if compression == "zip" else tar_bytes(TREE, compression)
    dice = random.Random(compression)
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 3, 30])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        server.data = bytes(data[: dice.choice([len(data), len(data), dice.randrange(1, len(data))])])
        with contextlib.suppress(InputError):
            unpack(server, cache)
    assert not list(cache.rglob(f"{STAGING_PREFIX}*"))


def test_two_processes_at_once_agree(server, cache):
    """Both download, both unpack; the second to finish finds the folder in its place."""
    server.data = tar_bytes(TREE)
    folder = cache / "archives" / server.sha256
    both_asked = threading.Barrier(2)

    def hold(number):
        both_asked.wait(20)
        if number == 2:
            wait_until(folder.is_dir)

    server.before_end = hold
    children = [start_unpacking(server, cache) for _ in range(2)]
    for child in children:
        out, err = child.communicate(timeout=30)
        assert child.returncode == 0, err
        assert out.strip() == str(folder)
    assert len(server.requests) == 2
    assert files_below(folder) == TREE
    assert list((cache / "archives").iterdir()) == [folder]


def test_a_process_killed_while_it_unpacks_does_no_harm(server, cache):
    server.data = tar_bytes(TREE)
    asked, killed = threading.Event(), threading.Event()

    def hold(_number):
        asked.set()
        killed.wait(20)

    server.before_end = hold
    child = start_unpacking(server, cache)
    assert asked.wait(20)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    killed.set()
    [leftover] = (cache / "archives").iterdir()
    assert leftover.name.startswith(STAGING_PREFIX)
    folder = unpack(server, cache)
    assert files_below(folder) == TREE
    assert leftover.is_dir()  # another process may still use it

    long_ago = time.time() - LEFTOVER_AGE_S - 60
    os.utime(leftover, (long_ago, long_ago))
    server.data = zip_bytes(TREE)
    another = unpack(server, cache)
    assert sorted((cache / "archives").iterdir()) == sorted([folder, another])


def test_a_full_disk_is_named_and_leaves_nothing(server, cache):
    server.data = tar_bytes({"a/1.png": os.urandom(300_000)})
    child = start_unpacking(server, cache, file_limit_bytes=100_000)
    _, err = child.communicate(timeout=30)
    assert child.returncode != 0
    assert "SettingsError" in err.splitlines()[-1]
    assert "free some space, or let [dataset] cache_dir name" in err.splitlines()[-1]
    assert_nothing_was_left(cache)


def test_a_disk_that_fills_up_while_unpacking_is_not_blamed_on_the_archive(server, cache):
    server.data = tar_bytes({"a/1.png": bytes(300_000)})  # the download fits, the picture does not
    child = start_unpacking(server, cache, file_limit_bytes=100_000)
    _, err = child.communicate(timeout=30)
    assert "SettingsError" in err.splitlines()[-1], err
    assert_nothing_was_left(cache)


def test_a_cache_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    server.data = tar_bytes(TREE)
    with pytest.raises(SettingsError, match=r"file/cache/archives: Not a directory; .*cache_dir"):
        unpack(server, tmp_path / "file" / "cache")
    assert server.requests == []
