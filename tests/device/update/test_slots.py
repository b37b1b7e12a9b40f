"""Slots survive whatever a power cut leaves."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from edge_client.contract.errors import DeviceError, InputError
from edge_client.update import sealed_file
from edge_client.update.endings import Ending
from edge_client.update.failures import REFUSALS_KEPT
from edge_client.update.slots import PatientSlots, Slots
from edge_client.update.slots_document import ProbationRecord
from tests.fakes.bad_disk import bits_of, fail_to_read, flip
from tests.fakes.tiny_release import tiny_release, write_release

FILES = ("slots.json", "slots.copy.json")


A, B, C = (tiny_release(bias)[0].release for bias in range(3))
BIAS = {A: 0, B: 1, C: 2}


def put_signed(slots: Slots, release: str) -> None:
    """Stage, install and activate one of three whole releases."""
    write_release(slots.stage(release), BIAS[release])
    slots.install(release)
    slots.activate(release)
    slots.clean_slots()


def put(slots: Slots, release: str) -> None:
    """Stage, install and activate a release of two files."""
    folder = slots.stage(release)
    (folder / "release.json").write_bytes(b"{}")
    (folder / "model.tflite").write_bytes(release.encode())
    slots.install(release)
    slots.activate(release)


def lose(state_dir: Path) -> None:
    """Both copies of the file that names the releases are gone."""
    for name in FILES:
        (state_dir / name).unlink()


@pytest.fixture
def slots(tmp_path) -> Slots:
    return Slots(tmp_path)


def state(slots: Slots) -> tuple[str | None, str | None]:
    return slots.current, slots.previous


def test_a_new_state_folder_is_empty(slots, tmp_path):
    assert state(slots) == (None, None)
    assert not (tmp_path / "slots.json").exists()


def test_activation_keeps_the_previous_and_survives_a_restart(slots, tmp_path):
    put(slots, "a")
    put(slots, "b")
    assert state(Slots(tmp_path)) == ("b", "a")
    put(slots, "c")
    assert state(Slots(tmp_path)) == ("c", "b")
    slots.clean_slots()
    slots.clean_leftovers()
    assert {path.name for path in (tmp_path / "slots").iterdir()} == {"b", "c"}


def test_activating_what_serves_keeps_the_previous(slots):
    put(slots, "a")
    put(slots, "b")
    slots.activate("b")
    assert state(slots) == ("b", "a")


def test_an_installed_release_serves_only_once_activated(slots, tmp_path):
    put(slots, "a")
    slots.stage("b")
    slots.install("b")
    assert state(Slots(tmp_path)) == ("a", None)


def test_the_serving_slot_is_never_replaced(slots):
    put(slots, "a")
    slots.stage("a")
    with pytest.raises(DeviceError, match="serves now"):
        slots.install("a")
    assert (slots.folder("a") / "model.tflite").read_bytes() == b"a"


def test_staging_another_release_drops_the_first(slots, tmp_path):
    (slots.stage("a") / "model.tflite").write_bytes(b"a")
    slots.stage("b")
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["b"]


def test_staging_again_keeps_what_came(slots):
    (slots.stage("a") / "model.tflite").write_bytes(b"a")
    assert (slots.stage("a") / "model.tflite").read_bytes() == b"a"


@pytest.mark.parametrize("release", ["../a", "", ".", "a/b", "a\n", ".hidden", "x" * 65])
def test_no_release_name_leaves_the_folder(slots, tmp_path, release):
    with pytest.raises(InputError):
        slots.stage(release)
    with pytest.raises(InputError):
        slots.folder(release)
    assert not (tmp_path / "incoming").exists()


def test_every_file_is_on_disk_before_the_slot_gets_its_name(slots, monkeypatch):
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    folder = slots.stage("a")
    for name in ("release.json", "model.tflite"):
        (folder / name).write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", record)
    slots.install("a")
    assert set(synced[:2]) == {str(folder / "release.json"), str(folder / "model.tflite")}
    assert synced[2:] == [str(folder), str(slots.folder("a").parent)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"\xf6nknown": 1}', b'{"schema": 9}', b'{"current": "../../etc"}', b"\0" * 512],
)
@pytest.mark.parametrize("lost", [("slots.json",), ("slots.copy.json",), FILES])
def test_a_broken_slots_file_costs_nothing(slots, tmp_path, content, lost, caplog):
    put_signed(slots, A)
    put_signed(slots, B)
    slots.note_failure("r", Ending.WORSE, "wrong answers", "this")
    os.utime(slots.folder(B), (1, 1))
    for name in lost:
        (tmp_path / name).write_bytes(content)
    again = Slots(tmp_path)
    assert state(again) == (B, A)
    assert bool(again.refused) == (lost != FILES), "one of two copies is enough"
    assert lost == ("slots.copy.json",) or "slots.json" in caplog.text


def test_a_missing_slots_file_falls_back_too(slots, tmp_path):
    put_signed(slots, A)
    lose(tmp_path)
    assert state(Slots(tmp_path)) == (A, None)


def test_a_release_that_never_served_is_not_adopted_over_one_that_did(slots, tmp_path):
    """Version 0.1 adopted what was newest: a release that waits, or that fails in shadow mode."""
    put_signed(slots, A)
    put_signed(slots, B)
    write_release(slots.stage(C), BIAS[C])
    slots.install(C)
    slots.keep_shadow(ProbationRecord(release=C))
    write_release(slots.stage("0123456789"), 5)
    lose(tmp_path)
    assert state(Slots(tmp_path)) == (B, A)


def test_what_served_last_is_adopted_after_a_rollback(slots, tmp_path):
    put_signed(slots, A)
    put_signed(slots, B)
    slots.activate(A)
    slots.clean_slots()
    lose(tmp_path)
    assert state(Slots(tmp_path)) == (A, B)


def test_a_slot_that_is_not_what_was_signed_is_not_adopted(slots, tmp_path):
    put_signed(slots, A)
    put_signed(slots, B)
    (slots.folder(B) / "model.tflite").write_bytes(b"of somebody else")
    (slots.folder(C)).mkdir()
    (slots.folder(C) / "model.tflite").write_bytes(b"half removed")
    lose(tmp_path)
    assert state(Slots(tmp_path)) == (A, None)


@pytest.mark.parametrize(
    "names", [{"current": "gone"}, {"current": None}, {"current": "gone", "previous": "x"}]
)
def test_a_name_without_a_folder_is_no_reason_to_serve_nothing(slots, tmp_path, names):
    put_signed(slots, A)
    put_signed(slots, B)
    (tmp_path / "slots.json").write_text(json.dumps({"schema": 1, "refused": {"r": "no"}, **names}))
    again = Slots(tmp_path)
    assert state(again) == (B, A)
    assert again.refused == {"r": "no"}


def test_a_refused_release_is_not_adopted(slots, tmp_path):
    put_signed(slots, A)
    put_signed(slots, B)
    (tmp_path / "slots.json").write_text(json.dumps({"schema": 1, "refused": {B: "wrong answers"}}))
    assert state(Slots(tmp_path)) == (A, None)


def test_the_file_of_the_released_version_is_read_and_ours_by_it(slots, tmp_path):
    put_signed(slots, A)
    put_signed(slots, B)
    content = json.loads((tmp_path / "slots.json").read_bytes())
    assert (content["schema"], content["current"], content["previous"]) == (1, B, A)
    for name in ("checksum", "digests"):
        del content[name]
    (tmp_path / "slots.json").write_text(json.dumps({**content, "current": A, "previous": B}))
    assert state(Slots(tmp_path)) == (A, B), "the released client wrote last, and knows no second copy"


def test_a_field_of_a_newer_version_breaks_no_checksum(slots, tmp_path):
    put_signed(slots, A)
    content = json.loads((tmp_path / "slots.json").read_bytes())
    del content["checksum"]
    content["of_a_newer_version"] = {"b": 1.5, "a": [1, None]}
    data = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["checksum"] = hashlib.sha256(data.encode()).hexdigest()
    (tmp_path / "slots.json").write_text(json.dumps(content))
    (tmp_path / "slots.copy.json").unlink()
    (tmp_path / "activated").unlink()
    slots = Slots(tmp_path)
    slots.note_failure("r", Ending.WORSE, "no", "this")
    assert (state(Slots(tmp_path)), Slots(tmp_path).refused) == ((A, None), {"r": "no"})


def test_a_disk_that_cannot_be_read_now_is_waited_for(slots, tmp_path, monkeypatch):
    put_signed(slots, A)
    put_signed(slots, B)
    slots.note_failure("r", Ending.WORSE, "wrong answers", "this")
    before = (tmp_path / "slots.json").read_bytes()
    with monkeypatch.context() as patch:
        fail_to_read(patch, *FILES)
        patient = PatientSlots(tmp_path)
        assert state(patient) == (B, A), "what served last serves"
        with pytest.raises(DeviceError, match="Input/output error"):
            patient.note_failure("s", Ending.WORSE, "no", "this")
        patient.clean_slots()
        with pytest.raises(DeviceError, match="Input/output error"):
            Slots(tmp_path)
    assert (tmp_path / "slots.json").read_bytes() == before
    with pytest.raises(DeviceError, match="can be read again"):
        patient.note_failure("s", Ending.WORSE, "no", "this")
    patient.note_failure("s", Ending.WORSE, "no", "this")
    assert Slots(tmp_path).refused == {"r": "wrong answers", "s": "no"}


@pytest.mark.timeout(3600)
def test_no_bit_of_slots_json_costs_a_release(slots, tmp_path, faults):
    put_signed(slots, A)
    put_signed(slots, B)
    slots.note_failure("r", Ending.WORSE, "wrong answers", "this")
    slots.keep_probation(ProbationRecord(release=B))
    for name in FILES:
        file = tmp_path / name
        data = file.read_bytes()
        for bit in bits_of(data, faults):
            file.write_bytes(flip(data, bit))
            again = Slots(tmp_path)
            assert (state(again), again.refused) == ((B, A), {"r": "wrong answers"}), bit
            assert again.probation is not None, bit
        file.write_bytes(data)


def test_leftovers_of_kills_are_swept(slots, tmp_path):
    put(slots, "a")
    slots.clean_slots()
    slots.stage("b")
    (tmp_path / "slots/c").mkdir()
    (tmp_path / "slots/stray-file").write_bytes(b"")
    for scratch in (".check-xyz", ".look-xyz"):  # the latter of version 0.1
        (tmp_path / scratch).mkdir()
        (tmp_path / scratch / "timestamp.json").write_bytes(b"")
    (tmp_path / ".slots.json.abc").write_bytes(b"")
    (tmp_path / "metadata/root_history").mkdir(parents=True)
    (tmp_path / "metadata/.timestamp.json.abc").write_bytes(b"")
    (tmp_path / "metadata/root_history/.2.root.json.abc").write_bytes(b"")
    (tmp_path / "metadata/timestamp.json").write_bytes(b"kept")
    slots = Slots(tmp_path)
    slots.clean_slots()
    slots.clean_leftovers()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    slot = {"slots/a/release.json", "slots/a/model.tflite"}
    assert left == {*FILES, "activated", "metadata/timestamp.json", *slot}


def test_refusals_are_remembered_with_their_reason_and_bounded(slots, tmp_path):
    put(slots, "a")
    for number in range(REFUSALS_KEPT + 5):
        slots.note_failure(f"r{number}", Ending.WORSE, "x" * 5000, "this")
    slots.note_failure("r10", Ending.WORSE, "again", "this")
    again = Slots(tmp_path)
    assert len(again.refused) == REFUSALS_KEPT
    assert again.refused["r10"] == "again"
    assert "r0" not in again.refused
    assert state(again) == ("a", None)


def test_refusals_of_other_software_are_forgotten(slots, tmp_path):
    slots.note_failure("a", Ending.WORSE, "no", "old runtime")
    slots.forget_failures_of_others("old runtime")
    assert Slots(tmp_path).refused == {"a": "no"}
    slots.forget_failures_of_others("new runtime")
    assert Slots(tmp_path).refused == {}


def test_a_switch_that_the_disk_refuses_leaves_all_as_it_was(slots, tmp_path, monkeypatch):
    put(slots, "a")
    slots.stage("b")
    slots.install("b")

    def refuse(path, _data):
        raise DeviceError(str(path))

    monkeypatch.setattr(sealed_file, "write_durably", refuse)
    with pytest.raises(DeviceError):
        slots.activate("b")
    assert state(slots) == state(Slots(tmp_path)) == ("a", None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_state_folder_of_another_user_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DeviceError, match="slots"):
        Slots(tmp_path)


def test_a_file_in_place_of_the_state_folder_is_named(tmp_path):
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(DeviceError, match="state"):
        Slots(tmp_path / "state")


def test_a_real_release_can_be_installed(slots):
    document = write_release(slots.stage("x"))
    slot = slots.install("x")
    assert (slot / "model.tflite").stat().st_size == document.model_bytes


def test_the_time_of_activation_is_kept_with_the_release(tmp_path):
    times = iter(("first", "second"))
    slots = Slots(tmp_path, now=lambda: next(times))
    assert slots.serving_since is None
    put(slots, "a")
    slots.activate("a")  # it serves already: the time stays
    assert slots.serving_since == "first"
    slots.stage("b")
    slots.install("b")
    before = slots.activate("b")
    assert Slots(tmp_path).serving_since == "second"
    slots.put_back(before)
    assert (slots.current, Slots(tmp_path).serving_since) == ("a", "first")
