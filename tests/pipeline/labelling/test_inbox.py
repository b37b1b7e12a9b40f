"""The labelling loop on real S3: what devices hand in, what a person sees of it, what reaches the dataset."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import html.parser
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import luigi
import msgspec
import pytest

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.messages import INBOX_RECORD_LIMIT_BYTES, InboxRecord
from edge_client.contract.names import inbox_key
from edge_client.disk import write_durably
from luigi_tasks import DatasetSnapshot, ListInbox, TakeLabelled, artifacts
from luigi_tasks.labelling import folder as labelling
from luigi_tasks.labelling.class_folders import open_class_folders
from luigi_tasks.labelling.folder import COLUMNS, fill_folder, read_labels, write_labels
from luigi_tasks.labelling.inbox import FrameName, list_inbox
from luigi_tasks.labelling.intake import Taken, decided, plan_moves, take_labelled
from luigi_tasks.labelling.records import LabellingRecord
from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.storage.opening import open_store
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.datasets import class_folders, dataset_settings, picture_bytes, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from luigi_tasks.dataset.records import Snapshot
    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.settings.values import StoreSettings
    from luigi_tasks.storage.store import Store

    StoreT = TypeVar("StoreT", bound=S3Store)

LABELS = ("cat", "dog")
VOID = {"meta", "img", "input", "link", "br"}


def jpeg(seed: int) -> bytes:
    return picture_bytes(seed, size=16, suffix="JPEG")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def clients() -> dict[int, Any]:
    """One S3 client for all tests: making one takes longer than most of them."""
    return {}


def with_clients(store: StoreT, clients: dict[int, Any]) -> StoreT:
    store._clients = clients
    return store


@pytest.fixture(params=["s3", "folder"])
def inbox_settings(request, tmp_path_factory, store_settings):
    """Settings of a store of each kind."""
    if request.param == "s3":
        return store_settings
    return dataclasses.replace(store_settings, url=tmp_path_factory.mktemp("inbox").as_uri())


@pytest.fixture
def store(inbox_settings, clients) -> Store:
    """A store with an empty inbox."""
    store = open_store(inbox_settings)
    return with_clients(store, clients) if isinstance(store, S3Store) else store


class StoreAround:
    """Does what another store does; a subclass says where it misbehaves."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def record_of(device: str, name: str, picture: bytes, /, **changes) -> InboxRecord:
    record = InboxRecord(
        device=device,
        picture=name,
        sha256=sha256(picture),
        why="unsure",
        label="cat",
        confidence=0.41,
        top={"cat": 0.41, "dog": 0.4},
        release="0123456789abcdef0123",
        channel="stable",
        at="2025-05-01T10:00:00.000+00:00",
    )
    return msgspec.structs.replace(record, **changes)


def hand_in(store: Store, device: str, name: str, picture: bytes, **changes) -> FrameName:
    """Do what a device does: the picture, then the record."""
    frame = FrameName.of(device, name)
    store.put(frame.keys[0], picture)
    store.put(frame.keys[1], encode_document(record_of(device, name, picture, **changes)))
    return frame


def read_csv(folder: Path) -> list[dict[str, str]]:
    text = (folder / "labels.csv").read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def fill_in(folder: Path, labels: dict[str, str]) -> Path:
    """Do what a person does: a label for each frame named."""
    rows = [
        labelling.Row(**{**row, "label": labels.get(row["frame"], row["label"])}) for row in read_csv(folder)
    ]
    path = folder / "labels.csv"
    path.write_bytes(write_labels(rows))
    return path


def list_into(store: Store, folder: Path, labels=LABELS, most: int = 100) -> LabellingRecord:
    return fill_folder(store, folder, labels, most, ignore_progress)


# What a person gets to see.


def test_kept_frames_become_a_folder_to_label(store, tmp_path):
    first, second = jpeg(1), jpeg(2)
    hand_in(store, "cam1", "a.jpg", first)
    hand_in(store, "cam2", "b.jpg", second, label="otter", why="disagreement", release=None)
    record = list_into(store, tmp_path)
    assert (record.pictures, record.waiting, record.skipped) == (2, 0, ())
    rows = read_csv(tmp_path)
    assert tuple(rows[0]) == COLUMNS == (
        "picture", "label", "suggested", "confidence", "why", "device", "release", "at", "frame",
    )  # fmt: skip
    assert [row["label"] for row in rows] == ["", ""]
    assert [tuple(row.values())[2:] for row in rows] == [
        ("cat", "0.4100", "unsure", "cam1", "0123456789abcdef0123", "2025-05-01T10:00:00.000+00:00",
         "cam1/a.jpg"),
        ("otter", "0.4100", "disagreement", "cam2", "", "2025-05-01T10:00:00.000+00:00", "cam2/b.jpg"),
    ]  # fmt: skip
    assert [(tmp_path / row["picture"]).read_bytes() for row in rows] == [first, second]


