"""Where pictures come from: one contract over folders and buckets, then what each can do wrong."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_services import free_ports
from PIL import Image

from edge_client.contract.errors import InputError, SettingsError, TransportError
from luigi_tasks.dataset.bucket_source import BucketSource
from luigi_tasks.dataset.file_names import PICTURE_SUFFIXES
from luigi_tasks.dataset.listing import listing_digest
from luigi_tasks.dataset.presets import write_digits
from luigi_tasks.dataset.sources import FolderSource, open_source
from luigi_tasks.storage.s3_client import open_client
from tests.fakes.datasets import (
    ArchiveServer,
    dataset_settings,
    tar_bytes,
    write_tree,
    zip_bytes,
)


class Folder:
    """A dataset in a folder, for the contract."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.source = FolderSource(folder)

    def put(self, tree):
        write_tree(self.folder, tree)

    def delete(self, path):
        (self.folder / path).unlink()


class Bucket:
    """A dataset below a prefix of a real bucket, for the contract."""

    def __init__(self, settings):
        self.settings = settings
        self.url = settings.url + "/pictures"
        self.source = BucketSource(self.url, settings)

    def put(self, tree):
        for path, data in tree.items():
            self.source.client.put_object(Bucket=self.source.bucket, Key=self.source.prefix + path, Body=data)

    def delete(self, path):
        self.source.client.delete_object(Bucket=self.source.bucket, Key=self.source.prefix + path)


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    if request.param == "folder":
        return Folder(tmp_path / "pictures")
    return Bucket(request.getfixturevalue("store_settings"))


@pytest.fixture
def bucket(store_settings):
    return Bucket(store_settings)


@pytest.fixture
def server():
    with ArchiveServer().running() as running:
        yield running


def paths(source):
    return [entry.path for entry in source.listing().pictures]


# --- the contract -------------------------------------------------------------------------------


def test_a_listing_is_sorted_by_path_and_knows_sizes(place):
    place.put(
        {"b/2.png": b"12", "b/1.png": b"1", "a/10.png": b"", "a b/ü+&%.png": b"123", "a/9/x.png": b"4444"}
    )
    listing = place.source.listing().pictures
    assert [(entry.path, entry.size) for entry in listing] == [
        ("a b/ü+&%.png", 3),
        ("a/10.png", 0),
        ("a/9/x.png", 4),
        ("b/1.png", 1),
        ("b/2.png", 2),
    ]
    assert place.source.read("a b/ü+&%.png") == b"123"
    assert place.source.read("a/9/x.png") == b"4444"


def test_a_listing_holds_pictures_only_and_nothing_hidden(place):
    wanted = {f"a/{number}{suffix}": b"x" for number, suffix in enumerate(sorted(PICTURE_SUFFIXES))}
    wanted |= {
        "a/A.JPG": b"x",
        "a/B.JpEg": b"x",
        "b/two.dots.png": b"x",
        "b/png": b"x",
        "a/1.unheard-of": b"x",
    }
    wanted |= {"top.png": b"x"}
    unwanted = {
        "README.md": b"x",
        "a/notes.txt": b"x",
        "a/.hidden.png": b"x",
        "a/.thumbnails/1.png": b"x",
        "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": b"x",
        ".git/1.png": b"x",
        "__MACOSX/a/1.png": b"x",
        "a/._1.jpg": b"x",
        "System Volume Information/1.png": b"x",
        "$RECYCLE.BIN/S-1-5/1.png": b"x",
        "RECYCLER/1.png": b"x",
        "lost+found/1.png": b"x",
        ".Trashes/501/1.png": b"x",
        ".Spotlight-V100/1.png": b"x",
        "#recycle/1.png": b"x",
        "FOUND.000/FILE0000.png": b"x",
        "a/.ipynb_checkpoints/1.png": b"x",
        "b/_gsdata_/1.png": b"x",
    }
    place.put(wanted | unwanted)
    assert paths(place.source) == sorted(wanted)
    listing = place.source.listing()
    assert [(one.path, one.reason) for one in listing.left_out] == [("a/notes.txt", "no picture")]
    assert listing.folders == ("a", "b")


