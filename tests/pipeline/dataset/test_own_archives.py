"""Archives of one's own, on the disk and in S3: whatever tool packed them, and what is none."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile

import pytest

from edge_client.contract.errors import InputError, SettingsError
from luigi_tasks.dataset import archive as room
from luigi_tasks.dataset.bucket_source import BucketSource
from luigi_tasks.dataset.listing import listing_digest
from luigi_tasks.dataset.sources import open_source
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.steps import take_snapshot
from luigi_tasks.workspace import open_workspace
from tests.fakes.datasets import (
    COMPRESSIONS,
    dataset_settings,
    picture_bytes,
    tar_bytes,
    write_tree,
    zip_bytes,
)

TREE = {"a/1.png": b"one", "b/2.png": b"two"}
NO_STORE = StoreSettings("file:///nowhere", "", "", "", conditional_writes=True)


def open_(tmp_path, url, store=NO_STORE, **changes):
    return open_source(dataset_settings(tmp_path / "cache", str(url), **changes), store)


def contents(source):
    """Pictures of a dataset by path."""
    return {one.path: source.read(one.path) for one in source.listing().pictures}


def windows_zip(*names: bytes, system: int = 0) -> bytes:
    """Return a zip whose names stand in it as these bytes; a name that ends in a backslash is a folder."""
    file = io.BytesIO()
    stand_ins = [bytes([ord("p") + number]) * len(name) for number, name in enumerate(names)]
    with zipfile.ZipFile(file, "w") as archive:
        for name, stand_in in zip(names, stand_ins, strict=True):
            entry = zipfile.ZipInfo(stand_in.decode())
            entry.create_system = system
            archive.writestr(entry, b"" if name.endswith(b"\\") else b"x")
    data = file.getvalue()
    for name, stand_in in zip(names, stand_ins, strict=True):
        data = data.replace(stand_in, name)
    return data


# --- where they lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["{}", "file://{}", "relative"])
def test_a_local_archive_is_the_dataset(tmp_path, monkeypatch, address):
    (tmp_path / "my pictures.zip").write_bytes(zip_bytes(TREE))
    monkeypatch.chdir(tmp_path)
    url = "my pictures.zip" if address == "relative" else address.format(tmp_path / "my pictures.zip")
    assert contents(open_(tmp_path, url.replace(" ", "%20") if "file:" in url else url)) == TREE


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_content_not_the_name_says_how_an_archive_is_packed(tmp_path, compression):
    (tmp_path / "pictures.bin").write_bytes(tar_bytes(TREE, compression))
    assert contents(open_(tmp_path, tmp_path / "pictures.bin")) == TREE


def test_an_archive_is_read_again_only_where_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "pictures.zip"
    path.write_bytes(zip_bytes(TREE))
    first = listing_digest(open_(tmp_path, path).listing().pictures)
    with monkeypatch.context() as patch:
        patch.setattr(room, "_digest_of", lambda _path: pytest.fail("read again"))
        assert listing_digest(open_(tmp_path, path).listing().pictures) == first
    path.write_bytes(zip_bytes(TREE | {"b/3.png": b"three"}))
    assert contents(open_(tmp_path, path)).keys() == {*TREE, "b/3.png"}


def test_an_archive_has_the_same_listing_wherever_it_lies(tmp_path, store_settings):
    data = zip_bytes(TREE)
    (tmp_path / "x.zip").write_bytes(data)
    bucket = BucketSource(f"{store_settings.url}/x.zip", store_settings)
    bucket.client.put_object(Bucket=bucket.bucket, Key=bucket.prefix.rstrip("/"), Body=data)
    local = open_(tmp_path / "one", tmp_path / "x.zip")
    remote = open_(tmp_path / "two", bucket.url, store_settings)
    assert contents(remote) == TREE
    assert listing_digest(remote.listing().pictures) == listing_digest(local.listing().pictures)


def test_an_archive_in_a_bucket_is_downloaded_once_and_again_when_it_changed(
    tmp_path, store_settings, monkeypatch
):
    bucket = BucketSource(f"{store_settings.url}/pictures.tar.gz", store_settings)
    key = bucket.prefix.rstrip("/")
    bucket.client.put_object(Bucket=bucket.bucket, Key=key, Body=tar_bytes(TREE))
    received = []
    receive = room._receive

    def count(url, *rest):
        received.append(url)
        return receive(url, *rest)

    monkeypatch.setattr(room, "_receive", count)
    for _ in range(2):
        assert contents(open_(tmp_path, bucket.url, store_settings)) == TREE
    bucket.client.put_object(Bucket=bucket.bucket, Key=key, Body=tar_bytes({"c/1.png": b"new"}))
    assert contents(open_(tmp_path, bucket.url, store_settings)) == {"c/1.png": b"new"}
    assert received == [bucket.url] * 2


def test_a_prefix_may_be_called_as_an_archive_is(tmp_path, store_settings):
    url = f"{store_settings.url}/unpacked.zip"
    bucket = BucketSource(url, store_settings)
    bucket.client.put_object(Bucket=bucket.bucket, Key=f"{bucket.prefix}a/1.png", Body=b"one")
    for address in (url, f"{url}/"):
        assert contents(open_(tmp_path, address, store_settings)) == {"a/1.png": b"one"}


def test_a_digest_is_not_needed_for_a_file_of_ones_own_but_counts(tmp_path):
    path = tmp_path / "pictures.zip"
    path.write_bytes(zip_bytes(TREE))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert contents(open_(tmp_path, path, sha256=right.upper())) == TREE
    with pytest.raises(InputError, match=rf"pictures.zip: has SHA-256 {right}, \[dataset\] sha256 is 000"):
        open_(tmp_path, path, sha256="0" * 64)
    with pytest.raises(SettingsError, match="64 hex digits"):
        open_(tmp_path, path, sha256="abc")


def test_an_archive_that_changes_while_it_is_unpacked_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "pictures.zip"
    path.write_bytes(zip_bytes(TREE))
    unpack = room._unpack

    def and_write(*given):
        unpack(*given)
        path.write_bytes(zip_bytes({"c/1.png": b"new"}))

    monkeypatch.setattr(room, "_unpack", and_write)
    with pytest.raises(InputError, match="changed while it was read; run again"):
        open_(tmp_path, path)
    monkeypatch.undo()
    assert contents(open_(tmp_path, path)) == {"c/1.png": b"new"}


# --- whatever packed them -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Packed:
    """An archive of some tool, and the paths of its pictures."""

    data: bytes
    paths: tuple[str, ...]


PACKED = {
    "backslashes": Packed(
        windows_zip(b"set\\", b"set\\a\\", b"set\\a\\1.png", b"set\\b\\2.png"), ("set/a/1.png", "set/b/2.png")
    ),
    "backslashes, by .NET on Unix": Packed(
        windows_zip(b"a\\1.png", b"b/2.png", system=3), ("a/1.png", "b/2.png")
    ),
    "code page of a German Windows": Packed(
        windows_zip("grün/1.png".encode("cp850"), b"b/2.png"), ("b/2.png", "grün/1.png")
    ),
    "UTF-8 that is not marked": Packed(
        windows_zip("grün/1.png".encode(), "日本/2.png".encode(), system=3), ("grün/1.png", "日本/2.png")
    ),
    "UTF-8 that is marked": Packed(
        zip_bytes({"grün/1.png": b"", "日本/2.png": b""}), ("grün/1.png", "日本/2.png")
    ),
    "by Finder, as TrashNet": Packed(
        zip_bytes(
            {
                "dataset-resized/": b"",
                "dataset-resized/.DS_Store": b"x",
                "dataset-resized/glass/glass1.jpg": b"x",
                "__MACOSX/dataset-resized/glass/._glass1.jpg": b"x",
                "dataset-resized/metal/metal1.jpg": b"x",
            }
        ),
        ("dataset-resized/glass/glass1.jpg", "dataset-resized/metal/metal1.jpg"),
    ),
    "tar of the folder itself": Packed(
        tar_bytes({"./a/1.png": b"x", "./b/2.png": b"x"}, ""), ("a/1.png", "b/2.png")
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_each_tool_packs_its_way(tmp_path, name):
    (tmp_path / "x.zip").write_bytes(PACKED[name].data)
    assert tuple(contents(open_(tmp_path, tmp_path / "x.zip"))) == PACKED[name].paths


def test_names_that_had_to_be_guessed_are_told(tmp_path, caplog):
    (tmp_path / "x.zip").write_bytes(windows_zip("副本/1.png".encode("gbk"), b"b/2.png"))
    open_(tmp_path, tmp_path / "x.zip")
    assert "x.zip: 1 names are in a code page that the archive does not name" in caplog.text
    caplog.clear()
    (tmp_path / "x.zip").write_bytes(windows_zip("grün/1.png".encode(), b"b/2.png"))
    open_(tmp_path, tmp_path / "x.zip")
    assert not caplog.text


# --- what is none -------------------------------------------------------------------------------


def split(part):
    """Return the last part of a zip of two parts, as its end says."""
    data = bytearray(zip_bytes(TREE))
    at = data.rfind(b"PK\5\6")
    data[at + 4 : at + 8] = part.to_bytes(2, "little") * 2
    return bytes(data)


def method(number, flag=0):
    """Return a zip whose only entry is compressed by another method."""
    data = bytearray(zip_bytes({"a/1.png": b"one"}))
    for start, offset in ((data.index(b"PK\3\4"), 6), (data.index(b"PK\1\2"), 8)):
        data[start + offset] |= flag
        data[start + offset + 2 : start + offset + 4] = number.to_bytes(2, "little")
    return bytes(data)


TAR = tar_bytes(TREE, "")
NOISE = {"a/1.png": os.urandom(30_000), "b/2.png": os.urandom(30_000)}
REFUSED = {
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive, which is not read; pack the pictures as a zip or"),
    "RAR": (b"Rar!\x1a\x07\x01\0", "a RAR archive, which is not read"),
    "LZ4": (b"\x04\x22\x4d\x18xxxx", "compressed by LZ4"),
    "page of a login": (b"<html>", "neither a zip nor a tar archive, but begins with b'<html>'"),
    "empty": (b"", "neither a zip nor a tar archive, but empty"),
    "gzip of something else": (COMPRESSIONS["gz"](b"text"), "neither a zip nor a tar"),
    "zip without its end": (zip_bytes(NOISE)[:-5000], "without its end.*copy it again, and parts of a split"),
    "first part of a zip": (b"PK\7\x08" + zip_bytes(TREE)[:50], "without its end"),
    "last part of a zip": (split(1), "last part of a split archive; parts of a split archive are joined"),
    "tar cut in a file": (tar_bytes(NOISE, "")[:40_000], "cannot be unpacked: unexpected end of data"),
    "tar cut between files": (TAR[: TAR.index(b"b/2.png")], "breaks off.* not copied whole"),
    "tar cut in a header": (TAR[: TAR.index(b"b/2.png") + 100], "breaks off.* not copied whole"),
    "tar cut before its end": (TAR[: TAR.index(b"two") + 512], "breaks off.* not copied whole"),
    "tar.gz cut": (tar_bytes(NOISE)[:-5000], "not copied whole"),
    "tar.xz cut": (tar_bytes(NOISE, "xz")[:-5000], "not copied whole"),
    "tar.zst cut": (tar_bytes(NOISE, "zst")[:-5000], "not copied whole"),
    "password": (method(8, 1), "'a/1.png' is encrypted; pack it again, without a password"),
    "password of WinZip": (method(99, 1), "'a/1.png' is encrypted"),
    "Deflate64": (method(9), r"by method 9 \(Deflate64, which Windows takes for large files\)"),
    "above, by Windows": (windows_zip(b"..\\evil.png"), "reaches outside"),
    "absolute, by Windows": (windows_zip(b"\\evil.png"), "reaches outside"),
    "drive": (windows_zip(b"C:\\evil.png"), "reaches outside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_unpacked_says_why_and_leaves_nothing(tmp_path, name):
    data, says = REFUSED[name]
    path = tmp_path / "pictures.zip"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says) as caught:
        open_(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


def test_a_bomb_of_zstandard_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "RATIO_FREE_BYTES", 1 << 20)
    (tmp_path / "x.tar.zst").write_bytes(tar_bytes({"a/1.png": bytes(30 << 20)}, "zst"))
    with pytest.raises(InputError, match="bomb"):
        open_(tmp_path, tmp_path / "x.tar.zst")


def test_a_tar_whose_later_header_is_damaged_does_not_end_there(tmp_path):
    data = bytearray(TAR)
    data[TAR.index(b"b/2.png") + 150] ^= 0x7
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(InputError, match="breaks off, or is damaged, between two files"):
        open_(tmp_path, tmp_path / "x.tar")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        long = tarfile.TarInfo("a/" + "ü" * 120 + ".png")
        archive.addfile(long)
    (tmp_path / "y.tar").write_bytes(file.getvalue())
    assert tuple(contents(open_(tmp_path, tmp_path / "y.tar"))) == (long.name,)


# --- archives that lie among other things ---------------------------------------------------------


def test_a_folder_that_holds_an_archive_alone_says_what_to_give(tmp_path):
    folder = write_tree(
        tmp_path / "trashnet", {"README.md": b"x", "data/dataset-resized.zip": zip_bytes(TREE)}
    )
    with pytest.raises(
        InputError, match=f"but an archive; give --pictures {folder}/data/dataset-resized.zip"
    ):
        open_(tmp_path, folder).listing().find_layout(str(folder))


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (
            {"docs/logo.png": picture_bytes(1), "data/resized.zip": zip_bytes(TREE)},
            "no class with .* There is an archive; give --pictures '{}/data/resized.zip'",
        ),
        (
            {f"my set/x/{one}/{n}.png": picture_bytes(n + ord(one)) for one in "ab" for n in range(9)}
            | {"docs/logo.png": picture_bytes(1)},
            r"only one class \(my set\) .* If the folders in my set/x/ are the classes, give --pictures '{}",
        ),
    ],
)
def test_a_repository_with_pictures_of_its_own_says_what_to_give(tmp_path, tree, says):
    folder = write_tree(tmp_path / "trash net", tree)
    (tmp_path / "store").mkdir()
    settings = load_settings(
        str(folder),
        store={"url": (tmp_path / "store").as_uri()},
        dataset={"cache_dir": str(tmp_path / "cache"), "min_images_per_class": 5},
    )
    with pytest.raises(InputError, match=says.format(folder)):
        take_snapshot(open_workspace(settings))


def test_an_archive_in_an_archive_is_named(tmp_path):
    path = tmp_path / "download.zip"
    path.write_bytes(
        zip_bytes({"data/pictures.tar": TAR, "README.md": b"x", "x/LICENSE": b"x", "x/train.lua": b""})
    )
    with pytest.raises(InputError, match=r"an archive in the archive: data/pictures.tar; unpack the"):
        open_(tmp_path, path).listing().find_layout(str(path))
