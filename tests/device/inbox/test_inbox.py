"""Frames kept for labelling: which ones, within which limits, and their way to the store."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import io
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from local_services import wait_until
from PIL import Image

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import InboxRecord, Result
from edge_client.disk import write_durably
from edge_client.inbox import keeper as keeper_module
from edge_client.inbox import service
from edge_client.inbox.ages import CLOCK_FILE, FrameClock, Reading
from edge_client.inbox.keeper import FrameKeeper, forget, kept_records
from edge_client.inbox.selection import DISAGREEMENT, INBOX_DIR, UNSURE, ChannelAnswer, is_needed, why_keep
from edge_client.inbox.service import Inbox
from edge_client.inbox.upload import upload_in_child
from edge_client.inbox.upload_child import InboxWriter, upload
from edge_client.inference.classifier import Prediction
from edge_client.settings.file import load_settings
from edge_client.settings.frames import InboxSettings
from tests.fakes.results import example_result
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
KEEPS = InboxSettings(unsure_below=0.6, disagreements=True, per_hour=3600.0)


def result(number: int = 1, **fields) -> Result:
    values = {
        "device": "camera-1",
        "source": f"{number}.png",
        "frame": number,
        "top": {"ripe": 0.4, "rotten": 0.35},
        "channel": "stable",
        "at": f"2026-11-24T12:00:{number:02}.000+00:00",
    }
    return example_result(**(values | fields))


def predicted(**scores: float) -> Prediction:
    best = max(scores, key=lambda label: scores[label])
    values = np.array(list(scores.values()), np.float32)
    return Prediction(best, list(scores).index(best), scores[best], values, 1.0, tuple(scores))


def answer(seen: Prediction, shadow: Prediction | None = None, channel: str = "stable") -> ChannelAnswer:
    said = result(label=seen.label, confidence=seen.confidence, channel=channel)
    return ChannelAnswer(seen, said, shadow)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path):
    return tmp_path / INBOX_DIR


@pytest.fixture
def keep(folder):
    """Keep `count` frames, one at each tick of a clock that the limits allow; returns their records."""
    keepers = []

    def keep_(count: int, settings: InboxSettings = KEEPS, **options) -> list[InboxRecord]:
        clock = Clock()
        keeper = FrameKeeper(settings, folder, clock=clock, **options)
        keepers.append(keeper)
        clock.now += 3600 / settings.per_hour  # frames of a run before count too
        for number in range(count):
            pixels = np.roll(PIXELS, number, axis=1)
            wait_until(keeper._waiting.empty, "the frame before")
            assert keeper.keep(pixels, result(number), UNSURE)
            wait_kept(folder, f"20261124T1200{number:02}")
            clock.now += 3600 / settings.per_hour
        keeper.close()
        return [read(path) for path in kept_records(folder)]

    return keep_


def wait_kept(folder, newest: str) -> None:
    wait_until(lambda: any(record.name.startswith(newest) for record in kept_records(folder)), newest)


def read(path) -> InboxRecord:
    return decode_document(InboxRecord, path.read_bytes(), source=str(path), limit_bytes=65536)


SURE, DOUBT = predicted(ripe=0.7, rotten=0.3), predicted(ripe=0.5, rotten=0.5)
OTHER = predicted(ripe=0.3, rotten=0.7)


@pytest.mark.parametrize(
    ("answers", "settings", "why"),
    [
        ([answer(DOUBT)], KEEPS, UNSURE),
        ([answer(SURE)], KEEPS, None),
        ([answer(SURE, OTHER)], KEEPS, DISAGREEMENT),
        ([answer(SURE, SURE)], KEEPS, None),
        ([answer(DOUBT, OTHER)], KEEPS, DISAGREEMENT),
        ([answer(DOUBT, OTHER)], InboxSettings(), None),
        ([answer(SURE, OTHER)], InboxSettings(unsure_below=0.6), None),
        ([answer(SURE), answer(DOUBT, channel="doors")], KEEPS, UNSURE),
        ([answer(SURE), answer(SURE, OTHER, "doors")], KEEPS, DISAGREEMENT),
    ],
)
def test_unsure_and_disagreeing_frames_are_selected(answers, settings, why):
    found = why_keep(settings, answers)
    assert (found and found[0]) == why
    assert found is None or found[1] is answers[-1]


def test_the_least_confident_answer_goes_into_the_record():
    answers = [
        answer(predicted(open=0.5, shut=0.4), channel="doors"),
        answer(predicted(ripe=0.4, rotten=0.3)),
    ]
    assert why_keep(KEEPS, answers) == (UNSURE, answers[1])


NOT_SURE = dataclasses.replace(SURE, sure=False)


@pytest.mark.parametrize(
    ("seen", "settings", "kept"),
    [
        (NOT_SURE, InboxSettings(unsure=True), True),
        (SURE, InboxSettings(unsure=True), False),
        (DOUBT, InboxSettings(unsure=True), False),
        (NOT_SURE, InboxSettings(unsure_below=0.6), True),
        (NOT_SURE, InboxSettings(disagreements=True), False),
        (NOT_SURE, InboxSettings(), False),
        (NOT_SURE, InboxSettings(unsure=True, never_labels=("rotten",)), False),
    ],
)
def test_a_frame_that_the_release_is_not_sure_of_is_kept_where_unsure_frames_are_wanted(seen, settings, kept):
    found = why_keep(settings, [answer(SURE), answer(seen, channel="doors")])
    assert found == ((UNSURE, answer(seen, channel="doors")) if kept else None)
    assert settings.keeps == (settings != InboxSettings())


PERSON, HINT, DOG = (
    predicted(person=0.996, ripe=0.004),
    predicted(ripe=0.5, person=0.06),
    predicted(ripe=0.5, dog=0.04),
)


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        ([answer(HINT)], False),
        ([answer(DOG)], True),
        ([answer(PERSON), answer(DOUBT, channel="doors")], False),
        ([answer(DOUBT, channel="doors"), answer(PERSON)], False),
        ([answer(DOUBT, PERSON)], False),
        ([answer(DOUBT), answer(SURE, PERSON, "doors")], False),
        ([answer(dataclasses.replace(DOUBT, labels=("person", "person")))], False),
    ],
)
def test_a_frame_with_a_private_label_in_any_release_is_not_kept(answers, kept):
    settings = dataclasses.replace(KEEPS, never_labels=("dog", "person"))
    assert (why_keep(settings, answers) is not None) == kept


def test_the_better_score_of_a_label_listed_twice_counts():
    twice = dataclasses.replace(predicted(a=0.5, b=0.48, c=0.02), labels=("ripe", "person", "person"))
    assert why_keep(dataclasses.replace(KEEPS, never_labels=("person",)), [answer(twice)]) is None


def test_nothing_is_kept_by_default():
    assert not InboxSettings().keeps
    assert not InboxSettings().upload


def test_a_frame_and_its_record_are_kept(keep, folder):
    [record] = keep(1)
    picture = (folder / record.picture).read_bytes()
    assert hashlib.sha256(picture).hexdigest() == record.sha256
    assert Image.open(io.BytesIO(picture)).size == (640, 480)
    assert (record.label, record.confidence, record.why) == ("ripe", 0.4, UNSURE)
    assert (record.device, record.release, record.channel) == ("camera-1", "r1", "stable")


def test_frames_are_scaled_down(keep, folder):
    [record] = keep(1, dataclasses.replace(KEEPS, longest_side=100))
    assert Image.open(folder / record.picture).size == (100, 75)


def test_restarts_do_not_raise_the_rate(folder):
    settings, clock = dataclasses.replace(KEEPS, per_hour=60.0), Clock()
    kept = 0
    for number in range(5):
        keeper = FrameKeeper(settings, folder, clock=clock)
        kept += keeper.keep(PIXELS, result(number), UNSURE)
        keeper.close()
        for record in kept_records(folder):  # brought away at once: this is no way round the limit
            forget(record)
    assert kept == 1
    long_ago = time.time() - 61
    os.utime(folder, (long_ago, long_ago))
    keeper = FrameKeeper(settings, folder, clock=clock)
    assert keeper.keep(PIXELS, result(), UNSURE)
    keeper.close()


def test_frames_per_hour_are_limited(folder):
    clock = Clock()
    keeper = FrameKeeper(dataclasses.replace(KEEPS, per_hour=2.0), folder, clock=clock)
    taken = []
    for second in range(0, 7200, 60):
        clock.now = float(second)
        if keeper.keep(PIXELS[:64, :64], result(second // 1800), UNSURE):
            taken.append(second)
            wait_kept(folder, f"20261124T1200{second // 1800:02}")
    keeper.close()
    assert taken == [0, 1800, 3600, 5400]


def test_the_oldest_frames_are_deleted_at_the_size_limit(keep, folder):
    one = keep(1)[0]
    size = sum((folder / name).stat().st_size for name in (one.picture, one.picture[:-3] + "json"))
    records = keep(6, dataclasses.replace(KEEPS, max_bytes=3 * size + size // 2))
    assert [record.at[17:19] for record in records] == ["03", "04", "05"]
    assert len(list(folder.iterdir())) == 6


DAY_S = 86400.0


class Clocks:
    """The clocks of a machine, which tests move."""

    def __init__(self) -> None:
        self.now = Reading("boot-1", 100.0, time.time())

    def __call__(self) -> Reading:
        return self.now

    def run(self, seconds: float) -> None:
        """Time passes."""
        boot, since_boot_s, wall_s = self.now
        self.now = Reading(boot, since_boot_s + seconds, wall_s + seconds)

    def set(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.now = self.now._replace(wall_s=self.now.wall_s + seconds)

    def boot(self, off_s: float = 30.0) -> None:
        self.now = Reading(f"{self.now.boot}'", 10.0, self.now.wall_s + off_s)


@pytest.fixture
def tidy(folder):
    """Run a keeper for a moment, as a daemon does at its start; returns how many frames are left."""

    def tidy_(clocks: Clocks, settings: InboxSettings = KEEPS) -> int:
        keeper = FrameKeeper(settings, folder, clocks=clocks)
        keeper.close()
        assert keeper.kept == len(kept_records(folder))
        return keeper.kept

    return tidy_


def live(clocks: Clocks, tidy: Callable[[Clocks], int], days: int) -> int:
    """Run for some days, with a restart each day."""
    left = 0
    for _ in range(days):
        clocks.run(DAY_S)
        left = tidy(clocks)
    return left


def test_frames_are_deleted_after_days_of_running_also_once_the_inbox_is_off(keep, tidy, folder):
    clocks = Clocks()
    keep(2, clocks=clocks)
    assert live(clocks, tidy, 13) == 2
    keep(3, clocks=clocks)  # the first two once more, and another
    assert live(clocks, tidy, 2) == 3
    assert live(clocks, tidy, 11) == 3
    assert live(clocks, tidy, 1) == 3
    off = InboxSettings()
    clocks.run(DAY_S / 2)
    assert is_needed(off, folder)
    assert tidy(clocks, off) == 0
    assert not is_needed(off, folder)
    assert is_needed(KEEPS, folder)


WRONG_CLOCKS = {
    "ten years ahead for a moment": [("set", 3650 * DAY_S), ("run", 60.0), ("set", -3650 * DAY_S)],
    "ten years ahead, and a restart": [("set", 3650 * DAY_S), ("boot", 30.0), ("run", 60.0)],
    "21 days behind for a minute": [("boot", -21 * DAY_S), ("run", 60.0), ("set", 21 * DAY_S)],
    "behind and ahead at each of many starts": [("boot", -300 * DAY_S), ("boot", 300 * DAY_S)] * 3,
    "in 1970": [("set", -56 * 365 * DAY_S), ("boot", 30.0), ("run", 60.0)],
    "all clocks of a machine that slept for a year": [("run", 365 * DAY_S)],
}


@pytest.mark.parametrize("name", WRONG_CLOCKS)
def test_a_wrong_clock_deletes_no_frame(keep, tidy, name, faults):
    clocks = Clocks()
    keep(8, clocks=clocks)
    with faults.injected(Kind.STATE, "clock of a device that keeps frames", name):
        for act, seconds in WRONG_CLOCKS[name]:
            getattr(clocks, act)(seconds)
            assert tidy(clocks) == 8
        keep(1, clocks=clocks)
        assert tidy(clocks) == 8, "the first one was kept once more"
        assert live(clocks, tidy, 15) == 0, "they go after days of running"


def test_frames_kept_while_the_clock_was_wrong_go_with_the_others(keep, tidy, folder):
    clocks = Clocks()
    clocks.set(-21 * DAY_S)
    keep(4, clocks=clocks)
    clocks.set(21 * DAY_S)
    assert tidy(clocks) == 4
    assert live(clocks, tidy, 13) == 4
    assert live(clocks, tidy, 2) == 0


FAR_AWAY = b'{"frames_s": 1e300, "boot": "", "since_boot_s": 0, "wall_s": 0}'


@pytest.mark.parametrize(
    ("date", "stored"),
    [(0.0, None), (15 * DAY_S, None), (4e9, b"torn"), (4e9, FAR_AWAY)],
    ids=["1970", "1970 too", "2096, torn", "2096, far away"],
)
def test_frames_of_unknown_age_count_from_now_on(tidy, folder, date, stored):
    """Frames of an older version, of another device's disk; a file that a power cut tore."""
    folder.mkdir()
    for suffix in (".json", ".jpg"):
        path = folder / f"20200101T000000-aaaaaaaaaaaa{suffix}"
        path.write_text("{}")
        os.utime(path, (date, date))
    if stored is not None:
        (folder.parent / CLOCK_FILE).write_bytes(stored)
    clocks = Clocks()
    assert tidy(clocks) == 1
    assert live(clocks, tidy, 13) == 1
    assert live(clocks, tidy, 2) == 0