def test_the_digest_stays_while_nothing_changes_and_moves_with_every_change(place):
    place.put({"a/1.png": b"one", "b/2.png": b"two"})
    digests = [listing_digest(place.source.listing().pictures)]
    assert listing_digest(place.source.listing().pictures) == digests[0]
    for change in ({"a/1.png": b"three"}, {"a/1.png": b"eerht"}, {"a/3.png": b"one"}):
        place.put(change)
        digests.append(listing_digest(place.source.listing().pictures))
    place.delete("a/3.png")
    place.put({"a/4.png": b"one"})
    digests.append(listing_digest(place.source.listing().pictures))
    assert len(set(digests)) == len(digests)


def test_no_pictures_at_all_are_named(place):
    with pytest.raises(InputError, match="URL: no pictures found; put them into one folder a class"):
        place.source.listing().find_layout("URL")
    place.put({"a/notes.txt": b"", "README": b""})
    listing = place.source.listing()
    assert listing.pictures == ()
    with pytest.raises(
        InputError, match=r"URL: no pictures found .*a/notes.txt.; put them into one folder a"
    ):
        listing.find_layout("URL")
    place.put({"1.png": b"x"})
    with pytest.raises(
        InputError, match=r"URL: pictures lie directly in it \(1.png, …\); a classifier needs"
    ):
        place.source.listing().find_layout("URL")


def test_a_class_without_a_picture_is_passed_over_by_name(place):
    place.put({"a/1.png": b"", "b/1.txt": b"", "c/deep/2.txt": b""})
    listing = place.source.listing()
    found = listing.passed_over(listing.find_layout("URL"))
    assert {one.path: one.reason for one in found} == {
        "b/": "class without usable pictures",
        "b/1.txt": "no picture",
        "c/": "class without usable pictures",
        "c/deep/2.txt": "no picture",
    }


def test_a_picture_that_is_gone_is_named(place):
    place.put({"a/1.png": b""})
    place.source.listing()
    place.delete("a/1.png")
    with pytest.raises(InputError, match=r"a/1\.png: .*Run again"):
        place.source.read("a/1.png")


# --- folders ------------------------------------------------------------------------------------


def test_a_listing_does_not_depend_on_the_order_of_arrival(tmp_path):
    names = [f"{label}/{number}.png" for label in "cab" for number in (3, 20, 1)]
    listings = []
    for number, order in enumerate((names, names[::-1])):
        folder = write_tree(tmp_path / str(number), dict.fromkeys(order, b"x"))
        for name in names:
            os.utime(folder / name, ns=(1, 1))
        listings.append(FolderSource(folder).listing().pictures)
    assert listings[0] == listings[1]


def test_a_listing_opens_no_picture(tmp_path):
    folder = write_tree(tmp_path / "p", {"a/1.png": b"x", "b/1.png": b"x"})
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, path.stat().st_mtime_ns))  # a read would move the access time
    FolderSource(folder).listing()
    assert {path.stat().st_atime_ns for path in folder.rglob("*.png")} == {1}


def test_many_pictures_are_listed_fast(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(5000):
            os.close(os.open(tmp_path / label / f"{number}.jpg", os.O_CREAT))
    started = time.monotonic()
    listing = FolderSource(tmp_path).listing().pictures
    listing_digest(listing)
    assert time.monotonic() - started < 1.5  # 0.06 s on an idle machine
    assert len(listing) == 10_000


def test_a_link_to_a_class_and_to_a_picture_is_followed(tmp_path):
    elsewhere = write_tree(tmp_path / "elsewhere", {"roses/1.png": b"one", "2.png": b"two"})
    folder = write_tree(tmp_path / "p", {"tulips/1.png": b"x"})
    (folder / "roses").symlink_to(elsewhere / "roses")
    (folder / "tulips" / "2.png").symlink_to(elsewhere / "2.png")
    source = FolderSource(folder)
    assert paths(source) == ["roses/1.png", "tulips/1.png", "tulips/2.png"]
    assert source.listing().pictures[2].size == 3
    assert [source.read(one) for one in paths(source)] == [b"one", b"x", b"two"]


@pytest.mark.parametrize(
    "path", ["/dev/zero", "../secret.png", "a/../../secret.png", "a/./1.png", "a/2.png", "b/1.png", "", "a"]
)
def test_a_path_that_the_listing_does_not_have_is_never_opened(place, path, tmp_path):
    """Paths of `pictures.json`, which other machines wrote."""
    write_tree(tmp_path, {"secret.png": b"secret"})
    place.put({"a/1.png": b"1"})
    with pytest.raises(InputError, match="not in the listing of the pictures, so it is not read"):
        place.source.read(path)
    assert place.source.read("a/1.png") == b"1"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.mkfifo(folder / "a/1.png"),
        lambda folder: (folder / "a/1.png").symlink_to(folder.parent / "secret.png"),
        lambda folder: (folder / "a/1.png").symlink_to("/dev/zero"),
        lambda folder: (folder / "a/1.png").mkdir(),
        lambda folder: os.truncate(os.open(folder / "a/1.png", os.O_CREAT | os.O_RDWR), 1 << 40),
    ],
    ids=["pipe", "link out of the folder", "link to a device", "folder", "a terabyte"],
)
def test_what_took_a_pictures_place_since_the_listing_is_an_error_at_once(tmp_path, change):
    write_tree(tmp_path, {"secret.png": b"secret"})
    folder = write_tree(tmp_path / "pictures", {"a/1.png": b"1"})
    source = FolderSource(folder)
    source.listing()
    (folder / "a/1.png").unlink()
    change(folder)
    with pytest.raises(InputError, match=r"a/1\.png"):
        source.read("a/1.png")


