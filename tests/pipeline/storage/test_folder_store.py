"""What only a folder store has to prove: keys that are paths, disks that fail, writers that are killed."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from edge_client.contract.errors import InputError, SettingsError, TransportError
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import LEFTOVER_AGE_S, STAGING_FOLDER, FolderStore
from luigi_tasks.storage.store import StoreConflictError
from tests.fakes.power_cut import Cut, run_until

if TYPE_CHECKING:
    from pathlib import Path


def open_folder(folder: Path) -> FolderStore:
    return FolderStore(StoreSettings(folder.as_uri(), "", "", "when_required", conditional_writes=True))


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return open_folder(tmp_path / "store")


def files_in(folder: Path) -> list[str]:
    """All files of a store's folder but its lock."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(set(found) - {f"{STAGING_FOLDER}/lock"})


@pytest.mark.parametrize(
    "url",
    ["file://models", "file:models", "file://C:/models", "file:///", "file:///a#b", "file:///a%00b", "/a"],
)
def test_an_address_that_names_no_folder_of_this_machine_is_refused(url):
    with pytest.raises(SettingsError, match="give file:///folder"):
        FolderStore(StoreSettings(url, "", "", "", conditional_writes=True))


def test_reading_makes_nothing_and_the_first_write_makes_the_folder(store):
    assert store.get("key") is None
    assert store.list_folder("") == ()
    store.delete("key")
    assert not store.folder.exists()
    store.put("key", b"content")
    assert store.folder.is_dir()
    assert files_in(store.folder) == ["key"]


def test_a_folder_in_a_place_that_is_not_there_is_never_made(tmp_path):
    """A disk that is not mounted must not become a folder on another one."""
    store = open_folder(tmp_path / "mnt" / "store")
    for write in (store.put, functools.partial(store.put_if_unchanged, etag=None)):
        with pytest.raises(SettingsError, match=r"mnt does not exist; create or mount it"):
            write("key", b"")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    store = open_folder(tmp_path / "store")
    for access in (store.exists, store.get, lambda key: store.put(key, b"")):
        with pytest.raises(SettingsError, match="store: is not a folder"):
            access("key")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../../b",
        ".",
        "a/.",
        ".a",
        "a/.b",
        f"{STAGING_FOLDER}/x",
        "a\0",
    ],
)
def test_a_key_that_is_no_plain_path_is_refused(store, tmp_path, key):
    store.put("a/b", b"content")
    before = files_in(tmp_path)
    for access in (
        store.exists,
        store.get,
        store.read,
        store.delete,
        lambda key: store.put(key, b"evil"),
        lambda key: store.put_if_unchanged(key, b"evil", None),
        lambda key: store.presign_url(key, 1),
    ):
        with pytest.raises(InputError, match="cannot be a key of a folder store"):
            access(key)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c/d")])
def test_an_object_and_others_below_its_key_are_a_clear_error(store, first, second):
    store.put(first, b"content")
    for write in (store.put, functools.partial(store.put_if_unchanged, etag=None)):
        with pytest.raises(InputError, match="a folder store cannot have"):
            write(second, b"other")
    assert store.read(first) == b"content"
    assert files_in(store.folder) == [first]


def test_what_other_programs_leave_there_is_no_object(store):
    store.put("a/1", b"content")
    for name in (".DS_Store", "a/.nfs0001", "a/.1.part"):
        (store.folder / name).write_bytes(b"")
    os.mkfifo(store.folder / "a" / "pipe")  # would keep a reader waiting for ever
    assert [one.key for one in store.list_folder("")] == ["a/1"]
    assert not store.exists("a/pipe")
    assert store.get("a/pipe") is None