def test_the_oldest_frames_go_first_whatever_their_names_say(keep, folder):
    one = keep(1)[0]
    size = sum((folder / name).stat().st_size for name in (one.picture, one.picture[:-3] + "json"))
    for suffix in (".jpg", ".json"):
        (folder / one.picture).with_suffix(suffix).rename(folder / f"20990101T000000-aaaaaaaaaaaa{suffix}")
    records = keep(2, dataclasses.replace(KEEPS, max_bytes=2 * size + size // 2))
    assert [record.at[17:19] for record in records] == ["00", "01"]


def test_frames_are_deleted_without_new_ones(keep, folder, monkeypatch):
    monkeypatch.setattr(keeper_module, "_TIDY_S", 0.05)
    clocks = Clocks()
    keep(1, clocks=clocks)
    keeper = FrameKeeper(dataclasses.replace(KEEPS, keep_days=0.5), folder, clocks=clocks)
    clocks.run(0.6 * DAY_S)
    wait_until(lambda: list(folder.iterdir()) == [], "the next hour")
    keeper.close()


def test_a_disk_error_does_not_end_the_thread(folder, monkeypatch, caplog):
    clock = Clock()
    keeper = FrameKeeper(KEEPS, folder, clock=clock)
    for number, error in enumerate((OSError(5, "Input/output error"), RuntimeError("a bug"))):
        with monkeypatch.context() as patched:
            patched.setattr("shutil.disk_usage", raising(error))
            assert keeper.keep(PIXELS, result(number), UNSURE)
            wait_until(functools.partial(is_logged, caplog, str(error.args[-1])), "the failure")
        clock.now += 10
    assert keeper.alive
    assert keeper.keep(PIXELS, result(3), UNSURE)
    keeper.close()
    assert len(kept_records(folder)) == 1
    assert not keeper.alive


def is_logged(caplog, text: str) -> bool:
    return text in caplog.text


def raising(error: Exception):
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    return fail


def test_a_picture_without_its_record_is_deleted(folder, monkeypatch):
    def write(path, data: bytes) -> None:
        if path.suffix == ".json":
            raise DeviceError("no space left")
        write_durably(path, data)

    monkeypatch.setattr(keeper_module, "write_durably", write)
    keeper = FrameKeeper(KEEPS, folder)
    assert keeper.keep(PIXELS, result(), UNSURE)
    keeper.close()
    assert list(folder.iterdir()) == []
    assert keeper.kept == 0


def test_a_full_disk_is_logged_once(folder, caplog):
    clock = Clock()
    keeper = FrameKeeper(KEEPS, folder, min_free_bytes=1 << 60, clock=clock)
    for number in range(3):
        clock.now = number * 10.0
        wait_until(keeper._waiting.empty, "the frame before")
        assert keeper.keep(PIXELS, result(number), UNSURE)
    keeper.close()
    assert kept_records(folder) == []
    assert len([r for r in caplog.records if "make room" in r.getMessage()]) == 1


def test_incomplete_frames_of_a_power_cut_are_deleted(folder, keep):
    keep(1)
    (folder / "20200101T000000-abc.jpg").write_bytes(b"half")
    (folder / ".20200101T000000-abc.json.x1y2").write_bytes(b"")
    keep(1)
    assert {path.suffix for path in folder.iterdir()} == {".jpg", ".json"}
    assert len(list(folder.iterdir())) == 2


class PutServer(http.server.ThreadingHTTPServer):
    """Takes PUTs, as S3 does, and fails when told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.authorized: list[str] = []
        self.fail_after = 1000

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PutServer

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorized.append(self.headers.get("Authorization", ""))
        status = 200
        if len(self.server.objects) >= self.server.fail_after:
            status = 403
        elif self.path in self.server.objects and self.headers.get("If-None-Match") == "*":
            status = 412
        else:
            self.server.objects[self.path] = body
        answer = b"<Error><Code>AccessDenied</Code></Error>" if status == 403 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def inbox():
    with PutServer() as inbox:
        yield inbox


@pytest.fixture
def settings(tmp_path, inbox, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    file = tmp_path / "device.toml"
    file.write_text(
        f'[device]\nid = "camera-1"\nstate_dir = "{tmp_path}"\n'
        f'[store]\nbase_url = "http://127.0.0.1:{inbox.server_address[1]}/bucket/prefix"\n'
        f'[source]\npath = "{tmp_path}"\n'
    )
    return load_settings(file)


def test_uploaded_frames_are_deleted_on_the_device(keep, settings, inbox, folder):
    records = keep(3)
    report = upload_in_child(settings)
    assert (report.uploaded, report.error) == (3, None)
    assert list(folder.iterdir()) == []
    for record in records:
        picture = inbox.objects[f"/bucket/prefix/inbox/camera-1/{record.picture}"]
        assert hashlib.sha256(picture).hexdigest() == record.sha256
        assert inbox.objects[f"/bucket/prefix/inbox/camera-1/{record.picture[:-3]}json"]
    assert all("AKIDEXAMPLE" in header and "secret" not in header for header in inbox.authorized)


@pytest.fixture
def in_folder(tmp_path, settings, monkeypatch):
    """Settings of a device on a folder store, which needs no keys."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "store/inbox").mkdir(parents=True)
    store = dataclasses.replace(settings.store, base_url=(tmp_path / "store").as_uri())
    return dataclasses.replace(settings, store=store)


def test_frames_go_into_a_folder_store_readable_by_the_pipeline(keep, in_folder, tmp_path, folder):
    records = keep(2)
    inbox = tmp_path / "store/inbox/camera-1"
    inbox.mkdir()
    (inbox / ".half.jpg.xyz").write_bytes(b"of an upload that was killed")
    report = upload_in_child(in_folder)
    assert (report.uploaded, report.error) == (2, None)
    assert list(folder.iterdir()) == []
    names = {f"{record.picture[:-3]}{suffix}" for record in records for suffix in ("jpg", "json")}
    assert {path.name for path in inbox.iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in inbox.iterdir()} == {0o644}
    for record in records:
        assert hashlib.sha256((inbox / record.picture).read_bytes()).hexdigest() == record.sha256


@pytest.mark.parametrize("mount_point", [True, False], ids=["unmounted", "away"])
def test_a_folder_store_that_is_away_costs_no_frame_and_is_not_made(
    keep, in_folder, tmp_path, folder, mount_point
):
    """Frames in an empty mount point would fill the device's own disk, and vanish below the mounted one."""
    keep(2)
    (tmp_path / "store").rename(tmp_path / "disk")
    if mount_point:
        (tmp_path / "store").mkdir()
    report = upload_in_child(in_folder)
    assert report.uploaded == 0
    assert "store mounted? If it is, create inbox/ in it once" in str(report.error)
    assert len(kept_records(folder)) == 2
    assert list((tmp_path / "store").glob("*")) == []
    if mount_point:
        (tmp_path / "store").rmdir()
    (tmp_path / "disk").rename(tmp_path / "store")
    assert upload_in_child(in_folder).uploaded == 2


def test_a_frame_in_a_folder_store_is_never_written_over(keep, in_folder, tmp_path):
    [record] = keep(1)
    there = tmp_path / "store/inbox/camera-1" / record.picture
    there.parent.mkdir(parents=True)
    there.write_bytes(b"first")
    assert upload_in_child(in_folder).uploaded == 1
    assert there.read_bytes() == b"first"


def test_a_folder_store_that_refuses_is_named(keep, in_folder, tmp_path, folder):
    keep(1)
    (tmp_path / "store/inbox/camera-1").write_bytes(b"a file in the way")
    report = upload_in_child(in_folder)
    assert report.uploaded == 0
    assert "let this device's user write there" in str(report.error)
    assert len(kept_records(folder)) == 1


def test_an_interrupted_upload_continues_with_the_next_one(keep, settings, inbox, folder):
    keep(3)
    inbox.fail_after = 3  # the second frame's picture arrives, its record does not
    report = upload_in_child(settings)
    assert report.uploaded == 1
    assert "403 AccessDenied" in str(report.error)
    assert len(kept_records(folder)) == 2
    inbox.fail_after = 1000
    assert upload_in_child(settings).uploaded == 2
    assert len(inbox.objects) == 6
    assert list(folder.iterdir()) == []


def test_an_unreachable_store_loses_no_frame(keep, settings, inbox, folder):
    keep(2)
    inbox.shutdown()
    inbox.server_close()
    report = upload_in_child(settings)
    assert report.uploaded == 0
    assert "it will be tried again" in str(report.error)
    assert len(kept_records(folder)) == 2


def test_an_upload_without_keys_names_the_setting(keep, settings, monkeypatch):
    keep(1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "access_key_file" in str(upload_in_child(settings).error)


def test_a_frame_deleted_during_the_upload_is_skipped(keep, settings, folder):
    keep(2)
    (folder / kept_records(folder)[0].with_suffix(".jpg").name).unlink()
    report = upload_in_child(settings)
    assert (report.uploaded, report.error) == (2, None)
    assert list(folder.iterdir()) == []


def test_a_hanging_upload_is_killed(keep, settings, monkeypatch):
    keep(1)
    limit = dataclasses.replace(settings.update, check_timeout_s=0.01)
    with pytest.raises(DeviceError, match="took over"):
        upload_in_child(dataclasses.replace(settings, update=limit))


def test_a_frame_that_cannot_be_read_is_skipped(keep, settings, inbox, folder, monkeypatch):
    keep(3)
    first = kept_records(folder)[0].with_suffix(".jpg")
    read_bytes = type(first).read_bytes
    monkeypatch.setattr(
        type(first),
        "read_bytes",
        lambda path: raising(OSError(5, "EIO"))() if path == first else read_bytes(path),
    )
    report = upload(settings, InboxWriter(settings))
    assert report.uploaded == 2
    assert first.name[:-4] in str(report.error)
    assert len(inbox.objects) == 4
    assert [record.stem for record in kept_records(folder)] == [first.stem]


@pytest.fixture
def keeping(settings):
    """The inbox of a daemon, and its settings changed as wanted."""
    opened = []

    def open_(**changes) -> Inbox:
        changed = dataclasses.replace(settings.inbox, unsure_below=0.6, per_hour=1e9, **changes)
        opened.append(Inbox(dataclasses.replace(settings, inbox=changed)))
        return opened[-1]

    yield open_
    for inbox in opened:
        inbox.close()


def test_the_status_counts_frames_without_reading_the_disk(keeping, folder, monkeypatch):
    folder.mkdir()
    for suffix in (".json", ".jpg"):
        (folder / f"20261124T110000-b{suffix}").write_text("{}")
    inbox = keeping()
    wait_until(lambda: inbox.live_fields()["inbox"].waiting == 1, "the count at the start")
    inbox.consider(PIXELS, [answer(DOUBT)])
    wait_until(lambda: inbox.live_fields()["inbox"].waiting == 2, "the frame")
    monkeypatch.setattr(keeper_module, "kept_records", raising(AssertionError("read the disk")))
    monkeypatch.setattr(type(folder), "glob", raising(AssertionError("read the disk")))
    assert inbox.live_fields()["inbox"].waiting == 2


def test_uploaded_frames_no_longer_count_as_waiting(keeping, folder, keep):
    keep(2)
    inbox = keeping(upload=True, upload_s=4.0)
    wait_until(lambda: inbox.live_fields()["inbox"].uploaded == 2, "the upload")
    wait_until(lambda: inbox.live_fields()["inbox"].waiting == 0, "the count after it", 1.0)


def test_an_exception_in_one_upload_does_not_end_the_thread(keeping, keep, monkeypatch, caplog):
    keep(1)
    failed = iter([True])

    def upload_once_broken(settings):
        if next(failed, False):
            raise RuntimeError("a bug")
        return upload_in_child(settings)

    monkeypatch.setattr(service, "upload_in_child", upload_once_broken)
    inbox = keeping(upload=True, upload_s=0.1)
    wait_until(lambda: inbox.live_fields()["inbox"].uploaded == 1, "the upload after the one that failed")
    assert "a bug" in caplog.text
    assert inbox.alive


@pytest.mark.parametrize(
    "wrong",
    [
        {"unsure_below": 1.1},
        {"per_hour": 0.0},
        {"max_bytes": 5},
        {"keep_days": 0.0},
        {"longest_side": 1},
        {"upload_s": 0.0},
        {"base_url": "ftp://x"},
    ],
)
def test_impossible_inbox_settings_are_reported(wrong):
    assert len(InboxSettings(**wrong).faults()) == 1
    assert InboxSettings().faults() == ()


def test_kept_frames_have_times_that_version_0_1_keeps_too(tmp_path):
    """It deletes by the clock what is older than `keep_days`: no time may be one of 1970."""
    now = Reading("boot-1", 5.0, 1_700_000_000.0)
    ages = FrameClock(tmp_path / INBOX_DIR, lambda: now)
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    for record in (old, new):
        record.touch()
    ages.mark(new)
    assert new.stat().st_mtime == now.wall_s
    os.utime(old, (1_000_000_000.0, 1_000_000_000.0))  # of an older version, under whatever clock
    assert ages.written_s(old) == now.wall_s