def test_a_class_folder_that_became_a_link_is_not_followed(tmp_path):
    write_tree(tmp_path / "elsewhere", {"1.png": b"secret"})
    folder = write_tree(tmp_path / "pictures", {"a/1.png": b"1"})
    source = FolderSource(folder)
    source.listing()
    (folder / "a").rename(folder / "old")
    (folder / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"a/1\.png: (Not a directory|Too many levels)"):
        source.read("a/1.png")


@pytest.mark.parametrize(
    ("arrange", "words"),
    [
        (lambda a: (a / "x.png").symlink_to("nowhere"), "No such file or directory; repair or remove it"),
        (lambda a: (a / "x.png").symlink_to("x.png"), "Too many levels of symbolic links; repair or remove"),
        (lambda a: (a / "x.png").symlink_to(".."), "a link to a folder of the same pictures; remove it"),
        (lambda a: (a / "x.png").symlink_to(a.parent / "b"), "a link to a folder of the same pictures"),
        (lambda a: os.mkfifo(a / "x.png"), "not a file; remove it"),
    ],
    ids=["broken link", "link to itself", "link upwards", "link to another class", "pipe"],
)
def test_what_cannot_be_read_is_left_out_by_name(tmp_path, arrange, words):
    folder = write_tree(tmp_path / "p", {"a/1.png": b"x", "b/1.png": b"x"})
    arrange(folder / "a")
    listing = FolderSource(folder).listing()
    assert [one.path for one in listing.pictures] == ["a/1.png", "b/1.png"]
    [left_out] = listing.left_out
    assert (left_out.path, left_out.reason) == ("a/x.png", "unreadable")
    assert left_out.words.startswith(words)