def test_an_empty_inbox_is_an_empty_folder(store, tmp_path):
    assert list_into(store, tmp_path).pictures == 0
    assert read_csv(tmp_path) == []
    assert "nothing to label" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_devices_take_turns_so_that_none_crowds_out_the_others(store, tmp_path):
    for number in range(5):
        hand_in(store, "a-noisy", f"{number}.jpg", jpeg(number))
    for number in range(2):
        hand_in(store, "quiet", f"{number}.jpg", jpeg(10 + number))
    record = list_into(store, tmp_path, most=4)
    assert [row["frame"] for row in read_csv(tmp_path)] == [
        "a-noisy/0.jpg", "quiet/0.jpg", "a-noisy/1.jpg", "quiet/1.jpg",
    ]  # fmt: skip
    assert record.waiting == 3


def test_labels_already_filled_in_survive_another_listing(store, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    gone = hand_in(store, "cam1", "b.jpg", jpeg(2))
    hand_in(store, "cam1", "c.jpg", jpeg(3))
    list_into(store, tmp_path)
    fill_in(tmp_path, {"cam1/a.jpg": "dog", "cam1/b.jpg": "-", "cam1/c.jpg": "cat"})
    for key in gone.keys:
        store.delete(key)
    hand_in(store, "cam1", "c.jpg", jpeg(33))  # another picture: the label was not for this one
    hand_in(store, "cam1", "d.jpg", jpeg(4))
    list_into(store, tmp_path)
    assert {row["frame"]: row["label"] for row in read_csv(tmp_path)} == {
        "cam1/a.jpg": "dog",
        "cam1/c.jpg": "",
        "cam1/d.jpg": "",
    }
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        f"{sha256(jpeg(seed))}.jpg" for seed in (1, 33, 4)
    }


def test_a_labels_csv_that_is_none_is_not_overwritten(store, tmp_path):
    (tmp_path / "labels.csv").write_text("my,own,file\n1,2,3\n")
    with pytest.raises(InputError, match=r"in the way.*Give another folder"):
        list_into(store, tmp_path)
    assert (tmp_path / "labels.csv").read_text() == "my,own,file\n1,2,3\n"


# What hostile devices hand in.


@dataclasses.dataclass(frozen=True)
class Attack:
    """Objects put into the inbox, and what is said of `cam1/x.jpg` or another key."""

    name: str
    objects: dict[str, bytes]
    reason: str
    key: str = "cam1/x.jpg"


def frame(picture: bytes = jpeg(7), record: bytes | None = None, **changes) -> dict[str, bytes]:
    honest = encode_document(record_of("cam1", "x.jpg", picture, **changes))
    return {"cam1/x.jpg": picture, "cam1/x.json": honest if record is None else record}


def patched(**changes) -> bytes:
    return json.dumps({**json.loads(frame()["cam1/x.json"]), **changes}).encode()


BOMB = b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
LONG = "x" * 62 + ".jpg"