def test_links_are_no_objects(store, tmp_path):
    """Who may write one folder of the store would have the whole disk read."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/secret.jpg").write_bytes(b"secret")
    store.put("inbox/camera/1.jpg", b"content")
    camera = store.folder / "inbox/camera"
    (camera / "disk").symlink_to(tmp_path / "disk")
    (camera / "loop").symlink_to(store.folder)
    (camera / "2.jpg").symlink_to(tmp_path / "disk/secret.jpg")
    (camera / "3.jpg").symlink_to("3.jpg")
    for folder in ("", "inbox/"):
        assert [one.key for one in store.list_folder(folder)] == ["inbox/camera/1.jpg"]
    for name in ("2.jpg", "3.jpg"):
        assert store.get(f"inbox/camera/{name}") is None
        assert not store.exists(f"inbox/camera/{name}")
    store.put("inbox/camera/2.jpg", b"own")
    assert store.read("inbox/camera/2.jpg") == b"own"
    assert (tmp_path / "disk/secret.jpg").read_bytes() == b"secret"


def test_a_listing_does_not_read_what_is_too_large_to_be_used(store):
    """A device makes a hole of a terabyte in no time."""
    for name, size_bytes in (("1.jpg", 1 << 40), ("2.jpg", 2 << 40)):
        store.put(f"inbox/camera/{name}", b"")
        os.truncate(store.folder / "inbox/camera" / name, size_bytes)
    one, other = store.list_folder("inbox/")
    assert (one.size_bytes, other.size_bytes) == (1 << 40, 2 << 40)
    assert one.etag != other.etag


def test_a_folder_of_the_store_may_lie_elsewhere(store, tmp_path):
    (tmp_path / "disk/release").mkdir(parents=True)
    store.put("work/1", b"")
    (store.folder / "targets").symlink_to(tmp_path / "disk")
    store.put("targets/release/2", b"")
    for folder in ("", "targets/"):
        assert "targets/release/2" in [one.key for one in store.list_folder(folder)]
    assert (tmp_path / "disk/release/2").exists()


def test_deleting_removes_the_folders_that_it_empties(store):
    store.put("a/b/c/1", b"")
    store.put("a/2", b"")
    store.delete("a/b/c/1")
    assert sorted(path.name for path in (store.folder / "a").iterdir()) == ["2"]
    store.delete("a/2")
    assert list((store.folder / "a").iterdir()) == []


def test_an_emptied_inbox_stays_for_devices_which_never_create_it(store):
    store.put("inbox/camera-1/x.jpg", b"")
    store.delete("inbox/camera-1/x.jpg")
    assert list((store.folder / "inbox").iterdir()) == []


def test_objects_are_as_readable_as_other_files_of_the_user(store):
    """A web server or a device that runs as another user reads the same folder."""
    before = os.umask(0o022)
    try:
        store.put("a/key", b"")
    finally:
        os.umask(before)
    assert (store.folder / "a/key").stat().st_mode & 0o777 == 0o644
    assert (store.folder / "a").stat().st_mode & 0o777 == 0o755


def test_leftovers_of_killed_writers_go_when_they_are_old(store):
    store.put("key", b"")
    staging = store.folder / STAGING_FOLDER
    old, young = staging / "1-old", staging / "2-young"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - LEFTOVER_AGE_S - 60
    os.utime(old, (long_ago, long_ago))
    os.utime(staging / "lock", (long_ago, long_ago))
    assert [one.key for one in store.list_folder("")] == ["key"]
    open_folder(store.folder).put("key", b"")
    assert sorted(path.name for path in staging.iterdir()) == ["2-young", "lock"]


@pytest.mark.parametrize(
    ("code", "kind", "way_out"),
    [
        (errno.ENOSPC, TransportError, "No space left on device; free some space there"),
        (errno.EDQUOT, TransportError, "free some space there"),
        (errno.EIO, TransportError, "run again"),
        (errno.EROFS, SettingsError, "Read-only file system; let this user read and write there"),
        (errno.EACCES, SettingsError, r"let this user read and write there .*, or correct \[store\] url"),
    ],
)
def test_a_disk_that_refuses_is_named_and_the_old_content_stays(store, monkeypatch, code, kind, way_out):
    store.put("a/key", b"old")
    etag = store.get("a/key").etag

    def refuse(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (store.put, functools.partial(store.put_if_unchanged, etag=etag)):
        with pytest.raises(kind, match=rf"store/a/key: .*{way_out}"):
            write("a/key", b"new")
    monkeypatch.undo()
    assert store.read("a/key") == b"old"
    assert files_in(store.folder) == ["a/key"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_another_user_is_named(store):
    store.put("a/key", b"old")
    for folder in (store.folder / "a", store.folder / STAGING_FOLDER):
        folder.chmod(0o500)
    with pytest.raises(SettingsError, match="Permission denied; let this user read and write there"):
        store.put("a/other", b"new")
    assert store.read("a/key") == b"old"


def test_a_name_that_is_too_long_is_named(store):
    with pytest.raises(InputError, match="File name too long; a file name has at most 255 bytes"):
        store.put("a/" + "x" * 256, b"")


# Each line: what is written on top of {"a/key": old}, and what is there if the write went through.
WRITES = {
    "put": lambda store: store.put("a/key", b"new " * 1000),
    "put_if_unchanged": lambda store: store.put_if_unchanged(
        "a/key", b"new " * 1000, store.get("a/key").etag
    ),
    "put in a new folder": lambda store: store.put("b/c/key", b"new " * 1000),
    "put_if_unchanged of none": lambda store: store.put_if_unchanged("b/c/key", b"new " * 1000, None),
}


@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_is_cut_anywhere_leaves_the_old_content_or_the_new(tmp_path, name, cut):
    key = "b/c/key" if "new folder" in name or "none" in name else "a/key"
    for at in range(1, 50):
        folder = tmp_path / str(at)
        store = open_folder(folder)
        store.put("a/key", b"old")
        ending = run_until(functools.partial(WRITES[name], store), folder, at, cut)
        after = open_folder(folder)
        found = after.get(key)
        old = b"old" if key == "a/key" else None
        content = found.data if found is not None else None
        assert content in ({b"new " * 1000} if ending.ended else {b"new " * 1000, old}), ending
        assert {one.key for one in after.list_folder("")} <= {"a/key", key}
        assert after.read("a/key") in {b"old", b"new " * 1000}
        WRITES[name](after) if content is None else after.put(key, b"newer")
        if ending.ended:
            break
    else:
        pytest.fail("the write never ends by itself")
    assert at > 4


def _write_and_delete(folder: Path, key: str, together: Any) -> None:
    store = open_folder(folder)
    together.wait(30)
    for number in range(100):
        store.put(key, str(number).encode())
        assert store.read(key) == str(number).encode()
        assert key in {one.key for one in store.list_folder("a/")}
        store.delete(key)


def test_writers_do_not_lose_their_folder_to_those_that_empty_it(tmp_path):
    keys = ("a/b/1", "a/b/2", "a/3")
    context = multiprocessing.get_context("fork")
    together = context.Barrier(len(keys))
    processes = [
        context.Process(target=_write_and_delete, args=(tmp_path / "store", key, together)) for key in keys
    ]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    assert [one.exitcode for one in processes] == [0] * len(keys)
    assert open_folder(tmp_path / "store").list_folder("") == ()
    assert list((tmp_path / "store" / "a").iterdir()) == []


def _hold_and_die(folder: Path, held: Any) -> None:
    store = open_folder(folder)
    with store._lock(2):  # LOCK_EX
        held.set()
        time.sleep(600)


def test_a_killed_process_gives_the_lock_back(store):
    store.put("key", b"1")
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_hold_and_die, args=(store.folder, held), daemon=True)
    holder.start()
    assert held.wait(30)
    holder.kill()
    holder.join(30)
    store.put_if_unchanged("key", b"2", store.get("key").etag)
    assert store.read("key") == b"2"


def test_random_acts_are_those_of_a_dictionary(tmp_path):
    """The store is opened again and again; a dictionary holds what must be in it."""
    chance = random.Random(9)
    expected: dict[str, bytes] = {}
    keys = ["1", "a/1", "a/2", "a/b/3", "c/d/e/4"]
    for step in range(400):
        store, key, data = open_folder(tmp_path / "store"), chance.choice(keys), str(step).encode()
        act = chance.choice(["put", "delete", "create", "swap", "stale"])
        found = store.get(key)
        assert (found.data if found is not None else None) == expected.get(key)
        if act == "put":
            store.put(key, data)
            expected[key] = data
        elif act == "delete":
            store.delete(key)
            expected.pop(key, None)
        elif act == "swap":
            store.put_if_unchanged(key, data, found.etag if found is not None else None)
            expected[key] = data
        elif found is not None or act == "stale":
            with pytest.raises(StoreConflictError):
                store.put_if_unchanged(key, data, "stale" if act == "stale" else None)
        assert {one.key: one.size_bytes for one in store.list_folder("")} == {
            name: len(content) for name, content in expected.items()
        }
    assert files_in(tmp_path / "store") == sorted(expected)