def test_links_that_lead_to_each_other_end(tmp_path):
    folder = write_tree(tmp_path / "p", {"a/1.png": b"x", "b/1.png": b"x"})
    elsewhere = write_tree(tmp_path / "elsewhere", {"2.png": b"x"})
    (folder / "a" / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (elsewhere / "again").symlink_to(elsewhere)
    listing = FolderSource(folder).listing()
    assert [one.path for one in listing.pictures] == ["a/1.png", "a/more/2.png", "b/1.png"]
    assert [one.path for one in listing.left_out] == ["a/more/again", "a/more/back"]


def test_a_name_that_is_not_utf8_is_left_out_by_name(tmp_path):
    folder = write_tree(tmp_path / "p", {"a/1.png": b"x"})
    (folder / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    listing = FolderSource(folder).listing()
    assert [one.path for one in listing.pictures] == ["a/1.png"]
    assert [(one.path, one.words) for one in listing.left_out] == [
        ("a/caf\\udce9.png", "its name is not UTF-8; rename it")
    ]


def test_a_system_folder_that_cannot_be_read_is_passed_over_and_a_class_is_an_error(tmp_path, monkeypatch):
    """`lost+found` is root's; these tests may run as root, who may read everything."""
    folder = write_tree(tmp_path / "p", {"a/1.png": b"x", "lost+found/x.png": b"x", "b/2.png": b"x"})
    scandir, denied = os.scandir, {"lost+found"}

    def guarded(path):
        if os.path.basename(path) in denied:  # noqa: PTH119 - a text
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert paths(FolderSource(folder)) == ["a/1.png", "b/2.png"]
    denied.add("b")
    with pytest.raises(InputError, match="p/b: Permission denied; repair or remove it, or let this user"):
        FolderSource(folder).listing()


@pytest.mark.parametrize(("name", "kind"), [("missing", "folder"), ("missing.zip", "file")])
def test_a_missing_folder_is_named(tmp_path, store_settings, name, kind):
    source = open_source(dataset_settings(tmp_path, str(tmp_path / name)), store_settings)
    with pytest.raises(InputError, match=f"{tmp_path / name}: no such {kind}; give one that holds"):
        source.listing()


# --- addresses ----------------------------------------------------------------------------------


def test_a_folder_is_found_by_path_home_and_file_address(tmp_path, store_settings, monkeypatch):
    folder = write_tree(tmp_path / "my pictures", {"a/1.png": b"x"})
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in (str(folder), "~/my pictures", f"file://{tmp_path}/my%20pictures"):
        assert paths(open_source(dataset_settings(tmp_path, url), store_settings)) == ["a/1.png"]


@pytest.mark.parametrize(
    ("url", "sha256", "message"),
    [
        ("", "", "give --pictures or"),
        ("ftp://host/x.zip", "", "'ftp://host/x.zip': give a folder"),
        ("file://host/x", "", "give file:///folder"),
        ("s3:///prefix", "", "give s3://bucket"),
        ("https://host/x.zip", "", r"give \[dataset\] sha256"),
        ("https://host/x.zip", "abc", "64 hex digits .*not 'abc'"),
        ("https://host/x.zip", "../" * 20 + "etc/", "64 hex digits"),
    ],
)
def test_an_address_that_cannot_be_one_is_named_and_touches_nothing(
    tmp_path, store_settings, url, sha256, message
):
    with pytest.raises(SettingsError, match=message):
        open_source(dataset_settings(tmp_path / "cache", url, sha256=sha256), store_settings)
    assert list(tmp_path.iterdir()) == []


# --- buckets ------------------------------------------------------------------------------------


def test_more_pictures_than_one_answer_holds_are_all_listed(bucket):
    names = [f"{label}/{number:04}.png" for label in "ab" for number in range(510)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put({name: b"x"}), names))
    assert paths(bucket.source) == names


def test_a_prefix_is_a_whole_folder(bucket):
    bucket.put({"a/1.png": b"x"})
    key = bucket.source.prefix.rstrip("/") + "-2/b/1.png"
    bucket.source.client.put_object(Bucket=bucket.source.bucket, Key=key, Body=b"x")
    for url in (bucket.url, bucket.url + "/"):
        assert paths(BucketSource(url, bucket.settings)) == ["a/1.png"]


def test_a_whole_bucket_may_be_the_dataset(store_settings):
    name = store_settings.url.rsplit("/", 1)[1]
    client = open_client(store_settings)
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="a/1.png", Body=b"x")
    assert paths(BucketSource(f"s3://{name}", store_settings)) == ["a/1.png"]


def test_threads_share_one_client(bucket):
    bucket.put({f"a/{number}.png": bytes([number]) for number in range(20)})
    source = BucketSource(bucket.url, bucket.settings)
    start = threading.Barrier(8)

    def client(_number):
        start.wait(10)
        return source.client

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(client, range(8))))) == 1
        numbers = range(20)
        assert list(pool.map(lambda n: source.read(f"a/{n}.png"), numbers)) == [bytes([n]) for n in numbers]


def test_a_missing_bucket_is_named(store_settings):
    source = BucketSource("s3://no-such-bucket/pictures", store_settings)
    for act in (source.listing, lambda: source.read("a/1.png")):
        with pytest.raises(SettingsError, match=r"s3://no-such-bucket/pictures.*does not exist; create it"):
            act()


def test_wrong_credentials_are_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    source = BucketSource(bucket.url, bucket.settings)
    for act in (source.listing, lambda: source.read("a/1.png")):
        with pytest.raises(SettingsError, match="refused the credentials"):
            act()