ATTACKS = [
    Attack("no JSON", frame(record=b"\xff\xfe{"), "not a valid InboxRecord"),
    Attack("nothing", frame(record=b""), "not a valid InboxRecord"),
    Attack("nested without end", frame(record=b"[" * 60_000), "not a valid InboxRecord"),
    Attack("wrong types", frame(record=patched(confidence="high")), "not a valid InboxRecord"),
    Attack("newer schema", frame(record=patched(schema=2)), "schema 2"),
    Attack("huge record", frame(record=b" " * (INBOX_RECORD_LIMIT_BYTES + 1)), "at most 65536"),
    Attack("somebody else's name", frame(device="cam2"), "its record is of 'cam2'"),
    Attack("another's name", frame(record=patched(picture="../y")), "its record is of 'cam1', '../y'"),
    Attack("confidence over 1", frame(record=patched(confidence=1.5)), "confidence 1.5"),
    Attack("infinite confidence", frame(record=frame()["cam1/x.json"].replace(b"0.41,", b"1e999,")), ""),
    Attack("wrong hash", frame(sha256="0" * 64), "SHA-256 is not the one"),
    Attack("hash that is a path", frame(sha256="../../x"), "SHA-256 is not the one"),
    Attack("no picture", frame(b"#!/bin/sh"), "no JPEG"),
    Attack("picture of nothing", frame(b""), "no JPEG"),
    Attack("half a picture", frame(jpeg(7)[:300]), "picture"),
    Attack("decompression bomb", frame(BOMB), "picture"),
    Attack("another format", frame(picture_bytes(7)), "no JPEG"),
    Attack("no record", {"cam1/x.jpg": jpeg(7)}, "its record x.json is missing"),
    Attack("record alone", {"cam1/x.json": b"{}"}, "no picture of this name", "cam1/x.json"),
    Attack("other files", {"cam1/run.sh": b"rm"}, "no picture of this name", "cam1/run.sh"),
    Attack("no device", {"x.jpg": jpeg(7), "x.json": b"{}"}, "device id 'x.jpg'|inbox file ''", "x.jpg"),
    Attack("deeper", {"cam1/a/x.jpg": jpeg(7)}, "inbox file 'a/x.jpg'", "cam1/a/x.jpg"),
    Attack("strange name", {"cam1/=x y.jpg": jpeg(7)}, "inbox file '=x y.jpg'", "cam1/=x y.jpg"),
    Attack("hidden", {"cam1/.jpg": jpeg(7)}, "inbox file '.jpg'", "cam1/.jpg"),
    Attack("strange device", {"<b>/x.jpg": jpeg(7)}, "device id '<b>'", "<b>/x.jpg"),
    Attack("record's name too long", {f"cam1/{LONG[2:]}": jpeg(7)}, "", f"cam1/{LONG[2:]}"),
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.name)
def test_a_bad_frame_is_skipped_with_its_reason_and_stops_no_other(store, tmp_path, attack):
    if attack.name == "hidden" and isinstance(store, FolderStore):
        pytest.skip("no key of a folder store begins with a dot")
    hand_in(store, "cam1", "good.jpg", jpeg(1))
    for name, data in attack.objects.items():
        store.put(f"inbox/{name}", data)
    record = list_into(store, tmp_path)
    assert [row["frame"] for row in read_csv(tmp_path)] == ["cam1/good.jpg"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [f"{sha256(jpeg(1))}.jpg"]
    found = {one.key.removeprefix("inbox/"): one.reason for one in record.skipped}
    assert any(part in found[attack.key] for part in attack.reason.split("|"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>/x.jpg" not in page


def test_a_picture_that_grew_after_the_listing_is_skipped(store, tmp_path, monkeypatch):
    monkeypatch.setattr("luigi_tasks.labelling.inbox.PICTURE_LIMIT_BYTES", 2000)

    class Late(StoreAround):
        """A device that writes between the listing and the reading."""

        def list_folder(self, folder):
            listed = store.list_folder(folder)
            store.put("inbox/cam1/a.jpg", bytes(3000))
            return listed

    hand_in(store, "cam1", "a.jpg", jpeg(1))
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    record = list_into(cast("Store", Late(store)), tmp_path)
    assert [row["frame"] for row in read_csv(tmp_path)] == ["cam1/b.jpg"]
    assert [one.key for one in record.skipped] == ["inbox/cam1/a.jpg"]


FORMULAS = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(1)", "\t=1", " =1", "\r\n=1", "＝1", "\x00=1", "\u202e=1"]  # noqa: RUF001


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_device_is_a_formula_in_a_spreadsheet(store, tmp_path, text):
    hand_in(store, "cam1", "a.jpg", jpeg(1), label=text, why=text, release=text, at=text)
    list_into(store, tmp_path)
    [row] = read_csv(tmp_path)
    for column in ("suggested", "why", "release", "at"):
        assert row[column].startswith("'"), row
        assert row[column].isprintable()


def test_text_that_cannot_be_written_and_text_without_end_are_cut_to_a_line(store, tmp_path):
    record = frame(record=patched(label="\ud800a\nb", why="w" * 5000))
    for name, data in record.items():
        store.put(f"inbox/{name}", data)
    listed = list_into(store, tmp_path)
    for row in read_csv(tmp_path):
        assert row["suggested"] == "a b"
        assert len(row["why"]) <= 202
    assert listed.pictures + len(listed.skipped) == 1


# The page.


class Page(html.parser.HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            self.scripts[attributes.get("id") or ""] = data
        elif tag != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


NASTY = (
    "\"quoted\" & 'so'",
    "<script>alert(1)</script>",
    "</script>",
    "Ünïcødé 猫 🐈",
    "</template>",
    "a<!--",
)


def nasty_page(store, folder) -> Page:
    hand_in(store, "cam1", "a.jpg", jpeg(1), label=NASTY[1], why=NASTY[0], at=NASTY[2], release=NASTY[5])
    hand_in(store, "cam1", "b.jpg", jpeg(2), label=NASTY[0])
    hand_in(store, "cam1", "c.jpg", jpeg(3), label="unknown <b>")
    list_into(store, folder, labels=NASTY)
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_page_shows_each_picture_with_every_class_to_choose(store, tmp_path):
    page = nasty_page(store, tmp_path)
    assert [one["value"] for one in page.all("option")] == ["", *NASTY, "", "-"]
    assert [one["src"] for one in page.all("img")] == [row["picture"] for row in read_csv(tmp_path)]
    assert len(page.all("select")) == 3
    assert [one.get("data-suggested") for one in page.all("article")] == [NASTY[1], NASTY[0], None]
    assert "41 % sure" in page.text
    assert "unknown <b>" in page.text
    assert "alert" not in "".join(text for name, text in page.scripts.items() if name != "listing")
    data = json.loads(page.scripts["listing"])
    assert tuple(data["labels"]) == NASTY
    assert data["rows"] == [list(row.values()) for row in read_csv(tmp_path)]
    assert data["header"][data["column"]] == "label"


def test_the_page_loads_and_runs_nothing_but_its_own(store, tmp_path):
    page = nasty_page(store, tmp_path)
    assert len(page.all("script")) == 3
    [policy] = [one["content"] for one in page.all("meta") if one.get("http-equiv")]
    for script in page.all("script"):
        assert script.get("type") == "application/json" or f"'nonce-{script['nonce']}'" in str(policy)
        assert "src" not in script
    assert not {name for _, attributes in page.elements for name in attributes if name.startswith("on")}
    assert not any("//" in str(one.get("src")) for one in page.all("img"))
    assert not page.all("link")


def test_what_the_page_saves_is_the_file_that_the_pipeline_writes(store, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here to run the page's script")
    page = nasty_page(store, tmp_path)
    program = (
        page.scripts["file"]
        + f"const listing = {page.scripts['listing']};"
        + "process.stdout.write(toCsv(listing.header, listing.rows));"
    )
    saved = subprocess.run([node, "-e", program], capture_output=True, check=True).stdout
    assert saved == (tmp_path / "labels.csv").read_bytes()


# What comes back.


@pytest.fixture(params=["folder", "bucket"])
def dataset(request, tmp_path, store_settings, clients):
    """Class folders with pictures, on disk and in the bucket."""
    return make_dataset(request.param, tmp_path, store_settings, {"cat": 2, "dog": 2}, clients)


def make_dataset(
    kind: str, tmp_path: Path, settings: StoreSettings, classes: dict[str, int], clients: dict[int, Any]
) -> ClassFolders:
    url = str(tmp_path / "dataset") if kind == "folder" else f"{settings.url}/pictures"
    tree = class_folders(classes)
    if kind == "folder":
        write_tree(Path(url), tree)
    else:
        pictures = with_clients(S3Store(dataclasses.replace(settings, url=url)), clients)
        for path, data in tree.items():
            pictures.put(path, data)
    return open_class_folders(dataset_settings(tmp_path / "cache", url), settings)


def take(
    store: Store, folders: ClassFolders, path: Path, *, new_labels: bool = False, least: int = 2
) -> Taken:
    return take_labelled(store, folders, read_labels(path), least, ignore_progress, new_labels=new_labels)


def in_inbox(store: Store) -> list[str]:
    return [one.key.removeprefix("inbox/") for one in store.list_folder("inbox/")]


def from_inbox(folders: ClassFolders) -> dict[str, bytes | None]:
    return {
        f"{folder}/{name}": folders.read(f"{folder}/{name}")
        for folder, names in folders.contents().items()
        for name in names
        if not name.endswith(".png")
    }


def home(label: str, picture: bytes) -> str:
    return f"{label}/inbox-{sha256(picture)[:16]}.jpg"


def test_labelled_frames_move_into_their_class_and_the_rest_stays(store, dataset, tmp_path):
    for number in range(4):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number))
    list_into(store, tmp_path / "to")
    path = fill_in(tmp_path / "to", {"cam1/0.jpg": "cat", "cam1/1.jpg": " dog ", "cam1/2.jpg": "-"})
    done = take(store, dataset, path)
    assert (done.taken, done.discarded, done.skipped, dict(done.small)) == (2, 1, (), {})
    assert from_inbox(dataset) == {home("cat", jpeg(0)): jpeg(0), home("dog", jpeg(1)): jpeg(1)}
    assert in_inbox(store) == ["cam1/3.jpg", "cam1/3.json"]
    again = take(store, dataset, path)
    assert (again.taken, again.skipped) == (2, ())
    assert len(from_inbox(dataset)) == 2


def test_a_taken_picture_is_as_readable_as_its_folder(store, tmp_path, store_settings, clients):
    folders = make_dataset("folder", tmp_path, store_settings, {"cat": 2, "dog": 2}, clients)
    (tmp_path / "dataset/cat").chmod(0o750)
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    take(store, folders, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert (tmp_path / "dataset" / home("cat", jpeg(0))).stat().st_mode & 0o777 == 0o640


def test_two_frames_of_one_content_become_one_picture(store, dataset, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    hand_in(store, "cam2", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat", "cam2/a.jpg": "cat"}))
    assert done.skipped == ()
    assert list(from_inbox(dataset)) == [home("cat", jpeg(0))]
    assert in_inbox(store) == []


def test_a_picture_that_changed_after_a_person_saw_it_is_not_taken(store, dataset, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        hand_in(store, "cam1", name, jpeg(ord(name[0])))
    list_into(store, tmp_path / "to")
    hand_in(store, "cam1", "a.jpg", jpeg(66))
    hand_in(store, "cam1", "b.jpg", jpeg(67))
    path = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat", "cam1/b.jpg": "-", "cam1/c.jpg": "dog"})
    done = take(store, dataset, path)
    assert (done.taken, done.discarded) == (1, 0)
    assert [(one.key, "changed since it was listed" in one.reason) for one in done.skipped] == [
        ("cam1/a.jpg", True),
        ("cam1/b.jpg", True),
    ]
    assert list(from_inbox(dataset)) == [home("dog", jpeg(ord("c")))]
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json", "cam1/b.jpg", "cam1/b.json"]


def test_what_is_no_picture_never_reaches_the_dataset_whatever_the_file_says(store, dataset, tmp_path):
    script = b"\xff\xd8\xff but no picture"
    name = hand_in(store, "cam1", "a.jpg", script)
    row = labelling.Row(f"pictures/{sha256(script)}.jpg", "cat", "", "", "", "cam1", "", "", str(name))
    (tmp_path / "labels.csv").write_bytes(write_labels([row]))
    done = take(store, dataset, tmp_path / "labels.csv")
    assert "cannot be decoded" in done.skipped[0].reason or "whole picture" in done.skipped[0].reason
    assert from_inbox(dataset) == {}
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]


def test_a_name_that_is_taken_by_another_picture_is_left_alone(store, dataset, tmp_path):
    """Two contents with the same first 64 bits can be made on purpose."""
    dataset.write(home("cat", jpeg(0)), jpeg(1))
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert "is another picture" in done.skipped[0].reason
    assert dataset.read(home("cat", jpeg(0))) == jpeg(1)
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]


def test_a_frame_that_is_gone_is_named(store, dataset, tmp_path):
    name = hand_in(store, "cam1", "a.jpg", jpeg(0))
    list_into(store, tmp_path / "to")
    for key in name.keys:
        store.delete(key)
    done = take(store, dataset, fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"}))
    assert done.taken == 0
    assert "gone from the inbox" in done.skipped[0].reason


def labelled(*labels: str, seeds: tuple[int, ...] = ()) -> tuple[labelling.Labelled, ...]:
    digests = [sha256(jpeg(seed)) for seed in seeds or range(len(labels))]
    return tuple(
        labelling.Labelled(number + 2, FrameName("cam1", f"{number}.jpg"), digest, label)
        for number, (label, digest) in enumerate(zip(labels, digests, strict=True))
    )


CONTENTS = {"cat": frozenset({"1.png"}), "dog": frozenset({home("dog", jpeg(50))[4:]}), "é": frozenset({"1"})}


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (labelled("cat", "caat"), r"'caat' \(line 3\) is no class of DATA; did you mean 'cat'\?.*--new-lab"),
        (labelled("zebra", "cat", "zebra"), r"'zebra' \(line 2, 4\) is no class"),
        (labelled("Cat"), "differs only in case from the class 'cat'; write it so"),
        (labelled("a/b"), "cannot name a class folder"),
        (labelled("..\\b"), "cannot name a class folder"),
        (labelled(".."), "cannot name a class folder"),
        (labelled(".git"), "cannot name a class folder"),
        (labelled("__MACOSX"), "cannot name a class folder"),
        (labelled("x" * 300), "cannot name a class folder"),
        (labelled("a\nb"), "one line of visible text"),
        (labelled("cat", "dog", seeds=(1, 1)), "lines 2 and 3 label the same picture differently"),
        (labelled("cat", seeds=(50,)), r"line 2: the dataset has this picture as dog/inbox-\w{16}.jpg"),
    ],
)  # fmt: skip
def test_faults_of_labels_are_named_before_anything_is_moved(rows, named):
    with pytest.raises(InputError, match=named) as caught:
        plan_moves(rows, CONTENTS, "DATA", new_labels=False)
    assert "Nothing was moved" in str(caught.value)


def test_all_faults_are_named_at_once():
    with pytest.raises(InputError) as caught:
        plan_moves(labelled("caat", "doog", "Cat"), CONTENTS, "DATA", new_labels=False)
    assert all(one in str(caught.value) for one in ("caat", "doog", "Cat"))


def test_one_frame_under_two_labels_is_refused_and_under_one_is_taken_once():
    [row] = labelled("cat")
    twice = (row, dataclasses.replace(row, line=9))
    assert len(plan_moves(twice, CONTENTS, "DATA", new_labels=False)) == 1
    for other in ("dog", "-"):
        rows = (row, dataclasses.replace(row, line=9, label=other))
        with pytest.raises(InputError, match="lines 2 and 9"):
            plan_moves(rows, CONTENTS, "DATA", new_labels=False)


def test_a_copy_may_be_thrown_away():
    moves = plan_moves(labelled("cat", "-", seeds=(1, 1)), CONTENTS, "DATA", new_labels=False)
    assert [one.path for one in moves] == [home("cat", jpeg(1)), ""]


def test_a_label_in_the_other_unicode_form_is_the_class_that_is_there():
    [order] = plan_moves(labelled("e\u0301"), CONTENTS, "DATA", new_labels=False)
    assert order.path.startswith("é/")


def test_new_labels_start_classes_only_when_asked_for(store, dataset, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(0))
    hand_in(store, "cam1", "b.jpg", jpeg(1))
    list_into(store, tmp_path / "to")
    path = fill_in(tmp_path / "to", {"cam1/a.jpg": "otter", "cam1/b.jpg": "cat"})
    with pytest.raises(InputError, match="'otter'"):
        take(store, dataset, path)
    assert from_inbox(dataset) == {}
    assert len(in_inbox(store)) == 4
    done = take(store, dataset, path, new_labels=True, least=15)
    assert done.taken == 2
    assert dict(done.small) == {"otter": 1}
    assert from_inbox(dataset).keys() == {home("otter", jpeg(0)), home("cat", jpeg(1))}


@pytest.mark.parametrize("url", ["digits", "flowers", "https://example.org/p.zip", "ftp://x", ""])
def test_a_dataset_that_cannot_take_pictures_says_what_to_do(tmp_path, store_settings, url):
    with pytest.raises(SettingsError, match=r"takes no labelled pictures; copy its class folders"):
        open_class_folders(dataset_settings(tmp_path, url), store_settings)


def test_a_dataset_starts_with_its_first_labelled_frames(store, tmp_path, store_settings, clients):
    for kind in ("folder", "bucket"):
        folders = make_dataset(kind, tmp_path, store_settings, {}, clients)
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        assert folders.contents() == {}
        hand_in(store, "cam1", "a.jpg", jpeg(0))
        list_into(store, tmp_path / "to", labels=())
        path = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
        assert take(store, folders, path, new_labels=True).taken == 1
        assert list(from_inbox(folders)) == [home("cat", jpeg(0))]


# The file on its way through spreadsheets.


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path, delimiter, encoding, end):
    digest = sha256(b"x")
    lines = [
        ["Label", "picture", "frame", "notes"],
        ["größe", f"pictures/{digest}.jpg", "cam1/a.jpg", ""],
        ["", "", "", ""],
        ["", f"pictures\\{digest}.jpg", "cam1/b.jpg", "mine"],
    ]
    text = end.join(delimiter.join(line) for line in lines) + end
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    rows = read_labels(tmp_path / "l.csv")
    assert [(row.line, str(row.name), row.sha256, row.label) for row in rows] == [
        (2, "cam1/a.jpg", digest, "größe"),
        (4, "cam1/b.jpg", digest, ""),
    ]
    assert decided(rows) == (FrameName("cam1", "a.jpg"),)


def csv_of(*rows: str) -> bytes:
    return "\n".join(["picture,label,frame", *rows]).encode()


GOOD_PICTURE = f"pictures/{'0' * 64}.jpg"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no column picture, label, frame"),
        (b"a,b\n1,2\n", "no column picture, label, frame"),
        ("picture,label,frame\n".encode("utf-16"), "not UTF-8"),
        (csv_of("pictures/../x.jpg,cat,cam1/a.jpg"), "line 2: picture 'pictures/../x.jpg'"),
        (csv_of(f"{GOOD_PICTURE},cat,../a.jpg"), "line 2: device id '..'"),
        (csv_of(f"{GOOD_PICTURE},cat,cam1/../../x.jpg"), "line 2: inbox file '../../x.jpg'"),
        (csv_of(f"{GOOD_PICTURE},cat,cam1/x.json"), "ends in .jpg"),
        (csv_of("x", f"{GOOD_PICTURE},cat"), "line 2: .*; line 3: "),
        (csv_of('"' + "x" * 200_000 + '",cat,cam1/a.jpg'), "no CSV file"),
    ],
)
def test_a_file_that_is_no_labels_csv_is_refused_with_its_lines(tmp_path, content, named):
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_labels(tmp_path / "l.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.csv: No such file.*give the labels.csv"):
        read_labels(tmp_path / "none.csv")


# Interruptions.


class KilledError(Exception):
    """The process ends here."""


class Fuse:
    """Lets so many calls through, then ends the process at each."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.blown = False

    def burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.blown = True
            raise KilledError


class DyingStore(StoreAround):
    """The real store, until the fuse blows; before a call or right after it was done."""

    def __init__(self, store: Store, fuse: Fuse, *, after: bool) -> None:
        super().__init__(store)
        self.fuse, self.after = fuse, after

    def _guard(self, call: Callable[[], object]) -> object:
        if not self.after:
            self.fuse.burn()
        result = call()
        if self.after:
            self.fuse.burn()
        return result

    def put(self, key, data, *, content_type="application/octet-stream"):
        self._guard(lambda: self._store.put(key, data, content_type=content_type))

    def delete(self, key):
        self._guard(lambda: self._store.delete(key))


class DyingFolders:
    """The real dataset, until the fuse blows."""

    def __init__(self, folders: ClassFolders, fuse: Fuse, *, after: bool) -> None:
        self.url, self._folders, self._fuse, self._after = folders.url, folders, fuse, after

    def contents(self) -> dict[str, frozenset[str]]:
        return self._folders.contents()

    def read(self, path: str) -> bytes | None:
        return self._folders.read(path)

    def write(self, path: str, data: bytes) -> None:
        if not self._after:
            self._fuse.burn()
        self._folders.write(path, data)
        if self._after:
            self._fuse.burn()


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_taking_that_was_killed_at_any_write_is_finished_by_the_next_run(
    dataset, tmp_path, store, monkeypatch, after
):
    monkeypatch.setattr("luigi_tasks.labelling.intake.THREADS", 1)  # so that each count of calls is one place
    calls, survived = 0, 0
    while True:
        device = f"cam{calls}"
        pictures = [jpeg(100 * (calls + 1) + number) for number in range(3)]
        names = [hand_in(store, device, f"{number}.jpg", one) for number, one in enumerate(pictures)]
        list_into(store, tmp_path / device)
        choice = dict(zip(map(str, names), ("cat", "otter", "-"), strict=True))
        path = fill_in(tmp_path / device, choice)
        fuse = Fuse(calls)
        dying = cast("Store", DyingStore(store, fuse, after=after))
        try:
            take(dying, DyingFolders(dataset, fuse, after=after), path, new_labels=True)
        except KilledError:
            survived += 1
        in_dataset, waiting = from_inbox(dataset), in_inbox(store)
        for number, label in enumerate(("cat", "otter")):
            there = home(label, pictures[number]) in in_dataset
            assert there or f"{device}/{number}.jpg" in waiting, "the only copy is lost"
        done = take(store, dataset, path, new_labels=True)
        assert done.skipped == ()
        assert in_inbox(store) == []
        in_dataset = from_inbox(dataset)
        assert in_dataset[home("cat", pictures[0])] == pictures[0]
        assert in_dataset[home("otter", pictures[1])] == pictures[1]
        assert len(in_dataset) == 2 * (calls + 1)
        if not fuse.blown:
            break
        calls += 1
    assert survived == 8  # two writes, and two removals of each of three frames


def test_listing_that_was_killed_is_done_again(store, tmp_path, monkeypatch):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    list_into(store, tmp_path / "to")
    fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    for calls in range(20):
        fuse = Fuse(calls)

        def write(path, data, fuse=fuse):
            fuse.burn()
            write_durably(path, data)

        monkeypatch.setattr(labelling, "write_durably", write)
        digest = labelling.folder_digest(list_inbox(store), LABELS, 100)
        try:
            list_into(store, tmp_path / "to")
        except KilledError:
            assert not labelling.is_listed(tmp_path / "to", digest)
            assert read_csv(tmp_path / "to")[0]["label"] == "cat"
            continue
        assert labelling.is_listed(tmp_path / "to", digest)
        break
    assert calls == 5  # two pictures, the file, the page, the listing
    assert [row["label"] for row in read_csv(tmp_path / "to")] == ["cat", ""]


# Through luigi.


@pytest.fixture
def configured(tmp_path, inbox_settings) -> Iterator[Path]:
    """luigi.cfg of this process: the test's store and a dataset folder, which is returned."""
    folder = write_tree(tmp_path / "dataset", class_folders({"cat": 16, "dog": 16}))
    config = luigi.configuration.get_config()
    values = {
        "store": {
            "url": inbox_settings.url,
            "endpoint_url": inbox_settings.endpoint_url,
            "region": "us-east-1",
        },
        "dataset": {"url": str(folder), "cache_dir": str(tmp_path / "cache")},
        "model": {"input_size": "32"},
    }
    before = {section: dict(config.items(section)) for section in values if config.has_section(section)}
    for section, options in values.items():
        for name, value in options.items():
            config.set(section, name, value)
    yield folder
    for section, options in values.items():
        for name in options:
            if name in before.get(section, {}):
                config.set(section, name, before[section][name])
            else:
                config.remove_option(section, name)


def build(task: luigi.Task) -> bool:
    return bool(luigi.build([task], local_scheduler=True, log_level="WARNING"))


def snapshot_of(folder: Path) -> Snapshot:
    task = DatasetSnapshot(pictures=str(folder))
    assert build(task)
    return artifacts.load_snapshot(task.own_target())


def test_the_loop_closes_the_next_snapshot_has_what_was_labelled(store, configured, tmp_path):
    before = snapshot_of(configured)
    for number in range(3):
        hand_in(store, "cam1", f"{number}.jpg", jpeg(number))
    to = tmp_path / "to"
    assert build(ListInbox(to=str(to)))
    page = (to / "index.html").read_text(encoding="utf-8")
    assert '<option value="cat">' in page
    labels = fill_in(to, {"cam1/0.jpg": "cat", "cam1/1.jpg": "dog", "cam1/2.jpg": "-"})
    assert build(TakeLabelled(labels=str(labels)))
    assert in_inbox(store) == []
    after = snapshot_of(configured)
    assert after.digest != before.digest
    new = set(after.pictures) - set(before.pictures)
    assert {(one.path, one.sha256, one.label) for one in new} >= {
        (home("cat", jpeg(0)), sha256(jpeg(0)), "cat"),
        (home("dog", jpeg(1)), sha256(jpeg(1)), "dog"),
    }
    assert len(after.pictures) == len(before.pictures) + 2
    assert load_settings().dataset.url == str(configured)


def test_listing_again_is_nothing_to_do_until_frames_arrive_or_leave(store, configured, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    task = ListInbox(to=str(tmp_path / "to"))
    assert not task.complete()
    assert build(task)
    assert task.complete()
    hand_in(store, "cam1", "b.jpg", jpeg(2))
    assert not task.complete()
    assert build(task)
    assert [row["frame"] for row in read_csv(tmp_path / "to")] == ["cam1/a.jpg", "cam1/b.jpg"]
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    assert task.complete()  # a person's work is no reason to list again
    take_task = TakeLabelled(labels=str(labels))
    assert not take_task.complete()
    assert build(take_task)
    assert take_task.complete()
    assert not task.complete()
    (configured / "eel").mkdir()
    write_tree(configured / "eel", {"1.png": picture_bytes(99)})
    assert build(task)
    assert '<option value="eel">' in (tmp_path / "to/index.html").read_text(encoding="utf-8")


def test_a_frame_handed_in_again_is_taken_again_by_the_same_file(store, configured, tmp_path):
    """A device whose answer from the store was lost uploads once more."""
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert build(ListInbox(to=str(tmp_path / "to")))
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "cat"})
    task = TakeLabelled(labels=str(labels))
    assert build(task)
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert not task.complete()
    assert build(task)
    assert in_inbox(store) == []
    assert sum(path.name.startswith("inbox-") for path in (configured / "cat").iterdir()) == 1


def test_a_bad_file_fails_the_task_and_moves_nothing(store, configured, tmp_path):
    hand_in(store, "cam1", "a.jpg", jpeg(1))
    assert build(ListInbox(to=str(tmp_path / "to")))
    labels = fill_in(tmp_path / "to", {"cam1/a.jpg": "caat"})
    assert not build(TakeLabelled(labels=str(labels)))
    assert not build(TakeLabelled(labels=str(tmp_path / "none.csv")))
    assert in_inbox(store) == ["cam1/a.jpg", "cam1/a.json"]
    assert len(list(configured.rglob("*"))) == 34


def test_listing_json_says_what_was_skipped(store, tmp_path):
    store.put(inbox_key("cam1", "x.jpg"), jpeg(1))
    list_into(store, tmp_path)
    data = (tmp_path / "listing.json").read_bytes()
    record = decode_document(LabellingRecord, data, source="listing.json", limit_bytes=1 << 20)
    assert [one.key for one in record.skipped] == ["inbox/cam1/x.jpg"]