def test_a_store_that_is_down_is_named(store_settings):
    [port] = free_ports(1)
    settings = dataclasses.replace(store_settings, endpoint_url=f"http://127.0.0.1:{port}")
    with pytest.raises(TransportError, match=r"http://127.0.0.1:\d+ does not answer.*endpoint_url"):
        BucketSource("s3://b/pictures", settings).listing()


# --- archives and presets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [
        {"a/1.png": b"x", "b/1.png": b"y"},
        {"top/a/1.png": b"x", "top/b/1.png": b"y", "top/LICENSE.txt": b""},
        {"top/a/1.png": b"x", "top/b/1.png": b"y", "__MACOSX/top/a/._1.png": b"", ".DS_Store": b""},
    ],
    ids=["bare", "wrapped", "packed by macOS"],
)
def test_an_archive_gives_its_class_folders(tmp_path, store_settings, server, tree):
    server.data = zip_bytes(tree)
    settings = dataset_settings(tmp_path, server.url, sha256=server.sha256.upper())
    source = open_source(settings, store_settings)
    listing = source.listing()
    layout = listing.find_layout("URL")
    found = {layout.class_folder(one.path): source.read(one.path) for one in listing.pictures}
    assert found == {"a": b"x", "b": b"y"}
    assert listing.passed_over(layout) == ()


def test_an_archive_has_the_same_listing_on_every_machine_and_another_archive_has_another(
    tmp_path, store_settings, server
):
    """Workers on many machines share results by the listing's digest; mtimes differ."""

    def digest(cache, tree):
        server.data = tar_bytes(tree)
        settings = dataset_settings(tmp_path / cache, server.url, sha256=server.sha256)
        return listing_digest(open_source(settings, store_settings).listing().pictures)

    first = digest("one", {"a/1.png": b"x", "b/1.png": b"y"})
    assert digest("two", {"a/1.png": b"x", "b/1.png": b"y"}) == first
    assert digest("one", {"a/1.png": b"y", "b/1.png": b"x"}) != first


def test_the_digits_are_written_once_and_listed_the_same_everywhere(tmp_path, store_settings):
    listings = []
    for cache in ("one", "two"):
        source = open_source(dataset_settings(tmp_path / cache, "preset:digits"), store_settings)
        listings.append(source.listing().pictures)
        assert [path.name for path in (tmp_path / cache).iterdir()] == ["digits-2"]
    assert listings[0] == listings[1]
    assert len(listings[0]) == 1797
    assert {entry.path.split("/")[0] for entry in listings[0]} == set("0123456789")
    with Image.open(tmp_path / "one" / "digits-2" / listings[0][0].path) as image:
        assert (image.size, image.mode) == ((24, 24), "L")
    before = (tmp_path / "one" / "digits-2").stat().st_mtime_ns
    write_digits(tmp_path / "one")
    assert (tmp_path / "one" / "digits-2").stat().st_mtime_ns == before


def test_a_folder_that_is_called_as_a_preset_is_a_folder(tmp_path, store_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "digits", {"a/1.png": b"x", "b/1.png": b"y"})
    source = open_source(dataset_settings(tmp_path / "cache", "digits"), store_settings)
    assert [one.path for one in source.listing().pictures] == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("", r"\[dataset\] url is empty.*give --pictures or \[dataset\] url"),
        ("digits", "digits: no such folder; .*The preset is preset:digits"),
        ("flowers", "flowers: no such folder; .*The preset is preset:flowers"),
        (
            "preset:digit",
            "no such preset; there are preset:digits and preset:flowers; did you mean preset:digits",
        ),
        ("preset:", "no such preset; there are preset:digits and preset:flowers$"),
        ("presets:digits", "give a folder .*preset:digits"),
    ],
)
def test_pictures_that_are_not_named_right_are_one_paragraph(
    tmp_path, store_settings, monkeypatch, url, way_out
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, SettingsError), match=way_out):
        open_source(dataset_settings(tmp_path / "cache", url), store_settings).listing()


def test_digits_that_fail_half_way_leave_nothing(tmp_path, monkeypatch):
    saved = []

    def save(_image, path):
        saved.append(path)
        if len(saved) == 100:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(b"")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(SettingsError, match="No space left on device; free some space"):
        write_digits(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
